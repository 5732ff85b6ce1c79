"""CXTP vectors (RFC 4067): a second, hand-made coder that shares nothing with killick.

Run: python3 generate.py > messages.txt
"""
import hashlib
import hmac
import socket
import struct

A = lambda s: socket.inet_pton(socket.AF_INET6, s)
A4 = lambda s: socket.inet_pton(socket.AF_INET, s)


def cx(typ, flags, body):
    return struct.pack("!BBH", 0x20 | typ, flags, 4 + len(body)) + body


mn, par = A("2001:db8:a::100"), A("2001:db8:1::1")
mn4, par4 = A4("192.0.2.100"), A4("192.0.2.1")
req = struct.pack("!HBB4x", 1, 1, 0)
seq = 0x01020304
key = b"0123456789abcdef"
tok = lambda ip: hmac.new(key, ip + struct.pack("!I", seq) + req, hashlib.sha1).digest()[:4]
mld = struct.pack("!HBB", 1, 4, 0) + A("2001:db8:a::")[:8] + A("ff3e::1") + b"\0" * 4
status = lambda fpt, code: struct.pack("!HBB", fpt, code, 0)
presence = struct.pack("!HBBI", 0xFF01, 2, 0x80, 0xC0000000) + b"\1\2\3\4\5\6\7\0"

V = {
    "CTAR": cx(1, 0x40, mn + par + struct.pack("!I", seq) + tok(mn) + req),
    "CTAR4": cx(1, 0x80, mn4 + par4 + struct.pack("!I", seq) + tok(mn4) + req),
    "CTAA": cx(2, 0x00, mn + status(1, 0x80)),
    "CTD": cx(3, 0x40, struct.pack("!I", 1500) + mn + mld),
    "CTD4": cx(3, 0xC0, struct.pack("!I", 0) + mn4 + presence),
    "PCTD": cx(4, 0x40, struct.pack("!I", 0) + mn + struct.pack("!HH", 1, len(key)) + key + mld),
    "CTDR": cx(5, 0x00, mn + status(1, 0)),
    "CTDR_S": cx(5, 0x40, mn),
    "CTC": cx(6, 0x00, mn),
    "CTC4": cx(6, 0x80, mn4),
    "CTREQ0": cx(7, 0x00, mn + struct.pack("!I", 0) + b"\0" * 4),
    "CTREQ": cx(7, 0x00, mn + struct.pack("!I", seq) + tok(mn) + req),
}
print("# Made by generate.py (an independent coder, Python struct and hmac), 2026-11-21.")
for name, octets in V.items():
    print(name, octets.hex())
