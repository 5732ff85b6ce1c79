//! `[transient]`: how long packets wait, and how many.

use std::time::Duration;

use super::Checker;
use crate::config::checked::Transient;
use crate::config::file::{File, OuterFamily};
use crate::types::{Family, Locator};

const PORT: u16 = 47_300;
const DEVICE: &str = "killick-hold";
const TABLE: u32 = 110;

/// A path is for the time in which routers learn of a move.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Linux: IFNAMSIZ less the final NUL.
const INTERFACE_NAME_MAX: usize = 15;

impl Checker<'_, '_> {
    /// `None` only together with an error, `Some(None)` when there is no such section.
    pub(super) fn transient(&mut self, file: &File) -> Option<Option<Transient>> {
        let Some(section) = &file.transient else { return Some(None) };
        if file.mobility.is_none() && !self.document.was_taken_out("mobility") {
            self.error_hint(
                "transient",
                "there is no [mobility], so nobody moves",
                "add [mobility], or leave [transient] out",
            );
        }
        if file.access.is_empty() && !self.document.was_taken_out("access") {
            self.warn(
                "transient",
                "no packets can wait here: nobody attaches without [[access]]",
                "leave it out",
            );
        }
        let port = section.port.unwrap_or(PORT);
        if port == 0 {
            self.error("transient.port", "0 is not a port");
        }
        let fe_e = file.mobility.as_ref().and_then(|mobility| mobility.fe_e);
        let locator = section.locator.or(fe_e).unwrap_or_default();
        if locator == Locator::default() && section.locator.is_some() {
            self.error_hint("transient.locator", "there is no address in it", "ipv4, ipv6 or both");
        }
        let device = section.device.clone().unwrap_or_else(|| DEVICE.to_owned());
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if device.is_empty() || device.len() > INTERFACE_NAME_MAX || !device.chars().all(is_name) {
            self.error_hint(
                "transient.device",
                format!("{device:?} is not an interface name"),
                format!("1 to {INTERFACE_NAME_MAX} letters, digits, '-', '_' or '.'"),
            );
        }
        let table = section.table.unwrap_or(TABLE);
        if matches!(table, 0 | 251..=255) {
            self.error_hint(
                "transient.table",
                format!("table {table}, or one of the two after it, has routes of others"),
                "a table of its own",
            );
        }
        for (key, value) in [
            ("packets-per-prefix", section.packets_per_prefix),
            ("octets-per-prefix", section.octets_per_prefix),
            ("packets", section.packets),
            ("octets", section.octets),
        ] {
            if value == Some(0) {
                self.error(&format!("transient.{key}"), "must be at least 1");
            }
        }
        for (key, value) in [
            ("hold-time", section.hold_time),
            ("forward-time", section.forward_time),
            ("quiet-time", section.quiet_time),
            ("order-time", section.order_time),
        ] {
            if value.is_some_and(|p| p.0.is_zero() || p.0 > TIME_MAX) {
                self.error(
                    &format!("transient.{key}"),
                    "must be more than nothing, and at most \"1m\"",
                );
            }
        }
        let time = |value: Option<crate::config::period::Period>, default_ms| {
            value.map_or(Duration::from_millis(default_ms), |p| p.0)
        };
        Some(Some(Transient {
            port,
            locator,
            device,
            table,
            prefer: match section.prefer.unwrap_or_default() {
                OuterFamily::Ipv4 => Family::Ipv4,
                OuterFamily::Ipv6 => Family::Ipv6,
            },
            packets_per_prefix: section.packets_per_prefix.unwrap_or(16_384),
            octets_per_prefix: section.octets_per_prefix.unwrap_or(16 << 20),
            packets: section.packets.unwrap_or(131_072),
            octets: section.octets.unwrap_or(256 << 20),
            when_full: section.when_full.unwrap_or_default(),
            hold: time(section.hold_time, 2_000),
            forward: time(section.forward_time, 5_000),
            quiet: time(section.quiet_time, 500),
            order: time(section.order_time, 100),
        }))
    }
}
