#!/usr/bin/env bash
# Says what this machine lacks to be a node of a cluster, for the end-to-end tests; nothing when it lacks nothing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

[[ "$(uname -s)" == Linux ]] || { echo "Linux"; exit; }
((EUID == 0)) || { echo "root"; exit; }

declare -A packages=([containerd]=containerd [ctr]=containerd [runc]=runc [iptables]=iptables [ipset]=ipset
  [conntrack]=conntrack [ip]=iproute2 [nsenter]=util-linux [readelf]=binutils)
missing=()
for command in "${!packages[@]}"; do
  command -v "$command" >/dev/null || missing+=("${packages[$command]}")
done
[[ -x /usr/lib/cni/ptp ]] || missing+=(containernetworking-plugins)
if ((${#missing[@]})); then
  echo "the Debian packages $(printf '%s\n' "${missing[@]}" | sort -u | paste -sd ' ')"
  exit
fi

for path in /dev/kmsg /sys/fs/cgroup; do
  [[ -e "$path" ]] || { echo "$path"; exit; }
done

# A root that may do less than it seems to: better found out here than by what then fails on the node.
inside='mount -t tmpfs tmpfs /run; ip link add one type veth peer name other; iptables --table nat --list --numeric
  ipset create one hash:ip
  iptables --append FORWARD --match set --match-set one src --match physdev --physdev-is-bridged --jump NFLOG'
if ! unshare --mount --net --pid --fork --mount-proc sh -ec "$inside" >/dev/null 2>&1; then
  echo "the right to make namespaces, and in them mounts, links, IP sets and iptables rules with them"
  exit
fi
for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
  [[ -e "$procs" ]] || continue
  cgroup=${procs%/*}/weir-$$
  { mkdir "$cgroup" && rmdir "$cgroup"; } 2>/dev/null || { echo "the right to make cgroups"; exit; }
  [[ "$procs" != /sys/fs/cgroup/cgroup.procs ]] || break
done
