#!/bin/sh
# Makes small Debian systems with newer versions of RabbitMQ, for `make prove-rabbitmq`: 4.0 of trixie, and that of sid.
#
#     tests/install-rabbitmq.sh folder
set -eu

folder=$1
mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\{0,1\}\(http[^ ]*\).*/\2/p' \
    /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
command -v debootstrap >/dev/null 2>&1 || apt-get install -y -qq debootstrap
mkdir -p "$folder"
for suite in trixie sid; do
    if [ ! -x "$folder/$suite/usr/lib/rabbitmq/bin/rabbitmq-server" ]; then
        debootstrap --variant=minbase --include=rabbitmq-server "$suite" "$folder/$suite" "$mirror" >"$folder/$suite.log"
    fi
done
