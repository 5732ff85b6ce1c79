// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// The packet path of the eBPF data plane: RFC 9300 on UDP 4341, in tc and in XDP.
//
// This file is under the licence of the rest of killick, MIT or Apache-2.0, and also under
// GPL-2.0: the functions of the kernel that it calls are for programs that are compatible with the
// latter. `make bpf` compiles it; the object is committed beside it.
//
//   encap_tc    ingress of an interface towards sources (FE_I)
//   encap_out   egress of a device without a link layer, the punt device: what the kernel itself
//               sends, and what it made smaller
//   encap_xdp   as encap_tc, earlier; whatever is unusual it leaves to encap_tc behind it
//   decap_tc    ingress of an interface of the underlay (FE_E)
//   decap_xdp   as decap_tc, earlier; what is not plain delivery it leaves to decap_tc behind it
//
// Packets that are too big, or whose time to live is over, go on to the routes of the kernel, which
// tells their source: the route of a mobile prefix leads to the punt device, and its MTU is what the
// tunnel carries. IPv4 packets that may be fragmented come back from there through encap_out.

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define __uint(name, value) int (*name)[value]
#define __type(name, value) typeof(value) *name
#define PIN_BY_NAME 1

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) =
    (void *)BPF_FUNC_map_update_elem;
static long (*redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*redirect_neigh)(__u32 ifindex, void *params, int len, __u64 flags) =
    (void *)BPF_FUNC_redirect_neigh;
static long (*skb_pull)(struct __sk_buff *skb, __u32 len) = (void *)BPF_FUNC_skb_pull_data;
static long (*skb_room)(struct __sk_buff *skb, __s32 delta, __u32 mode, __u64 flags) =
    (void *)BPF_FUNC_skb_adjust_room;
static long (*skb_head)(struct __sk_buff *skb, __u32 len, __u64 flags) =
    (void *)BPF_FUNC_skb_change_head;
static long (*xdp_head)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_head;
static long (*fib)(void *ctx, struct bpf_fib_lookup *params, int len, __u32 flags) =
    (void *)BPF_FUNC_fib_lookup;
static __u64 (*now_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*ring_output)(void *ring, void *data, __u64 size, __u64 flags) =
    (void *)BPF_FUNC_ringbuf_output;

// Linux 6.3, newer than the headers of Debian 12.
#define ROOM_DECAP_IPV4 (1ull << 7)
#define ROOM_DECAP_IPV6 (1ull << 8)

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "header words are put together for little-endian machines"
#endif
#define htons(x) __builtin_bswap16(x)
#define htonl(x) __builtin_bswap32(x)

#define ETH_LEN 14
#define ETH_IPV4 htons(0x0800)
#define ETH_IPV6 htons(0x86dd)
#define UDP 17
#define TCP 6
#define SCTP 132
#define LISP_PORT htons(4341)
// UDP and LISP header.
#define SHIM_LEN 16
#define AF_INET_ 2
#define AF_INET6_ 10
#define EALREADY_ 114

struct eth {
	__u8 to[6];
	__u8 from[6];
	__u16 proto;
} __attribute__((packed, aligned(2)));

struct ip4 {
	__u8 ver_ihl;
	__u8 tos;
	__u16 len;
	__u16 id;
	__u16 frag;
	__u8 ttl;
	__u8 proto;
	__u16 csum;
	__u32 from;
	__u32 to;
} __attribute__((packed, aligned(2)));

struct ip6 {
	__u32 ver_class_flow;
	__u16 len;
	__u8 proto;
	__u8 hops;
	__u32 from[4];
	__u32 to[4];
} __attribute__((packed, aligned(2)));

struct shim {
	__u16 from;
	__u16 to;
	__u16 len;
	__u16 csum;
	__u8 flags;
	__u8 nonce[3]; // the last one is the next protocol when there is a P flag
	__u32 iid_lsb;
} __attribute__((packed, aligned(2)));

// --- what user space writes; the same structures are in layout.rs ---

struct config {
	__u32 local4;    // outer source and own locator; 0: none
	__u32 local6[4]; // all 0: none
	__u32 iid;       // the only instance taken out of a tunnel; ANY_IID: all
	__u32 mtu;       // of the underlay at most
	__u32 epoch;     // written to entries that carry packets; never 0
	__u32 underlay;  // changes when routes or neighbours of the underlay do
	// Whether the table was ever used: a look into an empty one is saved.
	__u32 hosts4, hosts6, decap_hosts4, decap_hosts6;
};
#define ANY_IID 0xffffffff

enum action { ACTION_GROUP = 1, ACTION_PUNT, ACTION_NATIVE, ACTION_DROP };

struct entry {
	__u32 action;
	__u32 group;
	__u32 used; // the epoch of the last packet; 0: none since it was set
	__u32 len;  // of the prefix
	__u64 packets;
	__u64 octets;
};

struct key6 {
	__u32 addr[4];
};
struct lpm4 {
	__u32 len;
	__u32 addr;
};
struct lpm6 {
	__u32 len;
	__u32 addr[4];
};

#define MEMBERS 8
#define BUCKETS 32
struct member {
	__u32 addr[4]; // IPv4: the first word
	__u32 family;  // 4, 6
	__u32 weight;
};
// Never written while a group refers to it: a change of a group is a new path and one word.
struct path {
	__u32 serial;
	__u32 members; // 0: unreachable
	__u32 iid;     // as on the wire, with the status bits 0
	__u8 bucket[BUCKETS];
	struct member member[MEMBERS];
};

struct link {
	__u32 ifindex;
	__u8 mac[6];
	__u8 pad[2];
};
#define LINKS 64

enum reason {
	NOT_ALLOWED,
	BAD_HEADER,
	BAD_INNER,
	INSTANCE,
	ECN,
	TTL,
	POLICY,
	UNREACHABLE,
	TOO_BIG,
	UNDERLAY,
	PUNTED,
	EVENT_LOST,
	REASONS,
};
struct count {
	__u64 packets;
	__u64 octets;
};
struct totals {
	struct count encapsulated, decapsulated, late;
	__u64 reason[REASONS];
};

enum event_kind { EVENT_MISS = 1, EVENT_LATE, EVENT_FIRST };
struct event {
	__u32 kind;
	__u32 iid;
	__u32 rloc_family;
	__u32 family;
	__u32 len;
	__u32 rloc[4];
	__u32 from[4];
	__u32 to[4];
};

// --- maps ---

volatile struct config config = {};

#define TABLE(name, kind, key_type, value_type, entries) \
	struct { \
		__uint(type, kind); \
		__type(key, key_type); \
		__type(value, value_type); \
		__uint(max_entries, entries); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__uint(pinning, PIN_BY_NAME); \
	} name SEC(".maps")

TABLE(HOST4, BPF_MAP_TYPE_HASH, __u32, struct entry, 1 << 20);
TABLE(HOST6, BPF_MAP_TYPE_HASH, struct key6, struct entry, 1 << 20);
TABLE(NET4, BPF_MAP_TYPE_LPM_TRIE, struct lpm4, struct entry, 1 << 16);
TABLE(NET6, BPF_MAP_TYPE_LPM_TRIE, struct lpm6, struct entry, 1 << 16);
TABLE(DECAP_HOST4, BPF_MAP_TYPE_HASH, __u32, __u32, 1 << 20);
TABLE(DECAP_HOST6, BPF_MAP_TYPE_HASH, struct key6, __u32, 1 << 20);
TABLE(DECAP_NET4, BPF_MAP_TYPE_LPM_TRIE, struct lpm4, __u32, 1 << 16);
TABLE(DECAP_NET6, BPF_MAP_TYPE_LPM_TRIE, struct lpm6, __u32, 1 << 16);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32); // number of a path, from 1 on; 0: no such group
	__uint(max_entries, 1 << 14);
	__uint(pinning, PIN_BY_NAME);
} GROUPS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct path);
	__uint(max_entries, 1 << 15);
	__uint(pinning, PIN_BY_NAME);
} PATHS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct totals);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
} TOTALS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct link);
	__uint(max_entries, LINKS);
} LINKS_OF SEC(".maps");

// How packets to a locator leave. Looking into the routes takes as long as all the rest, so it is
// done again only after HOP_NS or when user space says that the underlay has changed.
struct hop {
	__u32 tag; // serial of the path and member
	__u32 underlay;
	__u64 until;
	__u32 ifindex;
	__u32 mtu;
	__u32 fresh; // the next packet goes by the neighbour table, which wants to be asked now and then
	__u8 to[6];
	__u8 from[6];
};
#define HOPS 256
#define HOP_NS 100000000ull

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct hop);
	__uint(max_entries, HOPS);
} HOPS_OF SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} EVENTS SEC(".maps");

// One event of a kind about the same addresses in EVENT_NS.
#define EVENT_NS 1000000000ull
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u64);
	__type(value, __u64);
	__uint(max_entries, 4096);
} EVENT_LIMIT SEC(".maps");

// --- counting and telling ---

INLINE struct totals *totals(void)
{
	__u32 zero = 0;
	return map_lookup(&TOTALS, &zero);
}

INLINE void count_reason(enum reason reason)
{
	struct totals *t = totals();
	if (t)
		t->reason[reason]++;
}

static __attribute__((noinline)) int tell(struct event *e)
{
	if (!e)
		return 0;
	if (e->kind != EVENT_FIRST) {
		__u64 key = e->kind;
		for (int i = 0; i < 4; i++) {
			key = (key ^ e->to[i]) * 0x9e3779b97f4a7c15ull;
			key = (key ^ (key >> 29) ^ e->rloc[i]) * 0xbf58476d1ce4e5b9ull;
		}
		__u64 now = now_ns();
		__u64 *last = map_lookup(&EVENT_LIMIT, &key);
		if (last && now - *last < EVENT_NS)
			return 0;
		map_update(&EVENT_LIMIT, &key, &now, BPF_ANY);
	}
	if (ring_output(&EVENTS, e, sizeof(*e), 0))
		count_reason(EVENT_LOST);
	return 0;
}

// --- the inner packet ---

struct inner {
	__u32 family; // 4, 6
	__u32 tos;
	__u32 ttl;
	__u32 len; // of the whole packet, by its header
	__u32 flow;
	__u32 header; // of IP and transport, for packets that are segmented later
	__u32 from[4];
	__u32 to[4];
};

INLINE __u32 mix(__u32 h, __u32 value)
{
	h = (h ^ value) * 0x85ebca6b;
	return h ^ (h >> 15);
}

// RFC 9300 §12: the 5-tuple where the transport is known and the packet is whole, else addresses.
INLINE void find_flow(struct inner *in, void *transport, void *end, __u32 proto, int whole)
{
	__u32 h = mix(0x2545f491, proto);
	h = mix(h, in->from[0]);
	h = mix(h, in->to[0]);
	if (in->family == 6) {
		h = mix(h, in->from[1] ^ in->from[2]);
		h = mix(h, in->from[3]);
		h = mix(h, in->to[1] ^ in->to[2]);
		h = mix(h, in->to[3]);
	}
	if (whole && (proto == TCP || proto == UDP || proto == SCTP) && transport + 4 <= end) {
		__u16 *port = transport;
		h = mix(h, (__u32)port[0] << 16 | port[1]);
		in->header += 8;
		if (proto == TCP && transport + 14 <= end)
			in->header += (((__u8 *)transport)[12] >> 4) * 4 - 8;
	}
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	in->flow = h ^ (h >> 16);
}

// False: not an IP packet as it should be.
INLINE int read_inner(struct inner *in, void *at, void *end, __u32 there)
{
	if (at + sizeof(struct ip4) > end)
		return 0;
	struct ip4 *v4 = at;
	if (v4->ver_ihl >> 4 == 4) {
		__u32 header = (v4->ver_ihl & 15) * 4;
		in->family = 4;
		in->tos = v4->tos;
		in->ttl = v4->ttl;
		in->len = htons(v4->len);
		in->header = header;
		in->from[0] = v4->from;
		in->to[0] = v4->to;
		in->from[1] = in->from[2] = in->from[3] = 0;
		in->to[1] = in->to[2] = in->to[3] = 0;
		if (header < sizeof(*v4) || in->len < header || in->len > there)
			return 0;
		find_flow(in, at + sizeof(*v4), end, v4->proto,
			  header == sizeof(*v4) && !(v4->frag & htons(0x3fff)));
		return 1;
	}
	struct ip6 *v6 = at;
	if (v4->ver_ihl >> 4 != 6 || at + sizeof(*v6) > end)
		return 0;
	in->family = 6;
	in->tos = (htonl(v6->ver_class_flow) >> 20) & 0xff;
	in->ttl = v6->hops;
	in->len = htons(v6->len) + sizeof(*v6);
	in->header = sizeof(*v6);
	for (int i = 0; i < 4; i++) {
		in->from[i] = v6->from[i];
		in->to[i] = v6->to[i];
	}
	if (in->len > there)
		return 0;
	find_flow(in, at + sizeof(*v6), end, v6->proto, 1);
	return 1;
}

// Destinations that no mapping is about.
INLINE int is_special(struct inner *in)
{
	__u32 first = htonl(in->to[0]);
	if (in->family == 4)
		return first >= 0xe0000000 || first >> 24 == 127 || first >> 16 == 0xa9fe;
	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6;
}

INLINE struct entry *find_entry(struct inner *in)
{
	struct entry *e;
	if (in->family == 4) {
		__u32 to = in->to[0];
		if (config.hosts4 && (e = map_lookup(&HOST4, &to)))
			return e;
		struct lpm4 key = { 32, to };
		return map_lookup(&NET4, &key);
	}
	if (config.hosts6 && (e = map_lookup(&HOST6, in->to)))
		return e;
	struct lpm6 key = { 128, { in->to[0], in->to[1], in->to[2], in->to[3] } };
	return map_lookup(&NET6, &key);
}

INLINE int may_decap(struct inner *in)
{
	if (in->family == 4) {
		__u32 to = in->to[0];
		if (config.decap_hosts4 && map_lookup(&DECAP_HOST4, &to))
			return 1;
		struct lpm4 key = { 32, to };
		return map_lookup(&DECAP_NET4, &key) != 0;
	}
	if (config.decap_hosts6 && map_lookup(&DECAP_HOST6, in->to))
		return 1;
	struct lpm6 key = { 128, { in->to[0], in->to[1], in->to[2], in->to[3] } };
	return map_lookup(&DECAP_NET6, &key) != 0;
}

INLINE void about_inner(struct event *e, struct inner *in)
{
	e->family = in->family;
	for (int i = 0; i < 4; i++) {
		e->from[i] = in->from[i];
		e->to[i] = in->to[i];
	}
}

static __attribute__((noinline)) int tell_first(struct inner *in, struct entry *entry)
{
	if (!in || !entry)
		return 0;
	struct event e = { .kind = EVENT_FIRST, .len = entry->len };
	about_inner(&e, in);
	return tell(&e);
}

INLINE void count_entry(struct inner *in, struct entry *e, __u32 packets, __u32 octets)
{
	__u32 epoch = config.epoch;
	__sync_fetch_and_add(&e->packets, packets);
	__sync_fetch_and_add(&e->octets, octets);
	if (e->used != epoch) {
		if (!e->used)
			tell_first(in, e);
		e->used = epoch;
	}
}

// One router less to live. The checksum of IPv4 covers the word of TTL and protocol: HC' of RFC 1624.
INLINE void age(void *at, __u32 family)
{
	if (family == 4) {
		struct ip4 *v4 = at;
		__u32 sum = v4->csum + htons(0x0100);
		v4->csum = sum + (sum >= 0xffff);
		v4->ttl--;
	} else {
		((struct ip6 *)at)->hops--;
	}
}

// --- the way out ---

INLINE struct path *find_path(struct entry *e)
{
	__u32 group = e->group;
	__u32 *at = map_lookup(&GROUPS, &group);
	if (!at || !*at)
		return 0;
	__u32 index = *at - 1;
	return map_lookup(&PATHS, &index);
}

INLINE struct hop *hop_of(struct path *p, __u32 member, __u32 *tag)
{
	*tag = p->serial * MEMBERS + member + 1;
	__u32 at = *tag % HOPS;
	return map_lookup(&HOPS_OF, &at);
}

// Asks the routes. False: unroutable, or the neighbour is not known yet; `ifindex` tells these apart.
static __attribute__((noinline)) int find_hop(void *ctx, struct bpf_fib_lookup *f)
{
	// A length of 1 fits everywhere; with it the answer tells the MTU of the route.
	f->tot_len = 1;
	f->l4_protocol = UDP;
	f->dport = LISP_PORT;
	return fib(ctx, f, sizeof(*f), 0);
}

INLINE void ask_for(struct bpf_fib_lookup *f, struct member *m, __u32 ifindex)
{
	f->ifindex = ifindex;
	if (m->family == 4) {
		f->family = AF_INET_;
		f->ipv4_src = config.local4;
		f->ipv4_dst = m->addr[0];
	} else {
		f->family = AF_INET6_;
		for (int i = 0; i < 4; i++) {
			f->ipv6_src[i] = config.local6[i];
			f->ipv6_dst[i] = m->addr[i];
		}
	}
}

INLINE void keep_hop(struct hop *hop, struct bpf_fib_lookup *f, __u32 tag, __u32 underlay, __u64 now)
{
	hop->tag = tag;
	hop->underlay = underlay;
	hop->until = now + HOP_NS;
	hop->ifindex = f->ifindex;
	hop->mtu = f->mtu_result;
	__builtin_memcpy(hop->to, f->dmac, 6);
	__builtin_memcpy(hop->from, f->smac, 6);
}

INLINE int hop_is_good(struct hop *hop, __u32 tag, __u64 now)
{
	return hop->tag == tag && hop->underlay == config.underlay && now < hop->until;
}

INLINE __u32 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

// RFC 9300 §5.3: TTL, DSCP and ECN are those of the inner packet, which has been aged; ECN is copied
// as RFC 6040 §4.1 says for its normal mode. §7.1: DF, so that an ETR need not reassemble.
INLINE void write_shim(struct shim *s, struct path *p, struct inner *in, __u32 payload)
{
	s->from = htons(0xc000 | (in->flow & 0x3fff));
	s->to = LISP_PORT;
	s->len = htons(payload + SHIM_LEN);
	s->csum = 0;
	s->flags = 0x08; // I
	s->nonce[0] = s->nonce[1] = s->nonce[2] = 0;
	s->iid_lsb = p->iid;
}

INLINE void write_outer4(struct ip4 *o, struct member *m, struct inner *in, __u32 payload)
{
	__u32 from = config.local4, to = m->addr[0];
	__u16 len = htons(payload + SHIM_LEN + sizeof(*o));
	__u16 first = 0x45 | in->tos << 8;
	__u16 ttl_proto = (in->ttl - 1) | UDP << 8;
	o->ver_ihl = 0x45;
	o->tos = in->tos;
	o->len = len;
	o->id = 0; // RFC 6864 §4.1: not used in a packet that is never fragmented
	o->frag = htons(0x4000);
	o->ttl = in->ttl - 1;
	o->proto = UDP;
	o->from = from;
	o->to = to;
	o->csum = ~fold((__u64)from + to + len + first + ttl_proto + htons(0x4000));
}

INLINE void write_outer6(struct ip6 *o, struct member *m, struct inner *in, __u32 payload)
{
	o->ver_class_flow = htonl(6u << 28 | in->tos << 20 | (in->flow & 0xfffff));
	o->len = htons(payload + SHIM_LEN);
	o->proto = UDP;
	o->hops = in->ttl - 1;
	for (int i = 0; i < 4; i++) {
		o->from[i] = config.local6[i];
		o->to[i] = m->addr[i];
	}
}

INLINE __u32 mtu_of(struct hop *hop)
{
	__u32 mtu = config.mtu;
	if (hop && hop->mtu && hop->mtu < mtu)
		mtu = hop->mtu;
	return mtu;
}

// --- tc ---

// To the next program, or to the routes: an operator may have programs of his own behind ours.
#define PASS TC_ACT_UNSPEC

// Brings the headers into the linear part of the packet.
INLINE int linear(struct __sk_buff *skb, __u32 need)
{
	if ((void *)(long)skb->data + need <= (void *)(long)skb->data_end)
		return 1;
	return !skb_pull(skb, skb->len < need ? skb->len : need);
}

struct packets {
	__u32 packets;
	__u32 octets;
	__u32 largest;
};

// A packet that the kernel will cut into segments is as large as one of them.
INLINE struct packets weigh(struct __sk_buff *skb, struct inner *in, __u32 l3)
{
	struct packets w = { 1, l3, in->len };
	if (skb->gso_size) {
		w.packets = skb->gso_segs ? skb->gso_segs : 1;
		w.largest = skb->gso_size + in->header;
	}
	return w;
}

// Makes room for the headers of a tunnel. `other`: the outer family when it is not the inner one.
static __attribute__((noinline)) int grow(struct __sk_buff *skb, __u32 header, __u64 flags,
					  __u32 other)
{
	long rc = skb_room(skb, header, BPF_ADJ_ROOM_MAC, flags);
	if (rc != -EALREADY_)
		return rc;
	// What came out of a tunnel of this same machine is marked for ever as being in one, and where
	// the inner headers are is still true. Room without marking it, then; but only taking away can
	// change what the kernel believes the family to be, so there is something to take away.
	if (!other)
		return skb_room(skb, header, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	if (skb_room(skb, header + 4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return -1;
	return skb_room(skb, -4, BPF_ADJ_ROOM_MAC,
			BPF_F_ADJ_ROOM_FIXED_GSO |
				(other == 4 ? ROOM_DECAP_IPV4 : ROOM_DECAP_IPV6));
}

// Encapsulates and sends; the packet is `l2` octets of link layer and the inner packet.
INLINE int tc_send(struct __sk_buff *skb, struct inner *in, struct entry *e, __u32 l2, int late)
{
	struct path *p = find_path(e);
	if (!p || !p->members) {
		count_reason(UNREACHABLE);
		return TC_ACT_SHOT;
	}
	if (in->ttl <= 1) {
		count_reason(TTL);
		return PASS;
	}
	__u32 n = p->bucket[(in->flow >> 20) % BUCKETS] % MEMBERS;
	struct member *m = &p->member[n];
	__u32 tag;
	struct hop *hop = hop_of(p, n, &tag);
	if (!hop)
		return TC_ACT_SHOT; // there are HOPS of them
	__u64 now = now_ns();
	__u32 to_ifindex = hop->ifindex;
	int by_neighbour = l2 == 0;
	if (!hop_is_good(hop, tag, now)) {
		struct bpf_fib_lookup f = {};
		__u32 underlay = config.underlay;
		ask_for(&f, m, skb->ifindex);
		int rc = find_hop(skb, &f);
		if (rc == BPF_FIB_LKUP_RET_SUCCESS) {
			keep_hop(hop, &f, tag, underlay, now);
			hop->fresh = 0;
		} else {
			hop->tag = 0;
			if (rc != BPF_FIB_LKUP_RET_NO_NEIGH) {
				count_reason(UNDERLAY);
				return TC_ACT_SHOT;
			}
		}
		to_ifindex = f.ifindex;
		by_neighbour = 1;
	} else if (hop->fresh) {
		hop->fresh = 0;
		by_neighbour = 1;
	}

	__u32 header = SHIM_LEN + (m->family == 4 ? sizeof(struct ip4) : sizeof(struct ip6));
	__u32 l3 = skb->len - l2;
	struct packets w = weigh(skb, in, in->len);
	if (w.largest + header > mtu_of(hop->tag == tag ? hop : 0)) {
		count_reason(TOO_BIG);
		return PASS;
	}
	// What the link layer appended would otherwise become part of the tunnelled packet.
	__u32 payload = skb->gso_size ? l3 : in->len;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
		      (m->family == 4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);

	void *at = (void *)(long)skb->data + l2, *end = (void *)(long)skb->data_end;
	if (at + (in->family == 4 ? sizeof(struct ip4) : sizeof(struct ip6)) > end)
		return TC_ACT_SHOT; // it was there when it was read
	if (in->family == 4) {
		if (at + sizeof(struct ip4) > end)
			return TC_ACT_SHOT;
		age(at, 4);
	} else {
		if (at + sizeof(struct ip6) > end)
			return TC_ACT_SHOT;
		age(at, 6);
	}
	// A packet without a link layer gets the room for one: it leaves by an interface that has it.
	if ((!l2 && skb_head(skb, ETH_LEN, 0)) ||
	    grow(skb, header, flags, in->family == m->family ? 0 : m->family)) {
		count_reason(UNDERLAY);
		return TC_ACT_SHOT;
	}
	at = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (at + ETH_LEN + sizeof(struct ip6) + SHIM_LEN > end) {
		// The smallest inner packet is 20 octets, so this is only for the verifier.
		count_reason(UNDERLAY);
		return TC_ACT_SHOT;
	}
	struct eth *eth = at;
	__builtin_memcpy(eth->to, hop->to, 6);
	__builtin_memcpy(eth->from, hop->from, 6);
	eth->proto = m->family == 4 ? ETH_IPV4 : ETH_IPV6;
	at += ETH_LEN;
	if (m->family == 4) {
		write_outer4(at, m, in, payload);
		write_shim(at + sizeof(struct ip4), p, in, payload);
	} else {
		write_outer6(at, m, in, payload);
		write_shim(at + sizeof(struct ip6), p, in, payload);
	}
	count_entry(in, e, w.packets, w.octets);
	struct totals *t = totals();
	if (t) {
		struct count *c = late ? &t->late : &t->encapsulated;
		c->packets += w.packets;
		c->octets += w.octets;
	}
	if (by_neighbour)
		return redirect_neigh(to_ifindex, 0, 0, 0);
	return redirect(to_ifindex, 0);
}

INLINE int tc_encap(struct __sk_buff *skb, __u32 l2)
{
	if (skb->protocol != ETH_IPV4 && skb->protocol != ETH_IPV6)
		return PASS;
	if (!linear(skb, l2 + sizeof(struct ip6) + 20))
		return PASS;
	void *at = (void *)(long)skb->data + l2, *end = (void *)(long)skb->data_end;
	struct inner in;
	if (!read_inner(&in, at, end, skb->len - l2) || is_special(&in))
		return PASS;
	struct entry *e = find_entry(&in);
	if (!e)
		return PASS;
	switch (e->action) {
	case ACTION_GROUP:
		return tc_send(skb, &in, e, l2, 0);
	case ACTION_DROP:
		count_entry(&in, e, 1, in.len);
		count_reason(POLICY);
		return TC_ACT_SHOT;
	case ACTION_PUNT: {
		if (!l2)
			return PASS; // it is on its way to the punt device already
		struct event event = { .kind = EVENT_MISS };
		about_inner(&event, &in);
		tell(&event);
		count_entry(&in, e, 1, in.len);
		count_reason(PUNTED);
		return PASS;
	}
	default:
		return PASS;
	}
}

SEC("classifier/encap_tc") int encap_tc(struct __sk_buff *skb)
{
	// Only what is for this router: neither broadcast nor the frames of others.
	if (skb->pkt_type != 0 || skb->vlan_present)
		return PASS;
	return tc_encap(skb, ETH_LEN);
}

SEC("classifier/encap_out") int encap_out(struct __sk_buff *skb)
{
	return tc_encap(skb, 0);
}

// --- out of the tunnel ---

struct outer {
	__u32 family; // 4, 6; 0: not from a tunnel to us
	__u32 len;    // of all that is taken off
	__u32 tos;
	__u32 ttl;
	__u32 iid;
	__u32 from[4];
	__u32 bad; // reason + 1
};

// RFC 9300 §5.1 and, with the P flag, RFC 9305 §3.
INLINE void read_shim(struct outer *o, struct shim *s, __u32 there, __u32 *version)
{
	__u8 f = s->flags;
	*version = 0;
	o->bad = BAD_HEADER + 1;
	if (htons(s->len) < SHIM_LEN || htons(s->len) > there)
		return;
	// Key id: the payload is encrypted (RFC 8061), for which there is no key. N excludes V.
	if (f & 0x03 || (f & 0x90) == 0x90)
		return;
	if (f & 0x04) {
		if (s->nonce[2] == 1)
			*version = 4;
		else if (s->nonce[2] == 2)
			*version = 6;
		else
			return;
	}
	o->iid = f & 0x08 ? htonl(s->iid_lsb) >> 8 : 0;
	o->bad = 0;
	if (config.iid != ANY_IID && o->iid != config.iid)
		o->bad = INSTANCE + 1;
}

// `there`: octets from the outer header on. Returns where the inner packet begins, or null.
INLINE void *read_outer(struct outer *o, __u32 *version, void *at, void *end, __u32 there, int v4)
{
	if (v4) {
		struct ip4 *ip = at;
		struct shim *s = at + sizeof(*ip);
		if ((void *)(s + 1) > end || ip->ver_ihl != 0x45 || ip->proto != UDP)
			return 0;
		// A fragment has no port; the kernel reassembles, and nobody takes the result.
		if (ip->frag & htons(0x3fff) || s->to != LISP_PORT || ip->to != config.local4)
			return 0;
		o->family = 4;
		o->len = sizeof(*ip) + SHIM_LEN;
		o->tos = ip->tos;
		o->ttl = ip->ttl;
		o->from[0] = ip->from;
		o->from[1] = o->from[2] = o->from[3] = 0;
		if (htons(ip->len) > there)
			return 0; // the kernel drops it
		read_shim(o, s, htons(ip->len) - sizeof(*ip), version);
		return s + 1;
	}
	struct ip6 *ip = at;
	struct shim *s = at + sizeof(*ip);
	if ((void *)(s + 1) > end || ip->proto != UDP || s->to != LISP_PORT)
		return 0;
	for (int i = 0; i < 4; i++) {
		if (ip->to[i] != config.local6[i])
			return 0;
		o->from[i] = ip->from[i];
	}
	o->family = 6;
	o->len = sizeof(*ip) + SHIM_LEN;
	o->tos = (htonl(ip->ver_class_flow) >> 20) & 0xff;
	o->ttl = ip->hops;
	if (htons(ip->len) + sizeof(*ip) > there)
		return 0;
	read_shim(o, s, htons(ip->len), version);
	return s + 1;
}

// RFC 6040 §4.2, figure 4: the new traffic class; -1 where congestion was marked on a packet whose
// ends cannot be told. DSCP as RFC 9300 §5.3.
INLINE int tos_inside(__u32 outer, __u32 inner)
{
	__u32 ecn = inner & 3;
	if ((outer & 3) == 3) {
		if (ecn == 0)
			return -1;
		ecn = 3;
	} else if ((outer & 3) == 1 && ecn == 2) {
		ecn = 1;
	}
	return (outer & 0xfc) | ecn;
}

INLINE __u16 csum_change(__u16 csum, __u16 from, __u16 to)
{
	return ~fold((__u64)(__u16)~csum + (__u16)~from + to);
}

// Writes TTL and traffic class as they are after the tunnel.
INLINE void write_inner(void *at, struct inner *in, __u32 tos, __u32 ttl)
{
	if (in->family == 4) {
		struct ip4 *v4 = at;
		if (tos != in->tos) {
			v4->csum = csum_change(v4->csum, in->tos << 8 | v4->ver_ihl,
					       tos << 8 | v4->ver_ihl);
			v4->tos = tos;
		}
		if (ttl != in->ttl) {
			v4->csum = csum_change(v4->csum, v4->proto << 8 | in->ttl,
					       v4->proto << 8 | ttl);
			v4->ttl = ttl;
		}
	} else {
		struct ip6 *v6 = at;
		v6->hops = ttl;
		if (tos != in->tos)
			v6->ver_class_flow = (v6->ver_class_flow & ~htonl(0x0ff00000)) |
					     htonl(tos << 20);
	}
	in->tos = tos;
	in->ttl = ttl;
}

// What is found out about a packet from a tunnel before it is touched.
struct verdict {
	int drop; // reason, or -1
	__u32 tos;
	__u32 ttl;
	struct entry *late;
};

INLINE struct verdict judge(struct outer *o, __u32 version, struct inner *in, void *at, void *end,
			    __u32 there)
{
	struct verdict v = { .drop = -1 };
	if (o->bad) {
		v.drop = o->bad - 1;
		return v;
	}
	if (!read_inner(in, at, end, there) || (version && version != in->family)) {
		v.drop = BAD_INNER;
		return v;
	}
	if (is_special(in) || !may_decap(in)) {
		v.drop = NOT_ALLOWED;
		return v;
	}
	v.ttl = o->ttl < in->ttl ? o->ttl : in->ttl;
	if (!v.ttl) {
		v.drop = TTL;
		return v;
	}
	int tos = tos_inside(o->tos, in->tos);
	if (tos < 0) {
		v.drop = ECN;
		return v;
	}
	v.tos = tos;
	struct entry *e = find_entry(in);
	if (e && e->action == ACTION_GROUP)
		v.late = e;
	else if (e && e->action == ACTION_DROP)
		v.drop = POLICY;
	return v;
}

static __attribute__((noinline)) int tell_late(struct outer *o, struct inner *in)
{
	if (!o || !in)
		return 0;
	struct event e = { .kind = EVENT_LATE, .iid = o->iid, .rloc_family = o->family };
	for (int i = 0; i < 4; i++)
		e.rloc[i] = o->from[i];
	about_inner(&e, in);
	return tell(&e);
}

INLINE void count_decap(__u32 packets, __u32 octets)
{
	struct totals *t = totals();
	if (t) {
		t->decapsulated.packets += packets;
		t->decapsulated.octets += octets;
	}
}

SEC("classifier/decap_tc") int decap_tc(struct __sk_buff *skb)
{
	int v4 = skb->protocol == ETH_IPV4;
	if (skb->pkt_type != 0 || skb->vlan_present || !(v4 || skb->protocol == ETH_IPV6))
		return PASS;
	// Without the longest headers first: most packets of an underlay are not from a tunnel.
	if (!linear(skb, ETH_LEN + 40 + SHIM_LEN + 40 + 20))
		return PASS;
	struct outer o = {};
	struct inner in = {};
	__u32 version = 0;
	void *end = (void *)(long)skb->data_end;
	void *at = (void *)(long)skb->data + ETH_LEN;
	void *inside = read_outer(&o, &version, at, end, skb->len - ETH_LEN, v4);
	if (!inside)
		return PASS;
	struct verdict v = judge(&o, version, &in, inside, end, skb->len - ETH_LEN - o.len);
	if (v.drop >= 0) {
		if (v.drop == NOT_ALLOWED)
			tell_late(&o, &in);
		count_reason(v.drop);
		return TC_ACT_SHOT;
	}
	struct packets w = weigh(skb, &in, in.len);

	if (inside + sizeof(struct ip4) > end)
		return TC_ACT_SHOT;
	if (in.family == 6 && inside + sizeof(struct ip6) > end)
		return TC_ACT_SHOT;
	if (in.family == 4)
		write_inner(inside, &in, v.tos, v.ttl);
	else if (inside + sizeof(struct ip6) <= end)
		write_inner(inside, &in, v.tos, v.ttl);
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	// An older kernel takes out of a tunnel only what is of the same family.
	if (in.family != o.family)
		flags |= in.family == 4 ? ROOM_DECAP_IPV4 : ROOM_DECAP_IPV6;
	if (skb_room(skb, -(int)o.len, BPF_ADJ_ROOM_MAC, flags)) {
		count_reason(UNDERLAY);
		return TC_ACT_SHOT;
	}
	if (in.family != o.family) {
		struct eth *eth = (void *)(long)skb->data;
		if ((void *)(eth + 1) > (void *)(long)skb->data_end)
			return TC_ACT_SHOT;
		eth->proto = in.family == 4 ? ETH_IPV4 : ETH_IPV6;
	}
	if (v.late) {
		tell_late(&o, &in);
		return tc_send(skb, &in, v.late, ETH_LEN, 1);
	}
	count_decap(w.packets, w.octets);
	return PASS;
}

// --- XDP ---

// XDP sees the frames of others too.
INLINE int is_for_us(struct xdp_md *ctx, struct eth *eth)
{
	__u32 ifindex = ctx->ingress_ifindex, at = ifindex % LINKS;
	struct link *link = map_lookup(&LINKS_OF, &at);
	if (!link || link->ifindex != ifindex)
		return 0;
	__u16 *a = (__u16 *)link->mac, *b = (__u16 *)eth->to;
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

SEC("xdp") int encap_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth *eth = data;
	if (data + ETH_LEN + sizeof(struct ip4) > end)
		return XDP_PASS;
	if ((eth->proto != ETH_IPV4 && eth->proto != ETH_IPV6) || !is_for_us(ctx, eth))
		return XDP_PASS;
	struct inner in;
	if (!read_inner(&in, data + ETH_LEN, end, end - data - ETH_LEN) || is_special(&in))
		return XDP_PASS;
	struct entry *e = find_entry(&in);
	if (!e)
		return XDP_PASS;
	if (e->action == ACTION_DROP) {
		count_entry(&in, e, 1, in.len);
		count_reason(POLICY);
		return XDP_DROP;
	}
	if (e->action != ACTION_GROUP || in.ttl <= 1)
		return XDP_PASS;
	struct path *p = find_path(e);
	if (!p || !p->members)
		return XDP_PASS;
	__u32 n = p->bucket[(in.flow >> 20) % BUCKETS] % MEMBERS;
	struct member *m = &p->member[n];
	__u32 tag;
	struct hop *hop = hop_of(p, n, &tag);
	if (!hop)
		return XDP_PASS;
	__u64 now = now_ns();
	if (!hop_is_good(hop, tag, now)) {
		struct bpf_fib_lookup f = {};
		__u32 underlay = config.underlay;
		ask_for(&f, m, ctx->ingress_ifindex);
		if (find_hop(ctx, &f) == BPF_FIB_LKUP_RET_SUCCESS) {
			keep_hop(hop, &f, tag, underlay, now);
			hop->fresh = 1;
		} else {
			hop->tag = 0;
		}
		return XDP_PASS; // encap_tc asks the neighbour table
	}
	__u32 header = SHIM_LEN + (m->family == 4 ? sizeof(struct ip4) : sizeof(struct ip6));
	if (in.len + header > mtu_of(hop))
		return XDP_PASS;
	void *ip = data + ETH_LEN;
	if (in.family == 4) {
		age(ip, 4);
	} else {
		if (ip + sizeof(struct ip6) > end)
			return XDP_PASS;
		age(ip, 6);
	}
	if (xdp_head(ctx, -(int)header)) {
		count_reason(UNDERLAY);
		return XDP_DROP;
	}
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + ETH_LEN + sizeof(struct ip6) + SHIM_LEN > end)
		return XDP_DROP;
	eth = data;
	__builtin_memcpy(eth->to, hop->to, 6);
	__builtin_memcpy(eth->from, hop->from, 6);
	if (m->family == 4) {
		eth->proto = ETH_IPV4;
		write_outer4(data + ETH_LEN, m, &in, in.len);
		write_shim(data + ETH_LEN + sizeof(struct ip4), p, &in, in.len);
	} else {
		eth->proto = ETH_IPV6;
		write_outer6(data + ETH_LEN, m, &in, in.len);
		write_shim(data + ETH_LEN + sizeof(struct ip6), p, &in, in.len);
	}
	count_entry(&in, e, 1, in.len);
	struct totals *t = totals();
	if (t) {
		t->encapsulated.packets++;
		t->encapsulated.octets += in.len;
	}
	return redirect(hop->ifindex, 0);
}

SEC("xdp") int decap_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth *eth = data;
	if (data + ETH_LEN + sizeof(struct ip4) + SHIM_LEN > end)
		return XDP_PASS;
	int v4 = eth->proto == ETH_IPV4;
	if (!(v4 || eth->proto == ETH_IPV6) || !is_for_us(ctx, eth))
		return XDP_PASS;
	struct outer o = {};
	struct inner in = {};
	__u32 version = 0;
	__u32 there = end - data - ETH_LEN;
	void *inside = read_outer(&o, &version, data + ETH_LEN, end, there, v4);
	if (!inside)
		return XDP_PASS;
	struct verdict v = judge(&o, version, &in, inside, end, there - o.len);
	if (v.late)
		return XDP_PASS;
	if (v.drop >= 0) {
		if (v.drop == NOT_ALLOWED)
			tell_late(&o, &in);
		count_reason(v.drop);
		return XDP_DROP;
	}
	if (inside + sizeof(struct ip4) > end)
		return XDP_DROP;
	if (in.family == 4)
		write_inner(inside, &in, v.tos, v.ttl);
	else if (inside + sizeof(struct ip6) <= end)
		write_inner(inside, &in, v.tos, v.ttl);
	struct eth first = *eth;
	first.proto = in.family == 4 ? ETH_IPV4 : ETH_IPV6;
	if (xdp_head(ctx, o.len)) {
		count_reason(UNDERLAY);
		return XDP_DROP;
	}
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	*eth = first;
	count_decap(1, in.len);
	return XDP_PASS;
}

SEC("license") char licence[] = "Dual MIT/GPL";
