#!/bin/sh
# move.sh PORT: the host leaves the anchor it is at and appears at the one behind PORT.
# One `ip` process for both steps, so that the gap is the kernel's and not fork and exec.
ip -batch - <<EOF
$(for p in eth1 eth2 eth3; do [ "$p" = "$1" ] || echo "link set $p down"; done)
link set $1 up
EOF
