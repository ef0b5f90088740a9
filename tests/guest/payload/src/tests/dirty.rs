//! Writes memory at random until it is told to stop, and knows what must be in it.

use crate::memory::{self, PAGE, Window};
use crate::virtio::{Error, Result};
use crate::{cpu, say, serial};

/// Pages written between two looks at the serial line.
const BATCH: u64 = 64;
/// Batches between two lines that say how far it is.
const SAID: u64 = 256;

/// Pages in memory, and how often each was written.
struct Pages {
    pages: Window,
    versions: Window,
    count: u64,
    random: u64,
}

impl Pages {
    fn random(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.random >> 33
    }

    /// What is in a page of this version, its first version nothing.
    fn word(page: u64, version: u64, at: u64) -> u64 {
        match version {
            0 => 0,
            _ => (page << 40 | version << 9 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }

    /// Writes a page anew, now and then with zeroes.
    fn write(&mut self) {
        let page = self.random() % self.count;
        let version = match self.random() % 16 {
            0 => 0,
            _ => self.versions.get::<u64>(page * 8) % (1 << 30) + 1,
        };
        self.versions.set(page * 8, version);
        for at in 0..PAGE / 8 {
            self.pages
                .set(page * PAGE + at * 8, Pages::word(page, version, at));
        }
    }

    fn check(&self) -> Result<()> {
        for page in 0..self.count {
            let version = self.versions.get::<u64>(page * 8);
            for at in 0..PAGE / 8 {
                if self.pages.get::<u64>(page * PAGE + at * 8) != Pages::word(page, version, at) {
                    return Err(Error("another page than was written", page));
                }
            }
        }
        Ok(())
    }
}

/// Writes `count` pages until it is told otherwise: `i` to do nothing, `w` to write, `s` to write slowly, `c` to
/// check all of them and say so, `q` to check them and end.
pub fn dirty(count: u64) -> Result<()> {
    serial::listen();
    let mut pages = Pages {
        pages: memory::take(count * PAGE),
        versions: memory::take(count * 8),
        count,
        random: 1,
    };
    let (mut what, mut batches) = (b'w', 0u64);
    say!("ok dirty");
    loop {
        let told = match what {
            b'i' => Some(cpu::wait(serial::typed)),
            _ => serial::typed(),
        };
        match told {
            Some(b'q') => {
                pages.check()?;
                say!("ok wrote {batches}");
                return Ok(());
            }
            Some(b'c') => {
                pages.check()?;
                say!("ok checked {batches}");
            }
            Some(b'm') => say!("ok mark {batches}"),
            Some(byte) => what = byte,
            None => {}
        }
        if what == b'i' {
            continue;
        }
        for _ in 0..if what == b's' { 1 } else { BATCH } {
            pages.write();
        }
        batches += 1;
        if batches.is_multiple_of(SAID) {
            say!("ok written {batches}");
        }
    }
}
