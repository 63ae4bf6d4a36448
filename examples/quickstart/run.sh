#!/usr/bin/env bash
# Runs Weir without a cluster on the manifests in this directory, with two consumers that print the events they receive.
#
#   run.sh              run the router and both consumers until Ctrl-C
#   run.sh stop NAME    stop one of them (router, orders or ticks); the others keep running
#   run.sh kill NAME    kill one of them without a clean shutdown
#   run.sh NAME         start one of them again, in this terminal
#
# Events and checkpoints are kept in target/quickstart between runs; remove it to start over.
set -euo pipefail
# Each process runs in its own group, so that Ctrl-C reaches only this script and each process gets one signal.
set -m

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
project="$here/../.."
target="${CARGO_TARGET_DIR:-$project/target}"
state="${QUICKSTART_STATE:-$target/quickstart}"
ticks="${QUICKSTART_TICKS:-127.0.0.1:8081}"
orders="${QUICKSTART_ORDERS:-127.0.0.1:8082}"
weir="${QUICKSTART_WEIR:-$target/fast-build/weir}"

# Replaces this shell by the process of this name.
become() {
  echo $BASHPID >"$state/$1.pid"
  case $1 in
    ticks) exec "$weir" --log-level warn display --name ticks --listen "$ticks" ;;
    orders) exec "$weir" --log-level warn display --name orders --listen "$orders" ;;
    router) exec "$weir" run "$here" --data "$state/data" --service "quickstart/ticks=http://$ticks" --service "quickstart/orders=http://$orders" ;;
  esac
}

signal() {
  kill "-$1" "$(cat "$state/$2.pid")"
  echo "To start it again: examples/quickstart/run.sh $2"
}

all() {
  [[ -n "${QUICKSTART_WEIR:-}" ]] || "${CARGO:-cargo}" build --profile fast-build --locked --manifest-path "$project/Cargo.toml"
  processes=()
  trap 'trap - EXIT INT TERM; kill "${processes[@]}" 2>/dev/null || true; wait' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  for name in ticks orders router; do
    become "$name" &
    processes+=($!)
  done
  # If one ends, the others keep running.
  for name in ticks orders router; do
    wait -n "${processes[@]}" || true
    echo "One of the processes has ended. The others go on; Ctrl-C ends them." >&2
  done
}

mkdir -p "$state"
case "${1-all} ${2-}" in
  "all ") all ;;
  "ticks " | "orders " | "router ") become "$1" ;;
  "stop ticks" | "stop orders" | "stop router") signal TERM "$2" ;;
  "kill ticks" | "kill orders" | "kill router") signal KILL "$2" ;;
  *)
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
