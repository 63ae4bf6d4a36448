#!/usr/bin/env bash
# Checks in what the chart renders what helm lint does not see.
#
#   deploy/chart.sh HELM
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly helm=$1

render() { "$helm" template "$@" --kube-version 1.30 charts/weir; }
wrong() {
  echo "error: charts/weir: $1" >&2
  failed=1
}
failed=0

# A budget without the policy keeps a pod that is not ready on its node.
manifests=$(render weir)
budgets=$(grep --count '^kind: PodDisruptionBudget' <<<"$manifests")
if [[ $(grep --count '^  unhealthyPodEvictionPolicy: AlwaysAllow' <<<"$manifests") != "$budgets" ]]; then
  wrong "a PodDisruptionBudget does not let pods go that are not ready"
fi

# Without quotes YAML reads some names as numbers and booleans, which the API server refuses. The values in ci/ have such names.
strange() { render weir --namespace 2024 --values charts/weir/ci/everything-values.yaml "$@"; }
manifests=$(
  strange
  strange --set router.persistence.enabled=true --set-string router.persistence.storageClass=2024
)
if grep --extended-regexp '([-:,] +|[[{])(2024|on) *([],}#]|$)' <<<"$manifests"; then
  wrong "these names lack quotes"
fi

exit "$failed"
