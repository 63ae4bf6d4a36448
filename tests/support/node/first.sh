# The first process of a node: makes a machine of its mount and network namespaces, and stays. When it ends, everything
# that runs in its process namespace ends, and with the last of it every mount and the network.
#
#   first.sh DIRECTORY ADDRESS
set -eu
directory=$1 address=$2

# What the node writes where nodes write; the real machine's folders are out of sight.
mkdir -p "$directory/var-lib" "$directory/var-log"
mount --bind "$directory/var-lib" /var/lib
mount --bind "$directory/var-log" /var/log
mount -t tmpfs tmpfs /run
mkdir -p /run/lock

# A network card with an address and a default route, which Kubernetes asks for; nothing is at the other end.
ip link set lo up
ip link add card type veth peer name nowhere
ip address add "$address/24" dev card
ip link set card up
ip link set nowhere up
ip route add default dev card

echo ready
# Interrupted by children that end: those whose parents are gone become this one's.
sleep infinity &
while :; do wait -n || true; done
