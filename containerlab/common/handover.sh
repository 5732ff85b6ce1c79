#!/bin/sh
# handover.sh PORT: the host goes over to the anchor behind PORT without a gap of its own (make before
# break), as a radio does that hears both: whatever is lost then is lost by the network.
#
# All ports stay up, as the interface of an access point does; only one takes part in the bridge.
# What the host sends goes the new way from one moment on: the old port no longer takes frames to a
# station that is not known there, then everything that is known is forgotten.
set -e
new=$1

for port in eth1 eth2 eth3; do
    ip link show dev "$port" up | grep -q . && continue
    ip link set "$port" type bridge_slave flood off learning off
    ip link set "$port" up
    # Not before it is forwarding can it be told not to be.
    until bridge link show dev "$port" | grep -q 'state forwarding'; do sleep 0.01; done
    ip link set "$port" type bridge_slave state 0
done

others=$(for port in eth1 eth2 eth3; do [ "$port" = "$new" ] || echo "$port"; done)
ip -batch - <<END
$(for port in $others; do echo "link set $port type bridge_slave flood off learning off"; done)
link set $new type bridge_slave state 3 flood on learning on
$(for port in $others; do echo "link set $port type bridge_slave fdb_flush"; done)
$(for port in $others; do echo "link set $port type bridge_slave state 0"; done)
END
