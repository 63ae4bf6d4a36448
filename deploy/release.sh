#!/usr/bin/env bash
# Makes the files of a release in dist/, and publishes them: what docs/releasing.md has that needs no GitHub.
#
#   deploy/release.sh check TAG             fails unless the tag, Cargo.toml, the chart and CHANGELOG.md have one version
#   deploy/release.sh notes                 prints the part of CHANGELOG.md about the version
#   deploy/release.sh archive BINARY        dist/weir-VERSION-linux-ARCHITECTURE.tar.gz
#   deploy/release.sh sbom TARGET BINARY    dist/weir-VERSION-linux-ARCHITECTURE.cdx.json: what the binary is made of
#   deploy/release.sh image [LABEL=VALUE...]    dist/weir-VERSION-image.tar, of all archives in dist/
#   deploy/release.sh chart                 dist/weir-VERSION.tgz, and dist/weir-VERSION.yaml for those without helm
#   deploy/release.sh sums                  dist/SHA256SUMS, of all that is there
#   deploy/release.sh publish               pushes the image and the chart to REGISTRY; prints their names and digests
#
# REGISTRY, such as ghcr.io/OWNER, is where the image is published, and where the chart then finds it. SOURCE is the URL of
# the repository that image and chart name as their source. Both may be left out of what makes files.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}
# The value of a top-level key of the chart.
of_chart() { sed -n "s/^$1: *\"\{0,1\}\([^\" ]*\).*/\1/p" charts/weir/Chart.yaml; }

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
readonly version dist=dist
readonly name=$dist/weir-$version
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$dist"

check() {
  [[ $1 == "v$version" ]] || fail "the tag is $1, and Cargo.toml has the version $version: tag v$version"
  [[ $(of_chart version) == "$version" ]] || fail "charts/weir/Chart.yaml has the version $(of_chart version), not $version"
  [[ $(of_chart appVersion) == "$version" ]] || fail "charts/weir/Chart.yaml has the appVersion $(of_chart appVersion), not $version"
  [[ -n $(notes) ]] || fail "CHANGELOG.md has nothing below ## [$version]"
}

notes() {
  awk -v heading="## [$version]" 'index($0, "## [") == 1 { found = index($0, heading) == 1; next } found' CHANGELOG.md | sed '/./,$!d'
}

archive() {
  local binary=$1 architecture
  architecture=$(deploy/architecture.sh "$binary")
  install -D -m 755 "$binary" "$work/weir/weir"
  install -m 644 LICENSE "$work/weir"
  tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --directory "$work/weir" weir LICENSE |
    gzip --no-name --best >"$name-linux-$architecture.tar.gz"
}

# By cargo's own resolution: the crates that are built for the target, without those for tests.
sbom() {
  local target=$1 architecture
  architecture=$(deploy/architecture.sh "$2")
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) cargo cyclonedx --quiet --format json --spec-version 1.5 --target "$target" --override-filename weir-sbom
  mv weir-sbom.json "$name-linux-$architecture.cdx.json"
}

image() {
  local archive folder binaries=()
  for archive in "$name"-linux-*.tar.gz; do
    folder=$work/$(basename "$archive")
    mkdir "$folder"
    tar --extract --file "$archive" --directory "$folder" weir || fail "there is no archive in $dist: make archive"
    binaries+=("$folder/weir")
  done
  deploy/image.sh "${binaries[0]}" "${REGISTRY:-docker.io/library}/weir:$version" "$name-image.tar" "${binaries[@]:1}" \
    ${SOURCE:+"org.opencontainers.image.source=$SOURCE"} "$@"
}

# A copy that knows where the image is published.
chart() {
  local helm chart=$work/weir
  helm=$(deploy/helm.sh)
  cp -r charts/weir "$chart"
  if [[ -n ${REGISTRY:-} ]]; then
    sed -i "/^image:/,/^[^ ]/ s|^  registry: \"\"|  registry: $REGISTRY|" "$chart/values.yaml"
  fi
  if [[ -n ${SOURCE:-} ]]; then
    printf 'home: %s\nsources: [%s]\n' "$SOURCE" "$SOURCE" >>"$chart/Chart.yaml"
  fi
  "$helm" lint --kube-version 1.30 --quiet --strict "$chart"
  "$helm" package "$chart" --destination "$dist" >&2
  deploy/manifests.sh "$helm" "$chart" >"$name.yaml"
}

sums() {
  cd "$dist"
  sha256sum -- weir-* >SHA256SUMS
}

publish() {
  local helm pushed image=${REGISTRY:?such as ghcr.io/OWNER}/weir
  helm=$(deploy/helm.sh)
  skopeo copy --all --preserve-digests --digestfile "$work/digest" "oci-archive:$name-image.tar" "docker://$image:$version" >&2
  printf 'image=%s\nimage-digest=%s\n' "$image" "$(cat "$work/digest")"
  pushed=$("$helm" push "$name.tgz" "oci://$REGISTRY/charts" 2>&1) || fail "$pushed"
  printf 'chart=%s\nchart-digest=%s\n' "$REGISTRY/charts/weir" "$(sed -n 's/^Digest: *//p' <<<"$pushed")"
}

case ${1-} in
  check | notes | archive | sbom | image | chart | sums | publish) "$@" ;;
  *)
    sed -n 's/^#   //p' "$0" >&2
    exit 2
    ;;
esac
