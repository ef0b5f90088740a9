//! Whether pages are compressed: where the link is what a stream waits for, and as long as it pays. Pure.

use std::time::Duration;

/// What is wanted of compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Where the link is the bottleneck.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Always.
    Always,
}

/// What a stream did with some MiB of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// Bytes of pages.
    pub plain: u64,
    /// Bytes that they were on the wire.
    pub wire: u64,
    /// How long it took.
    pub took: Duration,
    /// How much of that it waited for the link.
    pub waited: Duration,
    /// How much of that it compressed.
    pub packing: Duration,
}

/// Bytes after which it is thought over.
const WINDOW: u64 = 8 << 20;
/// Windows until what did not pay is tried again.
const RETRY: u8 = 16;

impl Window {
    /// Whether it says enough.
    pub fn is_full(&self) -> bool {
        self.plain >= WINDOW
    }
}

/// What a stream does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// What it was told to, whatever comes.
    Fixed(bool),
    /// It does not compress, and thinks about it after so many windows.
    Plain(u8),
    /// It compresses.
    Packed,
}

impl Packing {
    pub fn new(wanted: Compression) -> Packing {
        match wanted {
            Compression::Auto => Packing::Plain(0),
            Compression::Never => Packing::Fixed(false),
            Compression::Always => Packing::Fixed(true),
        }
    }

    /// Whether it compresses.
    pub fn packs(self) -> bool {
        matches!(self, Packing::Fixed(true) | Packing::Packed)
    }

    /// What it does after `window`.
    pub fn next(self, window: &Window) -> Packing {
        match self {
            Packing::Fixed(_) => self,
            Packing::Plain(0) if window.waited > window.took / 2 => Packing::Packed,
            Packing::Plain(left) => Packing::Plain(left.saturating_sub(1)),
            // The link would have taken the saved bytes in less time than it took to save them.
            Packing::Packed if !pays(window) => Packing::Plain(RETRY),
            Packing::Packed => Packing::Packed,
        }
    }
}

fn pays(window: &Window) -> bool {
    if window.wire * 10 > window.plain * 9 {
        return false;
    }
    // Time that these bytes would have taken uncompressed, at the link's speed as seen.
    let waited = window.waited.as_secs_f64();
    let uncompressed = waited * window.plain as f64 / window.wire.max(1) as f64;
    waited + window.packing.as_secs_f64() < uncompressed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(wire: u64, waited: u64, packing: u64) -> Window {
        Window {
            plain: 8 << 20,
            wire: wire << 20,
            took: Duration::from_millis(100),
            waited: Duration::from_millis(waited),
            packing: Duration::from_millis(packing),
        }
    }

    #[test]
    fn every_case() {
        use Packing::{Fixed, Packed, Plain};
        let cases = [
            ("the link is waited for", Plain(0), window(8, 80, 0), Packed),
            ("the processor is", Plain(0), window(8, 20, 0), Plain(0)),
            ("it has not paid before", Plain(3), window(8, 80, 0), Plain(2)),
            (
                "half the bytes for little work",
                Packed,
                window(4, 50, 10),
                Packed,
            ),
            (
                "half the bytes for more work than they would take",
                Packed,
                window(4, 10, 50),
                Plain(16),
            ),
            ("hardly fewer bytes", Packed, window(8, 80, 10), Plain(16)),
            (
                "it was told never to",
                Fixed(false),
                window(8, 99, 0),
                Fixed(false),
            ),
            ("it was told to", Fixed(true), window(8, 0, 99), Fixed(true)),
        ];
        for (what, packing, window, next) in cases {
            assert_eq!(packing.next(&window), next, "{what}");
        }
    }
}
