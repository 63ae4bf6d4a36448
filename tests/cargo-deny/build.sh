#!/usr/bin/env bash
# Prints where cargo-deny is, at the version below: in the cache, where cargo builds it first if it is missing. Only the
# path goes to standard output.
set -euo pipefail

readonly version=0.20.2
readonly folder=${XDG_CACHE_HOME:-$HOME/.cache}/weir/cargo-deny-$version

if [[ ! -x "$folder/bin/cargo-deny" ]]; then
  printf 'building cargo-deny %s into %s: about 2 minutes the first time\n' "$version" "$folder" >&2
  # It runs for seconds, so it is built without optimizations; and not into the target folder of Weir.
  env --unset=CARGO_TARGET_DIR --unset=CARGO_BUILD_TARGET --unset=RUSTFLAGS CARGO_PROFILE_DEV_DEBUG=none \
    "${CARGO:-cargo}" install cargo-deny --locked --debug --version "=$version" --root "$folder" >&2
fi
printf '%s\n' "$folder/bin/cargo-deny"
