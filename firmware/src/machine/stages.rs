//! How long each stage of a boot took, by the processor's own counter (RDTSC): how fast that counts the firmware does
//! not know.

use alloc::vec::Vec;
use core::arch::x86_64::_rdtsc;
use core::fmt;

/// When stages ended.
pub struct Stages {
    began: u64,
    ended: Vec<(&'static str, u64)>,
}

fn cycles() -> u64 {
    // SAFETY: every 64-bit processor counts.
    unsafe { _rdtsc() }
}

impl Stages {
    /// The first stage begins.
    pub fn begin() -> Stages {
        Stages {
            began: cycles(),
            ended: Vec::new(),
        }
    }

    /// A stage ends, and the next one begins.
    pub fn end(&mut self, name: &'static str) {
        self.ended.push((name, cycles()));
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = self.began;
        for (name, end) in &self.ended {
            write!(f, "{name} {}, ", end.saturating_sub(before))?;
            before = *end;
        }
        write!(f, "all {}", before.saturating_sub(self.began))
    }
}
