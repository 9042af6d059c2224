#!/usr/bin/env bash
# Lets an agent repair a small library in an environment of its own and shows
# what it did. Has another one drop a table and delete files there, and takes
# that back. Does the repair again from the same lock to compare.
#
#   examples/demo.sh [DIRECTORY OF THE PROGRAMS]
#
# Everything lies in a temporary directory, which is removed at the end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../bin}" && pwd)
export PATH="$bin:$PATH:/usr/local/go/bin:/usr/sbin:/sbin"

if [ "$(id -u)" != 0 ]; then
	echo "demo: environments are made of namespaces, mounts and cgroups, which needs root." >&2
	echo "demo: run it with: sudo make demo" >&2
	exit 77
fi
goroot=$(go env GOROOT)
case $(readlink -f "$goroot") in
/usr/* | /opt/*) ;;
*)
	echo "demo: the example's tests need Go inside, which sees /usr; yours is in $goroot" >&2
	exit 72
	;;
esac

work=$(mktemp -d "${TMPDIR:-/tmp}/mayfly-demo.XXXXXX")
export MAYFLY_STATE=$work/state

# finish deletes what is there, ends the server that was started on demand, and
# removes the directory.
finish() {
	status=$?
	trap - EXIT
	for env in first second; do
		mayfly env delete "$env" >/dev/null 2>&1 || true
	done
	pid=$(mayfly version --json 2>/dev/null | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
	if [ -n "$pid" ]; then
		kill "$pid"
		for _ in $(seq 200); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.05
		done
	fi
	if grep -q " $work/" /proc/self/mountinfo; then
		echo "demo: something is still mounted below $work; it is left as it is" >&2
		exit 1
	fi
	rm -rf "$work"
	exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -t 1 ]; then
	bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
else
	bold='' dim='' plain=''
fi

title() { printf '\n%s== %s%s\n' "$bold" "$1" "$plain"; }

# quoted prints words as one would type them.
quoted() {
	for word; do
		case $word in
		*[\'\ ]*) case $word in *\'*) word=\"$word\" ;; *) word=\'$word\' ;; esac ;;
		esac
		printf ' %s' "$word"
	done
}

# show prints a command and runs it.
show() {
	printf '%s$%s%s\n' "$dim" "$(quoted "$@")" "$plain"
	"$@"
}

title "A repository with two failing tests"
cp -r "$here/freebusy" "$work/freebusy"
cd "$work/freebusy"
# Each release of Debian has a Postgres of its own; the lock pins which.
postgres=$(cd /usr/lib/postgresql && printf '%s\n' */bin/postgres | sort -n | tail -n 1)
sed -i "s/postgres: .*/postgres: \"${postgres%%/*}\"/" mayfly.yaml
# The dates and names are fixed, so that the commit is the same everywhere.
export GIT_AUTHOR_NAME=demo GIT_AUTHOR_EMAIL=demo@example.com GIT_AUTHOR_DATE=2026-01-01T00:00:00Z
export GIT_COMMITTER_NAME=demo GIT_COMMITTER_EMAIL=demo@example.com GIT_COMMITTER_DATE=2026-01-01T00:00:00Z
git -c init.defaultBranch=main init -q
git add -A
git commit -q -m "Find the free time between appointments"
show git log --oneline
show mayfly lock

title "The agent works in an environment of its own"
show mayfly run --locked --name first -- fixer

title "What it changed"
show mayfly diff first

title "The tests now, inside; the repository outside is as it was"
show mayfly exec first -- go test -count=1 .
show git status --short --untracked-files=no

title "The database of the environment, with a row more than it began with"
rows="SELECT * FROM busy"
show mayfly exec first -- psql -qc "INSERT INTO busy VALUES ('Eve', '14:00-15:00')"
show mayfly exec first -- psql -c "$rows"
show mayfly snapshot create first
show mayfly snapshot list first

title "Another agent is told to tidy up, and goes too far"
show mayfly exec first -- sh -c 'psql -c "DROP TABLE busy"; rm *.go'
show mayfly exec first -- sh -c 'ls; psql -c "\d"'

title "Taken back: files and rows, to the same instant"
show mayfly rollback first 3
show mayfly exec first -- psql -c "$rows"
show mayfly exec first -- go test -count=1 .

title "The repair once more, from the same lock"
printf '%s$ mayfly run --locked --name second -- fixer%s\n' "$dim" "$plain"
mayfly run --locked --name second -- fixer >"$work/second.log"
tail -n 1 "$work/second.log"
one=$(mayfly hash first)
two=$(mayfly hash second)
printf 'first   %s\nsecond  %s\n' "$one" "$two"
if [ "$one" != "$two" ]; then
	echo "demo: the two trees differ" >&2
	exit 1
fi
echo "identical, byte for byte"

title "And now"
cat <<END
keep       mayfly apply first --branch agent/fix    a branch of the repository
roll back  mayfly rollback first                    to before the agent began
fork       mayfly fork first --name other           another try from here
END
title "Done; everything is removed again"
