#!/usr/bin/env bash
# Holds the code to what tools can check. Usage: check.sh STATICCHECK GOVULNCHECK
# (packages with versions, for go run).
set -uo pipefail
staticcheck=$1
govulncheck=$2
failed=()

step() {
	local name=$1
	shift
	printf '%-12s ' "$name"
	local out
	if out=$("$@" 2>&1); then
		echo ok
	else
		echo FAILED
		printf '%s\n' "$out"
		failed+=("$name")
	fi
}

formatted() {
	local files
	files=$(gofmt -l .) || return 1
	[ -z "$files" ] || {
		echo "not formatted; run gofmt -w on:"
		echo "$files"
		return 1
	}
}

# The database of vulnerabilities is fetched over the network; only where that
# is impossible may this check be left out.
vulnerabilities() {
	local out
	out=$(go run "$govulncheck" ./... 2>&1)
	local status=$?
	if [ $status -ne 0 ] && grep -qE 'fetching vulnerabilities|dial tcp|no such host|proxyconnect|i/o timeout|Forbidden|HTTP GET' <<<"$out" &&
		! grep -q '^Vulnerability #' <<<"$out"; then
		printf '%-12s %s\n' govulncheck "NOT RUN: the vulnerability database cannot be reached from here"
		tail -2 <<<"$out" | sed 's/^/             /'
		return
	fi
	printf '%-12s ' govulncheck
	if [ $status -eq 0 ]; then
		echo ok
	else
		echo FAILED
		printf '%s\n' "$out"
		failed+=(govulncheck)
	fi
}

step gofmt formatted
step vet go vet ./...
step vet-agents go vet -tags agents ./internal/agents
step staticcheck go run "$staticcheck" ./...
vulnerabilities
step race env CGO_ENABLED=1 go run ./internal/testreport -race -short -p 1 -timeout 20m ./...

if [ ${#failed[@]} -gt 0 ]; then
	echo "check: ${failed[*]} failed" >&2
	exit 1
fi
