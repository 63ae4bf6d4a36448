#!/usr/bin/env bash
# Prints the folder with nats-server, for the tests of the JetStream log.
#
# Builds nats-server from this Go module into the cache, and again when the module changes. If WEIR_NATS is set, it is the
# folder instead and must contain nats-server. Only the folder is written to standard output.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}
need() { command -v "$1" >/dev/null 2>&1 || fail "$1 is missing: $2"; }

if [[ -n "${WEIR_NATS:-}" ]]; then
  [[ -x "$WEIR_NATS/nats-server" ]] ||
    fail "there is no nats-server in $WEIR_NATS (WEIR_NATS): put it there, or unset the variable to build it"
  printf '%s\n' "$WEIR_NATS"
  exit 0
fi

need sha256sum 'on Debian, apt-get install coreutils'
need flock 'on Debian, apt-get install util-linux'

readonly package=github.com/nats-io/nats-server/v2
version=$(awk -v package=$package '{ sub(/^require /, "") } $1 == package { print $2; exit }' go.mod)
[[ "$version" =~ ^v[0-9]+\.[0-9]+\. ]] || fail "go.mod names no version of $package"
stamp=$(cat go.mod go.sum build.sh | sha256sum | cut -d ' ' -f 1)

readonly parent=${XDG_CACHE_HOME:-$HOME/.cache}/weir
readonly folder=$parent/nats-${version#v}
up_to_date() { [[ -x "$folder/nats-server" && "$(cat "$folder/stamp" 2>/dev/null)" == "$stamp" ]]; }

if ! up_to_date; then
  mkdir -p "$parent"
  exec 9>"$folder.lock"
  if ! flock --nonblock 9; then
    say "another run is building nats-server $version: waiting for it"
    flock 9
  fi
  if ! up_to_date; then
    need go 'install Go 1.21 or newer (on Debian, apt-get install golang-go); it fetches the version in go.mod itself'
    say "building nats-server $version for the tests into $folder: about 3 minutes the first time"
    rm -rf "$folder".build.* # left by a killed run
    build=$(mktemp -d "$folder.build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$build/nats-server" $package >&2
    printf '%s\n' "$stamp" >"$build/stamp"
    chmod 755 "$build"
    # Unlinks the old binary instead of overwriting it, since a test may be running it.
    rm -rf "$folder"
    mv -T "$build" "$folder"
    trap - EXIT
    say "built nats-server $version"
  fi
  exec 9>&-
fi
printf '%s\n' "$folder"
