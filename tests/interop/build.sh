#!/usr/bin/env bash
# Prints the folder that holds the CloudEvents SDKs for the interoperability test: `python` (a virtual environment),
# `javascript` (with node_modules) and `go` (the program `interop`).
#
# Each is installed into the cache from what is pinned here, once, and again whenever that changes. A language whose
# tools this machine lacks, or that cannot be installed, is left out, and said. WEIR_INTEROP, where set, is the folder, and nothing is installed.
# Only the folder goes to standard output.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ -n "${WEIR_INTEROP:-}" ]]; then
  printf '%s\n' "$WEIR_INTEROP"
  exit 0
fi

say() { printf '%s\n' "$*" >&2; }

readonly folder=${XDG_CACHE_HOME:-$HOME/.cache}/weir/interop

# What a language lacks, and where it comes from; nothing if it is all there.
missing_for() {
  case $1 in
  python)
    python3 -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      printf 'Python 3.11 or newer with venv (on Debian, apt-get install python3-venv)'
    ;;
  javascript)
    { node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' && npm --version; } >/dev/null 2>&1 ||
      printf 'Node.js 20 or newer with npm (on Debian, apt-get install nodejs npm)'
    ;;
  go) go version >/dev/null 2>&1 || printf 'Go 1.21 or newer (on Debian, apt-get install golang-go)' ;;
  esac
}

# What a language's folder depends on: the pins, this script, and the interpreter that a virtual environment links to.
stamp_of() {
  {
    cat build.sh
    case $1 in
    python) cat python/requirements.txt && python3 -c 'import sys; print(sys.base_prefix, sys.version)' ;;
    javascript) cat javascript/package.json javascript/package-lock.json ;;
    go) cat go/go.mod go/go.sum go/*.go ;;
    esac
  } | sha256sum | cut -d ' ' -f 1
}

install_python() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --no-deps --only-binary :all: --require-hashes -r python/requirements.txt
}

install_javascript() {
  cp javascript/package.json javascript/package-lock.json "$1/"
  npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel=error
}

install_go() { CGO_ENABLED=0 go build -C go -trimpath -o "$1/" .; }

for tool in sha256sum flock; do
  command -v "$tool" >/dev/null || {
    say "error: $tool is missing: on Debian, apt-get install coreutils util-linux"
    exit 1
  }
done
mkdir -p "$folder"
exec 9>"$folder.lock"
flock 9
for language in python javascript go; do
  missing=$(missing_for "$language")
  if [[ -n "$missing" ]]; then
    say "skipped: interoperability with the CloudEvents SDK of $language, for want of $missing"
    rm -rf "${folder:?}/$language"
    continue
  fi
  stamp=$(stamp_of "$language")
  if [[ "$(cat "$folder/$language/stamp" 2>/dev/null)" != "$stamp" ]]; then
    say "installing the CloudEvents SDK of $language into $folder"
    rm -rf "${folder:?}/$language"
    mkdir "$folder/$language"
    if ! "install_$language" "$folder/$language" >&2; then
      say "skipped: interoperability with the CloudEvents SDK of $language, which could not be installed, see above"
      rm -rf "${folder:?}/$language"
      continue
    fi
    printf '%s\n' "$stamp" >"$folder/$language/stamp"
  fi
done
printf '%s\n' "$folder"
