#!/bin/sh
# host.sh MAC IPV4 IPV6 [PORT]: makes this container a plain dual-stack host that can roam.
#
# The addresses live on br0; its ports eth1..eth3 are the radios, one per anchor, and only one of
# them is up. A change of port is invisible to the IP stack, as a Wi-Fi roam would be: same
# interface, same MAC, same addresses, same neighbour entries, same routes.
set -e
mac=$1 ipv4=$2 ipv6=$3 port=${4:-eth1}

ip link add br0 type bridge stp_state 0 forward_delay 0
ip link set br0 address "$mac"
# br0 would lose its carrier between two ports, and with it flush IPv6 state. A stub port that is
# always up keeps it.
ip link add stub0 type veth peer name stub1
# Only br0 speaks IPv6; a port with a link-local address of its own would be a second host.
sysctl -qw net.ipv6.conf.stub0.disable_ipv6=1 net.ipv6.conf.stub1.disable_ipv6=1
ip link set stub1 up
ip link set stub0 master br0 up
for p in eth1 eth2 eth3; do
    sysctl -qw "net.ipv6.conf.$p.disable_ipv6=1"
    ip link set "$p" down
    ip link set "$p" master br0
done
# Nothing here waits for duplicate address detection, and there is no autoconfigured address that
# would roam with the node without being part of the lab.
sysctl -qw net.ipv6.conf.br0.accept_dad=0 net.ipv6.conf.br0.autoconf=0 net.ipv6.conf.br0.accept_ra=0
ip link set br0 up
ip addr add "$ipv4/32" dev br0
ip addr add "$ipv6/128" dev br0 nodad
# The gateway has the same addresses and the same MAC at every anchor.
ip route add 10.1.255.254 dev br0 scope link
ip route add default via 10.1.255.254 dev br0 onlink
ip -6 route add default via fe80::1 dev br0 onlink
ip link set "$port" up
