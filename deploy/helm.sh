#!/usr/bin/env bash
# Prints where helm is: on the path, or the one that the end-to-end tests built. Fails where there is none.
set -euo pipefail
command -v helm || compgen -G "${XDG_CACHE_HOME:-$HOME/.cache}/weir/node-*/helm" | tail -n 1
