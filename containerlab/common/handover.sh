#!/bin/sh
# handover.sh PORT: the host goes over to the anchor behind PORT without a gap of its own (make before
# break), as a radio does that hears both: whatever is lost then is lost by the network.
#
# All ports stay up, as the interface of an access point does; only one takes part in the bridge.
# What the host sends goes the new way from one moment on: the old port no longer takes frames to a
# station that is not known there, then everything that is known is forgotten. Isolated, two ports
# that are both open for a moment do not join two access links.
set -e
new=$1

for port in eth1 eth2 eth3; do
    bridge link set dev "$port" isolated on
    ip link show dev "$port" up | grep -q . && continue
    bridge link set dev "$port" flood off learning off
    ip link set "$port" up
    # Not before it is forwarding can it be told not to be.
    until bridge link show dev "$port" | grep -q 'state forwarding'; do sleep 0.01; done
    bridge link set dev "$port" state 0
done

others=$(for port in eth1 eth2 eth3; do [ "$port" = "$new" ] || echo "$port"; done)
bridge -batch - <<END
$(for port in $others; do echo "link set dev $port flood off learning off"; done)
link set dev $new state 3
link set dev $new flood on learning on
END
ip -batch - <<END
$(for port in $others; do echo "link set $port type bridge_slave fdb_flush"; done)
END
bridge -batch - <<END
$(for port in $others; do echo "link set dev $port state 0"; done)
END
