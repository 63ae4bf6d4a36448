#!/usr/bin/env bash
# Runs Weir without a cluster on the manifests beside this file, with two consumers that print what they get.
# Ends with Ctrl-C, and takes everything with it.
#
# In another terminal, from the project's folder, this makes an order:
#
#   target/release/weir send 127.0.0.1:8080/quickstart/default --type com.example.order.created --data '{"amount": 12.50}'
#
# and so does this:
#
#   curl -i http://127.0.0.1:8080/quickstart/default \
#     -H 'ce-specversion: 1.0' -H 'ce-id: 1' -H 'ce-source: /shop' -H 'ce-type: com.example.order.paid' \
#     -H 'content-type: application/json' -d '{"amount": 12.50}'
set -euo pipefail
# Each process in a group of its own, so that Ctrl-C reaches this script alone and each is told to end once.
set -m

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
project="$here/../.."
cargo build --release --locked --manifest-path "$project/Cargo.toml"
weir="${CARGO_TARGET_DIR:-$project/target}/release/weir"

data="$(mktemp -d)"
processes=()
# Invoked by the trap.
# shellcheck disable=SC2317
end() {
  trap - EXIT INT TERM
  kill "${processes[@]}" 2>/dev/null || true
  wait "${processes[@]}" 2>/dev/null || true
  rm -rf "$data"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$weir" --log-level warn display --name ticks --listen 127.0.0.1:8081 &
processes+=($!)
"$weir" --log-level warn display --name orders --listen 127.0.0.1:8082 &
processes+=($!)
"$weir" run "$here" --data "$data" \
  --service quickstart/ticks=http://127.0.0.1:8081 \
  --service quickstart/orders=http://127.0.0.1:8082 &
processes+=($!)

# When one of them ends, the others are of no use.
wait -n "${processes[@]}"
