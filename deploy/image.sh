#!/usr/bin/env bash
# Packs a static binary into an OCI image without a container engine: the same image as the Dockerfile beside this makes.
#
#   deploy/image.sh BINARY REFERENCE ARCHIVE [BINARY...] [LABEL=VALUE...]
#
# BINARY becomes the entrypoint; REFERENCE is the image's name, such as docker.io/library/weir:0.1.0; ARCHIVE is the file
# to write, an OCI layout in a tar, which containerd (`ctr images import`), podman, skopeo, kind and k3s read. Further
# binaries, one an architecture, make it an image for all of these. The same binaries make the same image, bit by bit.
set -euo pipefail

if (($# < 3)); then
  sed -n 's/^#   //p' "$0" >&2
  exit 2
fi
readonly reference=$2 archive=$3
binaries=("$1") labels=()
for argument in "${@:4}"; do
  if [[ $argument == *=* ]]; then labels+=("$argument"); else binaries+=("$argument"); fi
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$(basename "${binaries[0]}")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/root/etc/ssl/certs "$work"/image/blobs/sha256

# The layer: the binary, the user that it runs as, and the authorities that https Sinks are checked against.
echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$work/root/etc/passwd"
echo 'nonroot:x:65532:' >"$work/root/etc/group"
for bundle in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
  [[ -f "$bundle" ]] || continue
  install -m 644 "$bundle" "$work/root/etc/ssl/certs/ca-certificates.crt"
  break
done

# Tars what a folder holds; nothing in it tells when or by whom.
pack() { tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --directory "$1" "${@:2}"; }
digest() { sha256sum "$1" | cut -d ' ' -f 1; }
# Puts a file among the image's blobs, and writes what names it.
blob() {
  local file=$1 type=$2 sum
  sum=$(digest "$file")
  cp "$file" "$work/image/blobs/sha256/$sum"
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%d' "$type" "$sum" "$(stat -c %s "$file")"
}
# LABEL=VALUE... as the members of a JSON object.
members() {
  local pair separator=
  for pair in "$@"; do
    printf '%s"%s":"%s"' "$separator" "${pair%%=*}" "${pair#*=}"
    separator=,
  done
}

# The image of one binary, from its layer to $work/manifest.json.
image() {
  local binary=$1 architecture=$2
  install -m 755 "$binary" "$work/root/$name"
  cd "$work/root"
  pack . -- * >"$work/layer.tar"
  cd "$OLDPWD"
  gzip --no-name --best <"$work/layer.tar" >"$work/layer.tar.gz"
  printf '{"architecture":"%s","os":"linux","config":{"User":"65532:65532","Entrypoint":["/%s"],"WorkingDir":"/","Labels":{%s}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$architecture" "$name" "$(members "${labels[@]}")" "$(digest "$work/layer.tar")" >"$work/config.json"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s},"layers":[%s}]}' \
    "$(blob "$work/config.json" config.v1+json)" "$(blob "$work/layer.tar.gz" layer.v1.tar+gzip)" >"$work/manifest.json"
}
# An index of images, each as blob writes it.
index() {
  local IFS=,
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' "$*"
}

platforms=()
for binary in "${binaries[@]}"; do
  architecture=$("$here/architecture.sh" "$binary")
  image "$binary" "$architecture"
  described=$(blob "$work/manifest.json" manifest.v1+json)
  platforms+=("$described,\"platform\":{\"architecture\":\"$architecture\",\"os\":\"linux\"}}")
done
# What the name stands for: the one image, or the index of several.
top=$work/manifest.json
if ((${#binaries[@]} > 1)); then
  top=$work/index.json
  index "${platforms[@]}" >"$top"
  described=$(blob "$top" index.v1+json)
fi
named=$(members "io.containerd.image.name=$reference" "org.opencontainers.image.ref.name=${reference##*:}")
index "$described,\"annotations\":{$named}}" >"$work/image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"

mkdir -p "$(dirname "$archive")"
pack "$work/image" oci-layout index.json blobs >"$archive.new"
mv "$archive.new" "$archive"
echo "$archive: $reference, sha256:$(digest "$top"), $(($(stat -c %s "$archive") / 1024)) KiB" >&2
