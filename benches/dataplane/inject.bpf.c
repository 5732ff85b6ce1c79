// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// What the bench of data planes injects and where it counts. Under the licence of the rest of
// killick, and under GPL-2.0 for the functions of the kernel. `make bpf` compiles it.
//
//   inject      writes one packet per run; the kernel takes each as a frame of an interface
//   nothing     makes an interface ready for XDP
//   sink_tc     counts the packets that the bench waits for, and drops all
//   sink_xdp    the same, for frames of XDP

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int (*name)[value]
#define __type(name, value) typeof(value) *name

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;

#define HEADERS 62

struct config {
	__u32 count; // destinations
	__u32 base;  // the first one, of IPv6 the last word
	__u32 tx;    // out of the interface, or else into it
	__u32 sum;   // of the IPv4 header without checksum and destination
	__u32 v6;
	__u32 port; // of UDP, as on the wire: what the sink waits for
	__u8 header[64];
};
volatile struct config config = {};

struct state {
	__u64 injected;
	__u64 sunk;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct state);
	__uint(max_entries, 1);
} STATE SEC(".maps");

static inline __attribute__((always_inline)) struct state *state(void)
{
	__u32 zero = 0;
	return map_lookup(&STATE, &zero);
}

SEC("xdp") int inject(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct state *s = state();
	if (data + HEADERS + 2 > end || !s)
		return XDP_DROP;
	__u32 n = s->injected++;
	n ^= n >> 16;
	n *= 0x7feb352d;
	n ^= n >> 15;
	n *= 0x846ca68b;
	n ^= n >> 16;
	__u32 to = config.base + n % config.count;
	// All of it: the memory still holds what became of an earlier packet.
	for (int i = 0; i < 16; i++)
		((__u32 *)data)[i] = ((volatile __u32 *)config.header)[i];
	if (config.v6) {
		*(__u32 *)(data + 50) = __builtin_bswap32(to);
	} else {
		__u32 wire = __builtin_bswap32(to);
		__u32 sum = config.sum + (wire & 0xffff) + (wire >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		*(__u32 *)(data + 30) = wire;
		*(__u16 *)(data + 24) = ~sum;
	}
	return config.tx ? XDP_TX : XDP_PASS;
}

SEC("xdp") int nothing(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

static inline __attribute__((always_inline)) void sink(__u8 *data, __u8 *end)
{
	struct state *s = state();
	if (!s || data + 38 > end)
		return;
	__u16 proto = *(__u16 *)(data + 12);
	if (proto == __builtin_bswap16(0x0800) && data[23] == 17 && *(__u16 *)(data + 36) == config.port)
		s->sunk++;
	else if (proto == __builtin_bswap16(0x86dd) && data + 58 <= end && data[20] == 17 &&
		 *(__u16 *)(data + 56) == config.port)
		s->sunk++;
}

SEC("classifier/sink_tc") int sink_tc(struct __sk_buff *skb)
{
	sink((void *)(long)skb->data, (void *)(long)skb->data_end);
	return TC_ACT_SHOT;
}

SEC("xdp") int sink_xdp(struct xdp_md *ctx)
{
	sink((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	return XDP_DROP;
}

SEC("license") char licence[] = "Dual MIT/GPL";
