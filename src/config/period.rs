//! A length of time as an engineer writes it: a number and its unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `"90s"`, `"500ms"`, `"2m"`, `"1h"`. A bare number is refused: `settle-delay = 500` would be
/// eight minutes to the one who reads seconds and half a second to the one who wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

const SYNTAX: &str = "not a length of time (a number and a unit, for example \"500ms\" or \"90s\")";
const UNITS: [(&str, u64); 5] =
    [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];

impl FromStr for Period {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(SYNTAX)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| SYNTAX)?;
        let (_, us) = UNITS.into_iter().find(|(name, _)| *name == unit.trim()).ok_or(SYNTAX)?;
        number.checked_mul(us).map(Duration::from_micros).map(Self).ok_or("too long a time")
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        let (unit, size) = UNITS
            .into_iter()
            .rev()
            .find(|(_, size)| us > 0 && us.is_multiple_of(*size))
            .unwrap_or(("s", 1_000_000));
        write!(f, "{}{unit}", us / size)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time such as \"500ms\" or \"90s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Period, E> {
                Err(E::custom(format_args!(
                    "a length of time needs a unit (\"{number}s\" or \"{number}ms\"?)"
                )))
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["0s", "1us", "500ms", "90s", "2m", "1h"] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string(), text);
        }
        assert_eq!("120s".parse::<Period>().unwrap().to_string(), "2m");
        for text in ["", "5", "s", "-1s", "1.5s", "5 parsecs", "99999999999999999999s"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert_eq!("9223372036854775807h".parse::<Period>(), Err("too long a time"));
    }
}
