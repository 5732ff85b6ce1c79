//! Every limit, with its unit and its reason. What happens at the limit is said beside the queue
//! or table that has it.

/// RFC 4283 §3: the option length is one octet.
pub const MN_ID_LEN_MAX: usize = 255;

/// LOCAL_PREF of a host route whose older claims are known to be gone, and of aggregates. Above the
/// usual default of 100, so that a stray configuration elsewhere does not win by accident.
pub const LOCAL_PREF_SETTLED: u32 = 200;

/// LOCAL_PREF of a claim is this plus the generation: a newer claim wins at every router.
pub const LOCAL_PREF_CLAIM_BASE: u32 = 1_000_000;

/// The largest generation, so that its preference still fits the 32 bits of LOCAL_PREF.
pub const GENERATION_MAX: u32 = u32::MAX - LOCAL_PREF_CLAIM_BASE;

/// Prefixes of one mobile node (HoAs and HNPs). More are refused at attach.
pub const PREFIXES_PER_NODE_MAX: usize = 64;

/// Bindings a node holds. Attach beyond is refused with a status and a counter.
pub const BINDINGS_MAX: usize = 8_000_000;

/// Remembered generations of nodes that left; the oldest is forgotten when full.
pub const TOMBSTONES_MAX: usize = 1_000_000;

const _: () = assert!(LOCAL_PREF_SETTLED < LOCAL_PREF_CLAIM_BASE);
