//! Labels with a closed list of values, and metrics with one series for each of them from the
//! start: otherwise the first increment is invisible to `rate()`, and an alert sees "no data".

use std::marker::PhantomData;

/// A label whose values are the variants of an enum.
pub trait Label: Copy + 'static {
    const NAME: &'static str;
    const ALL: &'static [Self];

    fn as_str(self) -> &'static str;

    /// Position in [`Self::ALL`].
    fn index(self) -> usize;
}

/// An enum that is a label: name, then variants with their words.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident = $label:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use label;

/// One series per value of `K`.
#[derive(Debug)]
pub struct Per<K, M> {
    series: Vec<M>,
    key: PhantomData<K>,
}

impl<K: Label, M> Per<K, M> {
    pub(super) fn new(make: impl FnMut(K) -> M) -> Self {
        Self { series: K::ALL.iter().copied().map(make).collect(), key: PhantomData }
    }

    pub fn get(&self, key: K) -> &M {
        &self.series[key.index()]
    }
}
