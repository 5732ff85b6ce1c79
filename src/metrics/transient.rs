//! Packets that wait for a node that moves, or follow it: names, labels and help.

use prometheus::{IntCounter, IntGauge};

use super::catalogue::Maker;
use super::label::{Label, Per, label};

label!(PathRole = "state" { Hold = "hold", Forward = "forward", Gate = "gate" });
label!(
    PathPackets = "event" {
        /// Waited, for whatever reason.
        Held = "held",
        /// Sent to the new anchor.
        Forwarded = "forwarded",
        /// Taken from the old anchor.
        Received = "received",
        /// Given to the kernel, which delivers.
        Written = "written",
        /// Came from the old anchor out of turn.
        Reordered = "reordered",
        /// The old anchor's numbers tell of them, and they never came.
        Missing = "missing",
    }
);
label!(
    /// What kept the order.
    PathMarkers = "result" {
        Asked = "asked",
        Answered = "answered",
        /// A flow went on without its marker.
        Late = "late",
        /// There was no room to wait for one.
        Full = "full",
        EndUnanswered = "end_unanswered",
    }
);
label!(
    PathDrop = "reason" {
        PrefixFull = "prefix_full",
        TotalFull = "total_full",
        Oldest = "oldest",
        TooLong = "too_long",
        Malformed = "malformed",
        UnknownKey = "unknown_key",
        WrongSource = "wrong_source",
        WrongPrefix = "wrong_prefix",
        HopLimit = "hop_limit",
        Duplicate = "duplicate",
        Stale = "stale",
        SendRefused = "send_refused",
        SourceFull = "source_full",
        SourceAge = "source_age",
        SourceRefused = "source_refused",
    }
);

pub struct TransientMetrics {
    pub paths: Per<PathRole, IntGauge>,
    pub packets: Per<PathPackets, IntCounter>,
    pub markers: Per<PathMarkers, IntCounter>,
    pub dropped: Per<PathDrop, IntCounter>,
    pub device_dropped: IntCounter,
    pub waiting: IntGauge,
    pub waiting_bytes: IntGauge,
    pub sources: IntGauge,
}

impl TransientMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            paths: make.gauges("killick_transient_paths", "Prefixes of moving nodes by state"),
            packets: make.counters(
                "killick_transient_packets_total",
                "Packets that waited for a moving node, or followed it",
            ),
            markers: make.counters(
                "killick_transient_markers_total",
                "Markers by which packets of two paths are kept in order",
            ),
            dropped: make.counters(
                "killick_transient_dropped_packets_total",
                "Packets that waited or followed in vain, and datagrams that were refused",
            ),
            device_dropped: make.counter(
                "killick_transient_device_dropped_packets_total",
                "Packets for which the kernel had no room before they were read",
            ),
            waiting: make.gauge("killick_transient_waiting_packets", "Packets that wait now"),
            waiting_bytes: make.gauge("killick_transient_waiting_bytes", "Octets in them"),
            sources: make.gauge(
                "killick_transient_waiting_sources",
                "Hosts whose packets wait until their context is here",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::transient::TransientDrop;

    #[test]
    fn each_reason_has_its_word() {
        let words = PathDrop::ALL.iter().map(|why| why.as_str());
        assert!(words.eq(TransientDrop::ALL.iter().map(|why| why.as_str())));
    }
}
