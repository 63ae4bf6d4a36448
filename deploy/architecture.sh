#!/usr/bin/env bash
# Prints the architecture of a static binary as images name it: amd64 or arm64.
#
#   deploy/architecture.sh BINARY
set -euo pipefail
readonly binary=$1

# An empty image has no dynamic loader.
if readelf --program-headers "$binary" 2>/dev/null | grep -q INTERP; then
  echo "error: $binary is not static: build it with RUSTFLAGS='-C target-feature=+crt-static' and --target" >&2
  exit 1
fi
machine=$(LC_ALL=C readelf --file-header "$binary" | sed -n 's/^ *Machine: *//p')
case $machine in
  *X86-64) echo amd64 ;;
  AArch64) echo arm64 ;;
  *)
    echo "error: $binary is for ${machine:-no machine}: images are made for amd64 and arm64" >&2
    exit 1
    ;;
esac
