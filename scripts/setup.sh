#!/usr/bin/env bash
# Installs what a task needs and does not find. Says nothing when there is
# nothing to do.
#
#   scripts/setup.sh [run|test|gvisor|bench|check|agents]
set -euo pipefail
export PATH="$PATH:/usr/local/go/bin:/usr/sbin:/sbin"

task=${1:-run}

# The version of gVisor that the tests run against.
runsc_module=gvisor.dev/gvisor/runsc@v0.0.0-20260905035102-160fafc42237

packages=()

# want COMMAND PACKAGE: the package is needed when the command is missing.
want() {
	command -v "$1" >/dev/null || packages+=("$2")
}

want git git
want mkfs.btrfs btrfs-progs
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
case $task in
run) # the example has a database; any Postgres will do
	compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || packages+=(postgresql)
	;;
test | gvisor)
	want setfattr attr
	want mkfs.xfs xfsprogs
	want bwrap bubblewrap
	want runc runc
	want ps procps
	want redis-server redis-server
	[ -x /usr/lib/postgresql/15/bin/postgres ] || packages+=(postgresql-15)
	want mariadbd mariadb-server-core
	want mariadb mariadb-client-core
	;;
bench)
	want bwrap bubblewrap
	want runc runc
	;;
check)
	want gcc gcc
	[ -e /usr/include/stdlib.h ] || packages+=(libc6-dev)
	;;
agents)
	want npm npm
	want unshare util-linux
	want ip iproute2
	;;
*)
	echo "setup: unknown task $task; use run, test, gvisor, bench, check or agents" >&2
	exit 64
	;;
esac

if [ ${#packages[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "setup: these packages are missing and installing them needs root:" >&2
		echo "  sudo apt-get install ${packages[*]}" >&2
		exit 77
	fi
	if ! command -v apt-get >/dev/null; then
		echo "setup: no apt-get here; install by hand: ${packages[*]}" >&2
		exit 72
	fi
	echo "setup: installing ${packages[*]}"
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	# Packages of servers are wanted for their programs: none is started, and
	# no database is made.
	made=("$log")
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		made+=(/usr/sbin/policy-rc.d)
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
		chmod 755 /usr/sbin/policy-rc.d
	fi
	if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
		mkdir -p /etc/postgresql-common/createcluster.d
		made+=(/etc/postgresql-common/createcluster.d/mayfly.conf)
		echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/mayfly.conf
	fi
	trap 'rm -f "${made[@]}"' EXIT
	install=(apt-get install -y -q --no-install-recommends "${packages[@]}")
	if ! "${install[@]}" >"$log" 2>&1; then
		# The package lists may be missing or old.
		apt-get update -q >"$log" 2>&1 && "${install[@]}" >>"$log" 2>&1 || {
			cat "$log" >&2
			exit 1
		}
	fi
fi

if ! command -v go >/dev/null; then
	echo "setup: the Go toolchain is missing; get Go $(awk '$1 == "go" { print $2 }' go.mod) or newer from https://go.dev/dl" >&2
	exit 72
fi

# usable FILE: a runsc that is linked dynamically cannot start sandboxes.
usable() {
	[ -x "$1" ] && ! head -c 8192 "$1" | grep -aq ld-linux
}

if [ "$task" = gvisor ] || [ "$task" = agents ]; then
	found=
	for runsc in "${MAYFLY_RUNSC:-}" "$(command -v runsc || true)" /usr/local/bin/runsc /opt/gvisor/bin/runsc; do
		usable "$runsc" && found=$runsc
	done
	if [ -z "$found" ] && [ "$(id -u)" = 0 ]; then
		echo "setup: building runsc (a few minutes, once)"
		GOBIN=/usr/local/bin CGO_ENABLED=0 GOFLAGS=-mod=mod go install "$runsc_module"
	fi
fi
