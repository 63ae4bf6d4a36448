#!/usr/bin/env bash
# Prints the folder that holds kube-apiserver, etcd and kubectl for the tests.
#
# KUBEBUILDER_ASSETS, where set, is that folder and has to hold the three. Otherwise they are built from this Go
# module into the cache, once, and again whenever the module changes. Only the folder goes to standard output.
set -euo pipefail

readonly components=(kube-apiserver etcd kubectl)
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}
need() { command -v "$1" >/dev/null 2>&1 || fail "$1 is missing: $2"; }

# The components that a folder lacks, by name.
missing_in() {
  local component missing=()
  for component in "${components[@]}"; do
    [[ -x "$1/$component" ]] || missing+=("$component")
  done
  printf '%s' "${missing[*]-}"
}

if [[ -n "${KUBEBUILDER_ASSETS:-}" ]]; then
  missing=$(missing_in "$KUBEBUILDER_ASSETS")
  [[ -z "$missing" ]] ||
    fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks: $missing. Put them there, or unset it to have them built."
  printf '%s\n' "$KUBEBUILDER_ASSETS"
  exit 0
fi

need sha256sum 'on Debian, apt-get install coreutils'
need flock 'on Debian, apt-get install util-linux'

version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' go.mod)
[[ "$version" =~ ^v([0-9]+)\.([0-9]+)\. ]] || fail "go.mod names no version of k8s.io/kubernetes"
major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
stamp=$(cat go.mod go.sum ./*/main.go build.sh | sha256sum | cut -d ' ' -f 1)

readonly parent=${XDG_CACHE_HOME:-$HOME/.cache}/weir
readonly folder=$parent/kubernetes-${version#v}
up_to_date() { [[ -z "$(missing_in "$folder")" && "$(cat "$folder/stamp" 2>/dev/null)" == "$stamp" ]]; }

if ! up_to_date; then
  mkdir -p "$parent"
  exec 9>"$folder.lock"
  if ! flock --nonblock 9; then
    say "another run is building Kubernetes $version: waiting for it"
    flock 9
  fi
  if ! up_to_date; then
    need go 'install Go 1.21 or newer (on Debian, apt-get install golang-go); it fetches the version in go.mod itself'
    say "building Kubernetes $version for the tests into $folder: about 4 minutes the first time, seconds afterwards"
    rm -rf "$folder".build.* # of a run that was killed
    build=$(mktemp -d "$folder.build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    packages=()
    for component in "${components[@]}"; do
      packages+=("./$component")
    done
    v=k8s.io/component-base/version
    CGO_ENABLED=0 go build -trimpath -o "$build/" \
      -ldflags "-s -w -X $v.gitVersion=$version -X $v.gitMajor=$major -X $v.gitMinor=$minor" \
      "${packages[@]}" >&2
    printf '%s\n' "$stamp" >"$build/stamp"
    chmod 755 "$build"
    # Whoever runs the old binaries keeps them: they are unlinked, not overwritten.
    rm -rf "$folder"
    mv -T "$build" "$folder"
    trap - EXIT
    say "built Kubernetes $version"
  fi
  exec 9>&-
fi
printf '%s\n' "$folder"
