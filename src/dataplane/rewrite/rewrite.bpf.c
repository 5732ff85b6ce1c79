// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// The packet path of rewriting: a destination becomes another one, and nothing else changes.
//
// This file is under the licence of the rest of killick, MIT or Apache-2.0, and also under
// GPL-2.0: the functions of the kernel that it calls are for programs that are compatible with the
// latter. `make bpf` compiles it; the object is committed beside it.
//
//   translate_in   ingress of all interfaces: EID to locator (FE_I), locator to EID (FE_E), and the
//                  EID into ICMP errors that come back about a locator
//   errors_out     egress of the same: ICMP errors that this router itself makes
//   translate_out  egress of the punt device: what the kernel itself sends, and what was held
//
// After translate_in the routes of the kernel lead on, by the new destination: they age the packet,
// know the MTU and tell its source.
//
// An IPv6 locator has the same sum as its EID (RFC 6296 §2.6; user space sees to it), so nothing
// that includes the addresses in a checksum notices, wherever in the packet it is. An IPv4 locator
// has not, and what has a pseudo-header is corrected (RFC 1624).

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
static long (*load)(const void *skb, __u32 at, void *to, __u32 len) =
    (void *)BPF_FUNC_skb_load_bytes;
static long (*store)(struct __sk_buff *skb, __u32 at, const void *from, __u32 len, __u64 flags) =
    (void *)BPF_FUNC_skb_store_bytes;
static long (*l3_csum)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 size) =
    (void *)BPF_FUNC_l3_csum_replace;
static long (*l4_csum)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) =
    (void *)BPF_FUNC_l4_csum_replace;
static long (*skb_head)(struct __sk_buff *skb, __u32 len, __u64 flags) =
    (void *)BPF_FUNC_skb_change_head;
static long (*redirect_neigh)(__u32 ifindex, void *params, int len, __u64 flags) =
    (void *)BPF_FUNC_redirect_neigh;
static long (*fib)(void *ctx, struct bpf_fib_lookup *params, int len, __u32 flags) =
    (void *)BPF_FUNC_fib_lookup;
static __u64 (*now_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*ring_output)(void *ring, void *data, __u64 size, __u64 flags) =
    (void *)BPF_FUNC_ringbuf_output;

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "constants of headers are put together for little-endian machines"
#endif
#define htons(x) __builtin_bswap16(x)

#define ETH_LEN 14
#define ETH_IPV4 htons(0x0800)
#define ETH_IPV6 htons(0x86dd)
#define ICMP 1
#define TCP 6
#define UDP 17
#define DCCP 33
#define ICMP6 58
#define UDPLITE 136
#define AF_INET_ 2
#define AF_INET6_ 10

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
};
#define IP4_CSUM 10
#define IP4_TO 16

struct ip6 {
	__u32 ver_class_flow;
	__u16 len;
	__u8 proto;
	__u8 hops;
	__u32 from[4];
	__u32 to[4];
};
#define IP6_TO 24

#define ICMP_CSUM 2
#define ICMP_LEN 8

// --- what user space writes; the same structures are in layout.rs ---

struct config {
	__u32 epoch; // written to entries that carry packets; never 0
	// Whether the table was ever used: a look into an empty one is saved.
	__u32 hosts4, hosts6;
};

// CLOSED: a pool of our own locators. What of it leads to nobody is dropped.
enum action { REWRITE = 1, PUNT, NATIVE, DROP, CLOSED };

struct entry {
	__u32 action;
	__u32 restore; // the destination was a locator of ours, and becomes the EID (FE_E)
	__u32 used;    // the epoch of the last packet; 0: none since it was set
	__u32 len;     // of the prefix
	__u64 packets;
	__u64 octets;
	__u32 to[4]; // IPv4: the first word
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

enum reason { NOT_ALLOWED, MALFORMED, POLICY, TOO_BIG, UNDERLAY, PUNTED, EVENT_LOST, ERRORS, REASONS };
struct count {
	__u64 packets;
	__u64 octets;
};
struct totals {
	struct count rewritten, restored, late;
	__u64 reason[REASONS];
};

enum event_kind { EVENT_MISS = 1, EVENT_FIRST = 3 };
// As the one of the encapsulating programs.
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
// Locators elsewhere and their EIDs, for the errors that come back.
TABLE(BACK4, BPF_MAP_TYPE_HASH, __u32, __u32, 1 << 20);
TABLE(BACK6, BPF_MAP_TYPE_HASH, struct key6, struct key6, 1 << 20);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct totals);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
} TOTALS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} EVENTS SEC(".maps");

// One event of a kind about the same address in EVENT_NS.
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

struct packet {
	__u32 family; // 4, 6
	__u32 l3;     // where the IP header begins
	__u32 l4;     // and what is behind it
	__u32 proto;
	__u32 later; // a fragment without the transport header
	__u32 from[4];
	__u32 to[4];
};

static __attribute__((noinline)) int tell(struct packet *p, __u32 kind, __u32 len)
{
	if (!p)
		return 0;
	struct event e = { .kind = kind, .family = p->family, .len = len };
	for (int i = 0; i < 4; i++) {
		e.from[i] = p->from[i];
		e.to[i] = p->to[i];
	}
	if (kind != EVENT_FIRST) {
		__u64 key = kind;
		for (int i = 0; i < 4; i++) {
			key = (key ^ e.to[i]) * 0x9e3779b97f4a7c15ull;
			key ^= key >> 29;
		}
		__u64 now = now_ns();
		__u64 *last = map_lookup(&EVENT_LIMIT, &key);
		if (last && now - *last < EVENT_NS)
			return 0;
		map_update(&EVENT_LIMIT, &key, &now, BPF_ANY);
	}
	if (ring_output(&EVENTS, &e, sizeof(e), 0))
		count_reason(EVENT_LOST);
	return 0;
}

INLINE __u32 packets_of(struct __sk_buff *skb)
{
	return skb->gso_segs ? skb->gso_segs : 1;
}

INLINE void count_entry(struct __sk_buff *skb, struct packet *p, struct entry *e)
{
	__u32 epoch = config.epoch;
	__sync_fetch_and_add(&e->packets, packets_of(skb));
	__sync_fetch_and_add(&e->octets, skb->len - p->l3);
	if (e->used != epoch) {
		if (!e->used)
			tell(p, EVENT_FIRST, e->len);
		e->used = epoch;
	}
}

INLINE void add(struct __sk_buff *skb, struct packet *p, struct count *c)
{
	c->packets += packets_of(skb);
	c->octets += skb->len - p->l3;
}

// --- packets ---

INLINE int read4(struct packet *p, struct ip4 *ip)
{
	if (ip->ver_ihl >> 4 != 4 || (ip->ver_ihl & 15) < 5)
		return 0;
	p->family = 4;
	p->l4 = p->l3 + (ip->ver_ihl & 15) * 4;
	p->proto = ip->proto;
	p->later = (ip->frag & htons(0x1fff)) != 0;
	p->from[0] = ip->from;
	p->to[0] = ip->to;
	p->from[1] = p->from[2] = p->from[3] = 0;
	p->to[1] = p->to[2] = p->to[3] = 0;
	return 1;
}

INLINE int read6(struct packet *p, struct ip6 *ip)
{
	if ((ip->ver_class_flow & 0xf0) != 0x60)
		return 0;
	p->family = 6;
	p->l4 = p->l3 + sizeof(*ip);
	p->proto = ip->proto;
	p->later = 0;
	for (int i = 0; i < 4; i++) {
		p->from[i] = ip->from[i];
		p->to[i] = ip->to[i];
	}
	return 1;
}

// False: nothing that we would touch.
INLINE int read_packet(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	p->l3 = l3;
	if (skb->protocol == ETH_IPV4) {
		struct ip4 ip;
		return !load(skb, l3, &ip, sizeof(ip)) && read4(p, &ip);
	}
	if (skb->protocol == ETH_IPV6) {
		struct ip6 ip;
		return !load(skb, l3, &ip, sizeof(ip)) && read6(p, &ip);
	}
	return 0;
}

// Where in its header a transport over IPv4 has a checksum that includes the addresses; 0: nowhere.
INLINE __u32 csum_at(__u32 proto)
{
	switch (proto) {
	case TCP:
		return 16;
	case UDP:
	case UDPLITE:
	case DCCP:
		return 6;
	default: // ICMP has none; SCTP and ESP leave the addresses out
		return 0;
	}
}

// Gives the packet another destination. Not 0: its transport header is not as it should be.
static __attribute__((noinline)) int rewrite(struct __sk_buff *skb, struct packet *p, __u32 *to)
{
	if (!p || !to)
		return -1;
	if (p->family == 6) {
		if (store(skb, p->l3 + IP6_TO, to, 16, 0))
			return -1;
	} else {
		__u32 at = csum_at(p->proto);
		// The kernel leaves a checksum of 0 as it is, and makes no 0, for those that say
		// "none" by it (RFC 768).
		if (at && !p->later &&
		    l4_csum(skb, p->l4 + at, p->to[0], *to,
			    BPF_F_PSEUDO_HDR | 4 |
				    (p->proto == UDP || p->proto == UDPLITE ? BPF_F_MARK_MANGLED_0 : 0)))
			return -1;
		__u32 new = *to;
		if (l3_csum(skb, p->l3 + IP4_CSUM, p->to[0], new, 4) ||
		    store(skb, p->l3 + IP4_TO, &new, 4, 0))
			return -1;
	}
	for (int i = 0; i < 4; i++)
		p->to[i] = p->family == 4 && i ? 0 : to[i];
	return 0;
}

INLINE struct entry *find_host(struct packet *p)
{
	if (p->family == 4) {
		__u32 to = p->to[0];
		return config.hosts4 ? map_lookup(&HOST4, &to) : 0;
	}
	struct key6 to = { { p->to[0], p->to[1], p->to[2], p->to[3] } };
	return config.hosts6 ? map_lookup(&HOST6, &to) : 0;
}

INLINE struct entry *find_entry(struct packet *p)
{
	struct entry *e = find_host(p);
	if (e)
		return e;
	if (p->family == 4) {
		struct lpm4 key = { 32, p->to[0] };
		return map_lookup(&NET4, &key);
	}
	struct lpm6 key = { 128, { p->to[0], p->to[1], p->to[2], p->to[3] } };
	return map_lookup(&NET6, &key);
}

// --- errors about what was rewritten ---

// The sum of a part of a packet that is quoted, when the part before it has changed: RFC 5508 §4.2.
INLINE void error_sum4(struct __sk_buff *skb, __u32 icmp, struct packet *inside, __u32 eid)
{
	__u32 at = csum_at(inside->proto);
	__u16 before, after;
	// Not all routers quote so much (RFC 792: 64 bits).
	if (!at || inside->later || load(skb, inside->l4 + at, &before, 2) ||
	    (!before && inside->proto == UDP))
		return;
	__u64 sum = (__u64)(__u16)~before;
	sum += (__u16)~(inside->to[0] & 0xffff) + (__u32)(__u16)~(inside->to[0] >> 16);
	sum += (eid & 0xffff) + (eid >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	after = ~sum;
	if (!after && inside->proto != TCP)
		after = 0xffff;
	if (!store(skb, inside->l4 + at, &after, 2, 0))
		l4_csum(skb, icmp + ICMP_CSUM, before, after, 2);
}

// An ICMP error that quotes a packet to a locator gets the EID there: its source knows no other.
static __attribute__((noinline)) int translate_error(struct __sk_buff *skb, struct packet *p)
{
	__u8 type;
	if (!p || p->later || load(skb, p->l4, &type, 1))
		return 0;
	struct packet inside = { .l3 = p->l4 + ICMP_LEN };
	if (p->family == 4) {
		struct ip4 ip;
		// Unreachable and too big, quench, redirect, time exceeded, parameter problem.
		if (p->proto != ICMP || !(type == 3 || type == 4 || type == 5 || type == 11 || type == 12))
			return 0;
		if (load(skb, inside.l3, &ip, sizeof(ip)) || !read4(&inside, &ip))
			return 0;
		__u32 locator = inside.to[0];
		__u32 *eid = map_lookup(&BACK4, &locator);
		if (!eid || inside.from[0] != p->to[0])
			return 0;
		__u32 to = *eid;
		// The sum of a header with its checksum is always the same, so that of ICMP is too.
		l3_csum(skb, inside.l3 + IP4_CSUM, locator, to, 4);
		if (store(skb, inside.l3 + IP4_TO, &to, 4, 0))
			return 0;
		error_sum4(skb, p->l4, &inside, to);
	} else {
		struct ip6 ip;
		if (p->proto != ICMP6 || type < 1 || type > 4)
			return 0;
		if (load(skb, inside.l3, &ip, sizeof(ip)) || !read6(&inside, &ip))
			return 0;
		struct key6 locator = { { inside.to[0], inside.to[1], inside.to[2], inside.to[3] } };
		struct key6 *eid = map_lookup(&BACK6, &locator);
		if (!eid)
			return 0;
		for (int i = 0; i < 4; i++)
			if (inside.from[i] != p->to[i])
				return 0;
		struct key6 to = *eid;
		if (store(skb, inside.l3 + IP6_TO, &to, 16, 0))
			return 0;
	}
	count_reason(ERRORS);
	return 1;
}

INLINE void maybe_error(struct __sk_buff *skb, struct packet *p)
{
	if (p->proto == ICMP || p->proto == ICMP6)
		translate_error(skb, p);
}

// --- the way of a packet ---

// To the next program, or to the routes: an operator may have programs of his own behind ours.
#define PASS TC_ACT_UNSPEC

enum fate { GO_ON, CHANGED, DIE };

INLINE enum fate give(struct __sk_buff *skb, struct packet *p, struct entry *e)
{
	struct key6 to = { { e->to[0], e->to[1], e->to[2], e->to[3] } };
	count_entry(skb, p, e);
	if (rewrite(skb, p, to.addr)) {
		count_reason(MALFORMED);
		return DIE;
	}
	return CHANGED;
}

INLINE enum fate translate(struct __sk_buff *skb, struct packet *p, int to_punt)
{
	struct entry *e = find_entry(p);
	if (!e)
		return GO_ON;
	enum fate fate = GO_ON;
	int restored = 0;
	if (e->action == REWRITE && e->restore) {
		fate = give(skb, p, e);
		if (fate == DIE)
			return DIE;
		restored = 1;
		// It may have left: then its packets go on to its next locator.
		e = find_host(p);
		if (!e || e->action == NATIVE || e->restore) {
			struct totals *t = totals();
			if (t)
				add(skb, p, &t->restored);
			return fate;
		}
	}
	switch (e->action) {
	case REWRITE: {
		fate = give(skb, p, e);
		if (fate == DIE)
			return DIE;
		struct totals *t = totals();
		if (t)
			add(skb, p, restored ? &t->late : &t->rewritten);
		return fate;
	}
	case DROP:
		count_entry(skb, p, e);
		count_reason(POLICY);
		return DIE;
	case CLOSED:
		count_reason(NOT_ALLOWED);
		return DIE;
	case PUNT:
		if (to_punt)
			return fate; // it is on its way there already
		tell(p, EVENT_MISS, 0);
		count_entry(skb, p, e);
		count_reason(PUNTED);
		return fate;
	default:
		return fate;
	}
}

SEC("classifier/translate_in") int translate_in(struct __sk_buff *skb)
{
	struct packet p = {};
	// Only what is for this router: neither broadcast nor the frames of others.
	if (skb->pkt_type != 0 || skb->vlan_present || !read_packet(skb, &p, ETH_LEN))
		return PASS;
	maybe_error(skb, &p);
	return translate(skb, &p, 0) == DIE ? TC_ACT_SHOT : PASS;
}

SEC("classifier/errors_out") int errors_out(struct __sk_buff *skb)
{
	struct packet p = {};
	if (!skb->vlan_present && read_packet(skb, &p, ETH_LEN))
		maybe_error(skb, &p);
	return PASS;
}

SEC("classifier/translate_out") int translate_out(struct __sk_buff *skb)
{
	struct packet p = {};
	if (!read_packet(skb, &p, 0))
		return PASS;
	maybe_error(skb, &p);
	enum fate fate = translate(skb, &p, 1);
	if (fate != CHANGED)
		return fate == DIE ? TC_ACT_SHOT : PASS;
	struct bpf_fib_lookup f = { .ifindex = skb->ifindex };
	f.tot_len = skb->gso_size ? 0 : skb->len;
	if (p.family == 4) {
		f.family = AF_INET_;
		f.ipv4_src = p.from[0];
		f.ipv4_dst = p.to[0];
	} else {
		f.family = AF_INET6_;
		for (int i = 0; i < 4; i++) {
			f.ipv6_src[i] = p.from[i];
			f.ipv6_dst[i] = p.to[i];
		}
	}
	int rc = fib(skb, &f, sizeof(f), 0);
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		count_reason(TOO_BIG);
		return TC_ACT_SHOT;
	}
	// It gets the room for a link layer: it leaves by an interface that has one.
	if ((rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH) ||
	    skb_head(skb, ETH_LEN, 0)) {
		count_reason(UNDERLAY);
		return TC_ACT_SHOT;
	}
	return redirect_neigh(f.ifindex, 0, 0, 0);
}

SEC("license") char licence[] = "Dual MIT/GPL";
