#!/usr/bin/env bash
# Prints the folder that holds what the tests run of Kubernetes.
#
#   build.sh          kube-apiserver, etcd and kubectl, for the integration tests
#   build.sh oldest   the same of the oldest version of Kubernetes that is supported, which oldest.mod names
#   build.sh helm     helm, for the chart
#   build.sh node     what makes a node of a machine beside them, helm, CoreDNS and kube-router, for the end-to-end tests
#
# They are built from this Go module into the cache, once, and again whenever the module changes; helm, CoreDNS and
# kube-router from modules of their own, at the versions below. KUBEBUILDER_ASSETS, where set, is the folder of the first
# three instead and has to hold them. Only the folder goes to standard output.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}
need() { command -v "$1" >/dev/null 2>&1 || fail "$1 is missing: $2"; }

mod=go.mod # beside it stands its .sum
components=()
modules=() # built as their own modules are, with the versions that those name
case "${1-}" in
  '')
    what=kubernetes time='4 minutes'
    components=(kube-apiserver etcd kubectl)
    ;;
  oldest)
    what=kubernetes time='4 minutes' mod=oldest.mod
    components=(kube-apiserver etcd kubectl)
    ;;
  node)
    what=node time='8 minutes'
    components=(kube-controller-manager kube-scheduler kubelet kube-proxy pause)
    modules=(github.com/coredns/coredns@v1.13.1 github.com/cloudnativelabs/kube-router/v2/cmd/kube-router@v2.1.0)
    ;;
  helm)
    what=helm time='3 minutes' mod=
    modules=(helm.sh/helm/v3/cmd/helm@v3.19.5)
    ;;
  *) fail "there is no part named $1: build.sh, build.sh oldest, build.sh helm or build.sh node" ;;
esac
readonly what time mod components modules

# The binaries that a folder lacks, by name.
missing_in() {
  local path name missing=()
  for path in "${components[@]}" "${modules[@]}"; do
    name=${path%@*} name=${name##*/}
    [[ -x "$1/$name" ]] || missing+=("$name")
  done
  printf '%s' "${missing[*]-}"
}

if [[ -z "${1-}" && -n "${KUBEBUILDER_ASSETS:-}" ]]; then
  missing=$(missing_in "$KUBEBUILDER_ASSETS")
  [[ -z "$missing" ]] ||
    fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks: $missing. Put them there, or unset it to have them built."
  printf '%s\n' "$KUBEBUILDER_ASSETS"
  exit 0
fi

need sha256sum 'on Debian, apt-get install coreutils'
need flock 'on Debian, apt-get install util-linux'

if [[ -n "$mod" ]]; then
  version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$mod")
  [[ "$version" =~ ^v([0-9]+)\.([0-9]+)\. ]] || fail "$mod names no version of k8s.io/kubernetes"
  major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
  stamp=$(cat "$mod" "${mod%.mod}.sum" "${components[@]/%//main.go}" build.sh | sha256sum | cut -d ' ' -f 1)
else
  version=${modules[0]#*@}
  stamp=$(sha256sum build.sh | cut -d ' ' -f 1)
fi

readonly parent=${XDG_CACHE_HOME:-$HOME/.cache}/weir
readonly folder=$parent/$what-${version#v}
up_to_date() { [[ -z "$(missing_in "$folder")" && "$(cat "$folder/stamp" 2>/dev/null)" == "$stamp" ]]; }

if ! up_to_date; then
  mkdir -p "$parent"
  exec 9>"$folder.lock"
  if ! flock --nonblock 9; then
    say "another run is building $what $version: waiting for it"
    flock 9
  fi
  if ! up_to_date; then
    need go 'install Go 1.21 or newer (on Debian, apt-get install golang-go); it fetches the version in go.mod itself'
    say "building $what $version for the tests into $folder: about $time the first time, seconds afterwards"
    rm -rf "$folder".build.* # of a run that was killed
    build=$(mktemp -d "$folder.build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    v=k8s.io/component-base/version
    export CGO_ENABLED=0
    if [[ -n "$mod" ]]; then
      go build -modfile "$mod" -trimpath -o "$build/" \
        -ldflags "-s -w -X $v.gitVersion=$version -X $v.gitMajor=$major -X $v.gitMinor=$minor" \
        "${components[@]/#/./}" >&2
    fi
    for module in "${modules[@]}"; do
      GOBIN=$build go install -trimpath -ldflags '-s -w' "$module" >&2
    done
    if [[ "$what" == node ]]; then
      helm=$("$PWD/build.sh" helm)
      ln "$helm/helm" "$build/helm"
    fi
    printf '%s\n' "$stamp" >"$build/stamp"
    chmod 755 "$build"
    # Whoever runs the old binaries keeps them: they are unlinked, not overwritten.
    rm -rf "$folder"
    mv -T "$build" "$folder"
    trap - EXIT
    say "built $what $version"
  fi
  exec 9>&-
fi
printf '%s\n' "$folder"
