#!/usr/bin/env python3
"""LISP control and data messages, written a second time from the figures of the RFCs.

Nothing is shared with the codec of killick, and only the standard library is used.
    coder.py > messages.hex
A line is a name and the octets. What the octets mean is written in tests/suite/lisp_wire.rs.
"""

import hashlib
import hmac
import ipaddress
import platform

TODAY = "2026-11-21"

# Key ID: algorithm ID, hash, secret.
KEYS = {
    1: (1, hashlib.sha1, b"old secret of site 7"),
    2: (2, hashlib.sha256, b"secret of site 7"),
    3: (3, hashlib.sha256, b"a secret from which keys of messages are derived"),
}
SALT = {
    3: b"Map-Register Authentication",
    4: b"Map-Notify Authentication",
    5: b"Map-Notify-Ack Authentication",
}


def n(value, octets):
    return value.to_bytes(octets, "big")


# ---- Addresses (RFC 9301 5.2, RFC 8060) -------------------------------------------------------


def afi(text):
    """None: AFI 0. Otherwise an IPv4 or IPv6 address."""
    if text is None:
        return n(0, 2)
    address = ipaddress.ip_address(text)
    return n({4: 1, 6: 2}[address.version], 2) + address.packed


def lcaf(kind, body, rsvd2=0):
    return n(0x4003, 2) + n(0, 1) + n(0, 1) + n(kind, 1) + n(rsvd2, 1) + n(len(body), 2) + body


def instance(iid, address):
    return lcaf(2, n(iid, 4) + address)


def afi_list(*addresses):
    return lcaf(1, b"".join(addresses))


def source_dest(source, destination):
    (s, sl), (d, dl) = source.split("/"), destination.split("/")
    return lcaf(12, n(0, 2) + n(int(sl), 1) + n(int(dl), 1) + afi(s) + afi(d))


# 60 degrees north, 25 degrees east, no altitude, AFI 0 (RFC 8060 4.3).
GEO = lcaf(5, n(0x8000 | 60, 2) + n(10, 1) + n(0, 1) + n(0x8000 | 24, 2) + n(56, 1) + n(0, 1)
           + n(0x7FFFFFFF, 4) + n(0, 2))
NAME = n(17, 2) + b"anchor-7\0"
MAC = n(6, 2) + bytes.fromhex("0200c0ffee01")


# ---- Records (RFC 9301 5.4) -------------------------------------------------------------------


def locator(address, priority=1, weight=100, mpriority=255, mweight=0, L=0, p=0, R=1):
    flags = L << 2 | p << 1 | R
    return n(priority, 1) + n(weight, 1) + n(mpriority, 1) + n(mweight, 1) + n(flags, 2) + address


def record(mask, eid, *locators, ttl=1440, act=0, A=0, version=0):
    out = n(ttl, 4) + n(len(locators), 1) + n(mask, 1) + n(act << 5 | A << 4, 1) + n(0, 1)
    return out + n(version, 2) + eid + b"".join(locators)


def ids(xtr, site):
    return n(xtr, 16) + n(site, 8)


XTR, SITE = 0x00112233445566778899AABBCCDDEEFF, 0x0102030405060708


# ---- Messages ---------------------------------------------------------------------------------


def map_request(nonce, source, itr_rlocs, records, reply=None, id=b"", A=0, P=0, S=0, p=0, s=0,
                I=0, L=0, D=0):
    first = 1 << 28 | A << 27 | (reply is not None) << 26 | P << 25 | S << 24
    first |= p << 23 | s << 22 | I << 20 | L << 14 | D << 13
    first |= (len(itr_rlocs) - 1) << 8 | len(records)
    out = n(first, 4) + n(nonce, 8) + source + b"".join(itr_rlocs)
    for notify, mask, eid in records:
        out += n(notify << 7, 1) + n(mask, 1) + eid
    return out + (reply or b"") + id


def map_reply(nonce, records, security=b"", P=0, E=0, S=0):
    first = 2 << 28 | P << 27 | E << 26 | S << 25 | len(records)
    return n(first, 4) + n(nonce, 8) + b"".join(records) + security


def hkdf(salt, material, length):
    """RFC 5869 with no info."""
    prk = hmac.new(salt, material, hashlib.sha256).digest()
    out, block, count = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + n(count, 1), hashlib.sha256).digest()
        out, count = out + block, count + 1
    return out[:length]


def signed(first, nonce, key_id, length, rest):
    """Map-Register, Map-Notify or Map-Notify-Ack with its digest (RFC 9301 5.6)."""
    algorithm, digest, secret = KEYS[key_id]
    head = n(first, 4) + n(nonce, 8) + n(key_id, 1) + n(algorithm, 1) + n(length, 2)
    key = secret
    if algorithm == 3:
        key = hkdf(SALT[first >> 28], n(nonce, 8) + secret, 32)
    mac = hmac.new(key, head + bytes(length) + rest, digest).digest()[:length]
    return head + mac + rest


def map_register(nonce, key_id, length, records, id=b"", P=0, S=0, E=0, T=0, a=0, M=0):
    first = 3 << 28 | P << 27 | S << 26 | (id != b"") << 25
    first |= E << 12 | T << 11 | a << 10 | M << 8 | len(records)
    return signed(first, nonce, key_id, length, b"".join(records) + id)


def map_notify(nonce, key_id, length, records, id=b"", kind=4):
    return signed(kind << 28 | len(records), nonce, key_id, length, b"".join(records) + id)


def internet_checksum(octets):
    if len(octets) % 2:
        octets += b"\0"
    total = sum(int.from_bytes(octets[at:at + 2], "big") for at in range(0, len(octets), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def in_udp_and_ip(source, sport, destination, dport, payload, tos=0xC0, ttl=64, df=1, flow=0,
                  checksum=True):
    src, dst = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    length = 8 + len(payload)
    udp = n(sport, 2) + n(dport, 2) + n(length, 2)
    if src.version == 4:
        pseudo = src.packed + dst.packed + n(17, 2) + n(length, 2)
        ip = n(0x45, 1) + n(tos, 1) + n(20 + length, 2) + n(0, 2) + n(df << 14, 2)
        ip += n(ttl, 1) + n(17, 1)
        ip += n(internet_checksum(ip + n(0, 2) + src.packed + dst.packed), 2)
        ip += src.packed + dst.packed
    else:
        pseudo = src.packed + dst.packed + n(length, 4) + n(17, 4)
        ip = n(6 << 28 | tos << 20 | flow, 4) + n(length, 2) + n(17, 1) + n(ttl, 1)
        ip += src.packed + dst.packed
    value = internet_checksum(pseudo + udp + n(0, 2) + payload) or 0xFFFF
    return ip + udp + n(value if checksum else 0, 2) + payload


def ecm(inner, security=b"", D=0):
    return n(8 << 28 | (security != b"") << 27 | D << 26, 4) + security + inner


# ---- LISP-SEC (RFC 9303) ----------------------------------------------------------------------


def aes_128_encrypt(key, block):
    """FIPS 197, the plain way."""

    def times(a, b):
        out = 0
        for _ in range(8):
            out ^= a if b & 1 else 0
            a, b = (a << 1 ^ (0x11B if a & 0x80 else 0)), b >> 1
        return out

    def sbox(a):
        inverse = next((b for b in range(256) if times(a, b) == 1), 0)
        out = 0x63
        for turn in range(5):
            out ^= (inverse << turn | inverse >> (8 - turn)) & 0xFF
        return out

    if not hasattr(aes_128_encrypt, "box"):
        aes_128_encrypt.box = [sbox(a) for a in range(256)]
    box = aes_128_encrypt.box
    words, rcon = [key[at:at + 4] for at in range(0, 16, 4)], 1
    for at in range(4, 44):
        word = words[-1]
        if at % 4 == 0:
            word = bytes(box[octet] for octet in word[1:] + word[:1])
            word, rcon = bytes([word[0] ^ rcon]) + word[1:], times(rcon, 2)
        words.append(bytes(a ^ b for a, b in zip(words[-4], word)))
    keys = [b"".join(words[at:at + 4]) for at in range(0, 44, 4)]
    state = bytes(a ^ b for a, b in zip(block, keys[0]))
    for turn in range(1, 11):
        state = bytes(box[octet] for octet in state)
        state = bytes(state[(at + 4 * (at % 4)) % 16] for at in range(16))
        if turn < 10:
            mixed = b""
            for at in range(0, 16, 4):
                c = state[at:at + 4]
                mixed += bytes(times(c[i], 2) ^ times(c[(i + 1) % 4], 3) ^ c[(i + 2) % 4]
                               ^ c[(i + 3) % 4] for i in range(4))
            state = mixed
        state = bytes(a ^ b for a, b in zip(state, keys[turn]))
    return state


def aes_key_wrap(key, plain):
    """RFC 3394 2.2.1."""
    a, r = bytes.fromhex("a6" * 8), [plain[at:at + 8] for at in range(0, len(plain), 8)]
    for j in range(6):
        for i in range(len(r)):
            b = aes_128_encrypt(key, a + r[i])
            a = n(int.from_bytes(b[:8], "big") ^ (len(r) * j + i + 1), 8)
            r[i] = b[8:]
    return a + b"".join(r)


# RFC 3394 4.1.
assert aes_key_wrap(bytes(range(16)), bytes.fromhex("00112233445566778899aabbccddeeff")).hex() \
    == "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5"

ITR_OTK = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
ITR_SECRET, ETR_SECRET = b"of an ITR and a resolver", b"of a server and an ETR"
SEC_HASH = {1: (hashlib.sha1, 12), 2: (hashlib.sha256, 16)}


def hkdf_128(hash, material):
    """RFC 5869, no salt, no info, 128 bits."""
    prk = hmac.new(bytes(hash().digest_size), material, hash).digest()
    return hmac.new(prk, b"\1", hash).digest()[:16]


def ms_otk(kdf):
    return hkdf_128({1: hashlib.sha1, 2: hashlib.sha256}[kdf], ITR_OTK)


def wrapped(otk, wrapping, nonce, secret):
    if wrapping == 1:
        return bytes(8) + otk
    return aes_key_wrap(hkdf_128(hashlib.sha256, n(nonce, 8) + b"OTK-Key-Wrap" + secret), otk)


def sealed(otk, hmac_id, octets):
    hash, length = SEC_HASH[hmac_id]
    return octets + hmac.new(otk, octets + bytes(length), hash).digest()[:length]


def eid_ad(kdf, hmac_id=None, eids=(), E=0):
    if hmac_id is None:
        return n(4, 2) + n(kdf, 2)
    body = n(kdf, 2) + n(len(eids), 1) + n(E << 7, 1) + n(hmac_id, 2)
    for mask, eid in eids:
        body += n(0, 1) + n(mask, 1) + eid
    return sealed(ITR_OTK, hmac_id, n(2 + len(body) + SEC_HASH[hmac_id][1], 2) + body)


def ecm_ad(requested, key_id, wrapping, otk, eids):
    head = n(1, 1) + n(0, 1) + n(requested, 2)
    return head + n(4 + len(otk), 2) + n(key_id, 1) + n(wrapping, 1) + otk + eids


def secured_reply(nonce, records, eids, hmac_id, otk):
    pkt = n(4 + SEC_HASH[hmac_id][1], 2) + n(hmac_id, 2)
    octets = map_reply(nonce, records, n(1, 1) + n(0, 3) + eids + pkt, S=1)
    return sealed(otk, hmac_id, octets)


# ---- The vectors ------------------------------------------------------------------------------

NONCE = 0x0123456789ABCDEF
V4, V6 = afi("192.0.2.1"), afi("2001:db8::1")
EID4, EID6 = afi("10.1.0.7"), afi("2001:db8:e:1::7")
HOST4 = record(32, EID4, locator(V4), locator(V6, weight=50), A=1, version=0xABC)
IN5 = record(24, instance(5, afi("10.1.2.0")), locator(V4, L=1, R=0), ttl=3, version=0xFFF)
ALL_ACTIONS = [record(8 + act, afi("10.0.0.0"), ttl=15, act=act) for act in range(6)]
ASK4 = (0, 32, afi("10.2.0.9"))
MESSAGE = map_request(NONCE, EID4, [V4], [ASK4])

VECTORS = {
    "map-request": map_request(NONCE, EID4, [V4, V6], [ASK4]),
    "map-request-probe": map_request(1, afi(None), [V6], [(0, 48, afi("2001:db8:e::"))],
                                     reply=HOST4, A=1, P=1, p=1),
    "map-request-smr": map_request(2, EID6, [V4], [(0, 64, afi("2001:db8:f::"))], S=1, D=1, L=1),
    "map-request-smr-invoked": map_request(3, instance(5, EID4), [V4],
                                           [(0, 32, instance(5, afi("10.2.0.9")))], s=1),
    "map-request-source-dest": map_request(
        4, afi(None), [afi_list(GEO, V6, V4)],
        [(0, 32, source_dest("10.1.0.0/16", "10.2.0.0/32")),
         (0, 64, instance(77, source_dest("2001:db8:1::/48", "2001:db8:2::/64")))]),
    "map-request-passed-on": map_request(5, NAME, [NAME, MAC], [(0, 48, MAC), (0, 0, GEO)]),
    "subscribe": map_request(6, afi(None), [V4, V6],
                             [(1, 32, EID4), (0, 128, EID6), (1, 16, instance(9, afi("10.0.0.0")))],
                             I=1, id=ids(XTR, SITE)),
    "unsubscribe": map_request(7, afi(None), [afi(None)], [(1, 32, EID4)], I=1, id=ids(XTR, SITE)),
    "map-reply": map_reply(NONCE, [HOST4, IN5]),
    "map-reply-probe": map_reply(8, [record(64, afi("2001:db8:f::"),
                                            locator(V6, priority=255, weight=0, L=1, p=1),
                                            ttl=0xFFFFFFFF, A=1)], P=1, E=1),
    "map-reply-negative": map_reply(9, ALL_ACTIONS),
    "map-reply-lcaf": map_reply(10, [
        record(64, source_dest("::/0", "2001:db8:2::/64"), locator(afi_list(V4, NAME, V6))),
        record(0, NAME, locator(GEO), locator(afi(None)), locator(MAC))]),
    "map-reply-empty": map_reply(11, []),
    "map-register-sha1-96": map_register(20, 1, 12, [HOST4], M=1),
    "map-register-sha1": map_register(21, 1, 20, [HOST4], P=1),
    "map-register-sha256-128": map_register(22, 2, 16, [HOST4, IN5], P=1, M=1, T=1,
                                            id=ids(XTR, SITE)),
    "map-register-sha256": map_register(23, 2, 32, [IN5], S=1, E=1, a=1),
    "map-register-hkdf-128": map_register(24, 3, 16, [HOST4], P=1, S=1, M=1, id=ids(XTR, SITE)),
    "map-register-hkdf": map_register(25, 3, 32, [record(32, EID4, ttl=0)], M=1),
    "map-notify-sha1-96": map_notify(30, 1, 12, [HOST4]),
    "map-notify-sha256-128": map_notify(31, 2, 16, [HOST4, IN5], id=ids(XTR, SITE)),
    "map-notify-hkdf-128": map_notify(32, 3, 16, [record(32, EID4, act=5)], id=ids(XTR, SITE)),
    "map-notify-hkdf": map_notify(33, 3, 32, [IN5]),
    "map-notify-ack-sha1": map_notify(40, 1, 20, [HOST4], kind=5),
    "map-notify-ack-sha256-128": map_notify(41, 2, 16, [IN5], id=ids(XTR, SITE), kind=5),
    "map-notify-ack-hkdf-128": map_notify(42, 3, 16, [], kind=5),
    "ecm-v4": ecm(in_udp_and_ip("192.0.2.1", 61000, "10.2.0.9", 4342, MESSAGE)),
    "ecm-v6": ecm(in_udp_and_ip("2001:db8::1", 61001, "2001:db8:e:1::7", 4342, MESSAGE), D=1),
    "ecm-sec-itr": ecm(
        in_udp_and_ip("192.0.2.1", 61000, "10.2.0.9", 4342, MESSAGE),
        ecm_ad(2, 7, 2, wrapped(ITR_OTK, 2, NONCE, ITR_SECRET), eid_ad(0))),
    "ecm-sec-resolver": ecm(
        in_udp_and_ip("192.0.2.1", 61000, "10.2.0.9", 4342, MESSAGE),
        ecm_ad(1, 0, 1, wrapped(ITR_OTK, 1, NONCE, b""), eid_ad(1))),
    "ecm-sec-server": ecm(
        in_udp_and_ip("2001:db8::1", 61000, "2001:db8:e:1::7", 4342, MESSAGE),
        ecm_ad(2, 8, 2, wrapped(ms_otk(2), 2, NONCE, ETR_SECRET),
               eid_ad(2, 2, [(16, afi("10.2.0.0")), (48, instance(5, afi("2001:db8:e::")))], E=1))),
    "map-reply-sec": secured_reply(NONCE, [HOST4], eid_ad(2, 2, [(16, afi("10.1.0.0"))]), 2,
                                   ms_otk(2)),
    "map-reply-sec-sha1": secured_reply(NONCE, [], eid_ad(1, 1, [(16, afi("10.1.0.0"))], E=1), 1,
                                        ms_otk(1)),
    # From here on killick writes it otherwise: reserved bits, host bits, octets that follow, an
    # instance ID of 0, one around each part of a pair.
    "lenient-map-request": n(0x10 << 24 | 0x20 << 16 | 0x80 << 8 | 1, 4) + n(50, 8) + EID4 + V4
        + n(0x7F, 1) + n(24, 1) + afi("10.2.0.9") + b"more",
    "lenient-map-reply": n(0x21FFFF01, 4) + n(51, 8) + n(5, 4) + n(0, 1) + n(9, 1) + n(0xCF, 1)
        + n(0xFF, 1) + n(0xF00A, 2) + instance(0, afi("10.255.0.0")),
    "lenient-map-notify": map_notify(52, 2, 16, [record(
        16, lcaf(12, n(0xFFFF, 2) + n(16, 1) + n(24, 1) + instance(5, afi("10.1.2.3"))
                 + instance(5, afi("10.2.3.4"))))], id=ids(XTR, SITE) + b"."),
    "lenient-ecm": ecm(in_udp_and_ip("192.0.2.1", 4342, "192.0.2.2", 61000, MESSAGE, tos=0, ttl=9,
                                     df=0) + b"behind"),
}

# Data packets (RFC 9300 5.1, RFC 9305 3), the LISP header and the inner packet: a UDP datagram
# of 4 octets. In the first two the source's port is told, in the others there is only the header.
INNER4 = in_udp_and_ip("10.1.0.7", 1000, "10.2.0.9", 2000, b"data", tos=0x2A, ttl=33)
INNER6 = in_udp_and_ip("2001:db8:e:1::7", 1000, "2001:db8:f::9", 2000, b"data", tos=0x2A, ttl=33)


def data(flags, low24, second, inner):
    return n(flags << 24 | low24, 4) + n(second, 4) + inner


DATA = {
    "data-plain": data(0, 0, 0, INNER4),
    "data-iid": data(0x08, 0, 0x0A0B0C00, INNER6),
    "data-iid-status": data(0x48, 0, 0x0A0B0C05, INNER4),
    "data-status": data(0x40, 0, 0x80000001, INNER4),
    "data-nonce-echo": data(0xA0, 0x0C0D0E, 0, INNER4),
    "data-versions": data(0x18, 0xABCDEF, 0x00000100, INNER6),
    "data-gpe-v4": data(0x0C, 1, 0x00000100, INNER4),
    "data-gpe-v6": data(0x04, 2, 0, INNER6),
}
# Whole outer packets: TTL, DSCP and ECN of the inner one.
OUTER = {
    "outer-v4": in_udp_and_ip("192.0.2.1", 50000, "192.0.2.2", 4341, DATA["data-iid"], tos=0x2A,
                              ttl=33, checksum=False),
    "outer-v4-checksum": in_udp_and_ip("192.0.2.1", 50000, "192.0.2.2", 4341, DATA["data-plain"],
                                       tos=0x2A, ttl=33),
}

if __name__ == "__main__":
    print(f"# coder.py under Python {platform.python_version()}, {TODAY}")
    for name, octets in {**VECTORS, **DATA, **OUTER}.items():
        print(name, octets.hex())
