#!/usr/bin/env bash
# Prints where helm is: on the path, else in the cache, where it is built first if it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v helm; then
  folder=$(tests/kubernetes/build.sh helm)
  printf '%s\n' "$folder/helm"
fi
