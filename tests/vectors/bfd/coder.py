#!/usr/bin/env python3
"""BFD control packets, written a second time from the figures of RFC 5880.

Nothing is shared with the codec of killick, and only the standard library is used.
    coder.py > packets.hex
A line is a name and the octets. What the octets mean is written in tests/suite/bfd_wire.rs.
"""

import hashlib
import platform

TODAY = "2026-11-21"

ADMIN_DOWN, DOWN, INIT, UP = range(4)
SECRETS = {1: b"one", 2: b"exactly twenty bytes", 9: b"a password of 16"}


def n(value, octets):
    return value.to_bytes(octets, "big")


def head(length, sta=UP, diag=0, P=0, F=0, C=0, A=0, D=0, M=0, mult=3, my=0x01020304,
         your=0x0A0B0C0D, tx=300_000, rx=250_000, echo=0, version=1):
    """4.1; a flag per bit, in the order of the figure."""
    flags = P << 5 | F << 4 | C << 3 | A << 2 | D << 1 | M
    return (n(version << 5 | diag, 1) + n(sta << 6 | flags, 1) + n(mult, 1) + n(length, 1)
            + n(my, 4) + n(your, 4) + n(tx, 4) + n(rx, 4) + n(echo, 4))


def plain(**fields):
    return head(24, **fields)


def simple(key_id, **fields):
    """4.2, 6.7.2"""
    password = SECRETS[key_id]
    section = n(1, 1) + n(3 + len(password), 1) + n(key_id, 1) + password
    return head(24 + len(section), A=1, **fields) + section


def keyed(kind, key_id, sequence, **fields):
    """4.3, 4.4, 6.7.3, 6.7.4: the key where the digest will be, then the digest of it all."""
    make, size = {2: (hashlib.md5, 16), 3: (hashlib.md5, 16),
                  4: (hashlib.sha1, 20), 5: (hashlib.sha1, 20)}[kind]
    length = 24 + 8 + size
    front = (head(length, A=1, **fields) + n(kind, 1) + n(8 + size, 1) + n(key_id, 1) + n(0, 1)
             + n(sequence, 4))
    return front + make(front + SECRETS[key_id].ljust(size, b"\0")).digest()


VECTORS = {
    "down-first": plain(sta=DOWN, your=0, tx=1_000_000, rx=300_000),
    "init": plain(sta=INIT, tx=1_000_000, rx=300_000),
    "up-poll": plain(P=1),
    "up-final": plain(F=1),
    "up-independent-echo": plain(C=1, echo=50_000, mult=255),
    "up-demand": plain(D=1),
    "admin-down": plain(sta=ADMIN_DOWN, diag=7, tx=1_000_000),
    "admin-down-first": plain(sta=ADMIN_DOWN, diag=7, your=0),
    "down-expired": plain(sta=DOWN, diag=1, mult=1),
    "down-signaled": plain(sta=DOWN, diag=3),
    "diagnostic-31": plain(sta=DOWN, diag=31),
    "extremes": plain(my=0xFFFFFFFF, your=0xFFFFFFFF, tx=0xFFFFFFFF, rx=0, echo=0xFFFFFFFF),
    "simple": simple(9),
    "md5": keyed(2, 1, 5, P=1),
    "md5-meticulous": keyed(3, 1, 6),
    "sha1": keyed(4, 2, 7),
    "sha1-meticulous": keyed(5, 1, 0xFFFFFFFF, sta=DOWN, your=0),
    # From here on: to be discarded (6.8.6), and behind the name the rule.
    "bad-version": plain(version=0),
    "bad-length-short": head(23),
    "bad-length-long": head(25),
    "bad-length-auth": head(25, A=1) + n(1, 1),
    "bad-detect-mult": plain(mult=0),
    "bad-multipoint": plain(M=1),
    "bad-my-discriminator": plain(my=0),
    "bad-your-discriminator-init": plain(sta=INIT, your=0),
    "bad-your-discriminator-up": plain(your=0),
    "bad-section-type": head(28, A=1) + n(6, 1) + n(4, 1) + n(1, 1) + n(0, 1),
    "bad-section-length": head(52, A=1) + n(4, 1) + n(27, 1) + n(1, 1) + n(0, 1) + n(0, 24),
    "bad-section-empty-password": head(27, A=1) + n(1, 1) + n(3, 1) + n(1, 1),
}

if __name__ == "__main__":
    print(f"# coder.py under Python {platform.python_version()}, {TODAY}")
    for name, octets in VECTORS.items():
        print(name, octets.hex())
