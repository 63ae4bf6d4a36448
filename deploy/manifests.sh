#!/usr/bin/env bash
# Prints a chart as plain manifests: with its default values, in the namespace weir-system.
#
#   deploy/manifests.sh HELM CHART
set -euo pipefail
readonly helm=$1 chart=$2

printf '# Weir as plain manifests: the chart with its default values, in the namespace weir-system. Made by deploy/generate.sh.\n'
printf -- '---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: weir-system\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n'
"$helm" template weir "$chart" --kube-version 1.30 --namespace weir-system --skip-tests --set crds.keep=false | sed '/helm.sh\/\|managed-by: Helm/d'
