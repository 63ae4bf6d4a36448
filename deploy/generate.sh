#!/usr/bin/env bash
# Writes what is made from something else: the chart's copy of the custom resource definitions, the table of values in
# its README, deploy/weir.yaml, the chart rendered as plain manifests, and the versions in deploy/Dockerfile. Lints the
# chart with helm, which is built on the first run. With --check it writes nothing, and fails when something is not up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shopt -s lastpipe # what put finds at the end of a pipe is known after it
check=${1-}
stale=0

# Puts standard input into a file; with --check, compares.
put() {
  local new
  new=$(mktemp)
  cat >"$new"
  if [[ "$check" != --check ]]; then
    cat "$new" >"$1"
  elif ! diff --unified "$1" "$new"; then
    echo "error: $1 is not up to date: run make generate" >&2
    stale=1
  fi
  rm "$new"
}

readme() {
  awk '/<!-- values/ { print; system("echo; echo \"| value | default | what it is |\"; echo \"| --- | --- | --- |\"; awk -f charts/weir/readme.awk charts/weir/values.yaml; echo"); skip = 1 }
    /<!-- end of values/ { skip = 0 }
    !skip' charts/weir/README.md
}

# The compiler that everything else is built with, and the label that says which Weir is in the image.
dockerfile() {
  local rust weir
  rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  weir=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
  sed -e "s/^FROM rust:[^-]*/FROM rust:$rust/" -e "s/\(image\.version\)=\"[^\"]*\"/\1=\"$weir\"/" deploy/Dockerfile
}

for definition in crds/*.yaml; do
  put "charts/weir/files/crds/${definition##*/}" <"$definition"
done
readme | put charts/weir/README.md
dockerfile | put deploy/Dockerfile

helm=$(deploy/helm.sh)
for values in charts/weir/values.yaml charts/weir/ci/*-values.yaml; do
  "$helm" lint --kube-version 1.30 --quiet --strict charts/weir --values "$values"
done
deploy/chart.sh "$helm" || stale=1
deploy/manifests.sh "$helm" charts/weir | put deploy/weir.yaml
exit "$stale"
