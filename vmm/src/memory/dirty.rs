//! Which pages of guest memory were written: by vCPUs (the hypervisor's log), by devices (the bitmap of
//! `vm-memory`, which every write of ours and [`GuestBuffer::mark_written`] set) and by the host's kernel for
//! them (vhost's log).
//!
//! Taking a log clears it. Whoever takes pages and then fails to pass them on must forget the log altogether:
//! the next attempt begins with all pages.
//!
//! [`GuestBuffer::mark_written`]: nacelle_devices::memory::GuestBuffer::mark_written

use std::ops::Deref;
use std::sync::Arc;

use nacelle_devices::memory::{Memory, SharedMemory};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Address, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use crate::Result;
use crate::device::KernelWrites;
use crate::hypervisor::Partition;
use crate::migrate::MigrationPort;

/// Bytes of a page in every log and on the wire, whatever backs it on the host.
pub const PAGE: u64 = 4096;

/// A set of pages of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    ranges: Vec<Range>,
}

/// A range of memory, a bit for each page of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    pages: u64,
    bits: Vec<u64>,
}

/// Pages that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address of the first.
    pub address: u64,
    /// How many.
    pub pages: u64,
}

impl Run {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.pages * PAGE
    }

    /// Whether there is no page in it.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }
}

impl Pages {
    /// All pages of `memory`.
    pub fn all(memory: &Memory) -> Pages {
        let full = |region: &Region| {
            let mut bits = vec![u64::MAX; words(region)];
            let rest = region.len() / PAGE % 64;
            if let Some(last) = bits.last_mut().filter(|_| rest != 0) {
                *last = (1 << rest) - 1;
            }
            bits
        };
        Pages::of(memory, full)
    }

    /// No page of `memory`.
    pub fn none(memory: &Memory) -> Pages {
        Pages::of(memory, |region| vec![0; words(region)])
    }

    fn of(memory: &Memory, bits: impl Fn(&Region) -> Vec<u64>) -> Pages {
        Pages {
            ranges: memory
                .iter()
                .map(|region| Range::new(region, bits(region)))
                .collect(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        let words = self.ranges.iter().flat_map(|range| &range.bits);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.count() * PAGE
    }

    /// Adds those of `others`, which is of the same memory.
    pub fn add(&mut self, others: &Pages) {
        for (range, other) in self.ranges.iter_mut().zip(&others.ranges) {
            for (word, more) in range.bits.iter_mut().zip(&other.bits) {
                *word |= more;
            }
        }
    }

    /// Those of them at `address` and above.
    pub fn above(mut self, address: u64) -> Pages {
        for range in &mut self.ranges {
            let below = address.saturating_sub(range.start) / PAGE;
            for (first, word) in (0..).step_by(64).zip(&mut range.bits) {
                *word &= !mask(below.saturating_sub(first));
            }
        }
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges
            .iter()
            .all(|range| range.bits.iter().all(|word| *word == 0))
    }

    /// Whether the page at `address` is one of them.
    pub fn has(&self, address: u64) -> bool {
        self.ranges.iter().any(|range| {
            let found = range.place(address);
            found.is_some_and(|(word, bit)| range.bits.get(word).is_some_and(|word| word & bit != 0))
        })
    }

    /// Adds the page at `address` where that is in memory; whether it was not there before.
    pub fn insert(&mut self, address: u64) -> bool {
        self.change(address, |word, bit| {
            let new = *word & bit == 0;
            *word |= bit;
            new
        })
    }

    /// Takes the page at `address` out; whether it was there.
    pub fn remove(&mut self, address: u64) -> bool {
        self.change(address, |word, bit| {
            let was = *word & bit != 0;
            *word &= !bit;
            was
        })
    }

    fn change(&mut self, address: u64, act: impl FnOnce(&mut u64, u64) -> bool) -> bool {
        let found = self.ranges.iter_mut().find_map(|range| {
            let (word, bit) = range.place(address)?;
            Some((range.bits.get_mut(word)?, bit))
        });
        found.is_some_and(|(word, bit)| act(word, bit))
    }

    /// Runs of pages by rising address, none longer than `most` pages.
    pub fn runs(&self, most: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        for range in &self.ranges {
            range.add_runs(most, &mut runs);
        }
        runs
    }
}

type Region = vm_memory::GuestRegionMmap<AtomicBitmap>;

impl Range {
    fn new(region: &Region, bits: Vec<u64>) -> Range {
        Range {
            start: region.start_addr().raw_value(),
            pages: region.len() / PAGE,
            bits,
        }
    }

    /// Where the page at `address` is: its word, and its bit there.
    fn place(&self, address: u64) -> Option<(usize, u64)> {
        let page = address.checked_sub(self.start)? / PAGE;
        (page < self.pages).then_some(((page / 64) as usize, 1 << (page % 64)))
    }

    fn add_runs(&self, most: u64, runs: &mut Vec<Run>) {
        let mut open = Run { address: 0, pages: 0 };
        for (word_at, word) in (self.start..).step_by((64 * PAGE) as usize).zip(&self.bits) {
            let mut left = *word;
            while left != 0 {
                let skip = u64::from(left.trailing_zeros());
                let mut len = u64::from((left >> skip).trailing_ones());
                left &= !(mask(len) << skip);
                let mut at = word_at + skip * PAGE;
                while len > 0 {
                    if open.pages > 0 && (open.address + open.len() != at || open.pages >= most) {
                        runs.push(open);
                        open.pages = 0;
                    }
                    if open.pages == 0 {
                        open.address = at;
                    }
                    let here = len.min(most - open.pages);
                    open.pages += here;
                    at += here * PAGE;
                    len -= here;
                }
            }
        }
        if open.pages > 0 {
            runs.push(open);
        }
    }
}

fn mask(bits: u64) -> u64 {
    match bits {
        64.. => u64::MAX,
        bits => (1 << bits) - 1,
    }
}

fn words(region: &Region) -> usize {
    (region.len() / PAGE).div_ceil(64) as usize
}

/// The log of a machine's memory. Dropping it ends the log.
pub struct DirtyLog {
    partition: Arc<dyn Partition>,
    memory: SharedMemory,
    kernel: Arc<KernelWrites>,
}

impl DirtyLog {
    /// Begins to log; what was written before is not in it.
    ///
    /// # Errors
    /// When the hypervisor keeps no log.
    pub(crate) fn begin(port: &MigrationPort) -> Result<DirtyLog> {
        let log = DirtyLog {
            partition: port.partition.clone(),
            memory: port.memory.clone(),
            kernel: port.kernel.clone(),
        };
        super::give_to(&*log.partition, &log.memory.memory(), true)?;
        log.take()?;
        Ok(log)
    }

    /// The pages written since the last time.
    ///
    /// # Errors
    /// When the hypervisor does not say. Pages are lost then: begin anew.
    pub fn take(&self) -> Result<Pages> {
        let memory = self.memory.memory();
        let mut ranges = Vec::new();
        for (slot, region) in (0..).zip(memory.iter()) {
            let mmap: &MmapRegion<AtomicBitmap> = region.deref();
            let mut bits = self.partition.dirty_log(slot, region.len())?;
            bits.resize(words(region), 0);
            for (word, ours) in bits.iter_mut().zip(mmap.bitmap().get_and_reset()) {
                *word |= ours;
            }
            let theirs = self.kernel.take(region.start_addr().raw_value(), region.len());
            bits.iter_mut()
                .zip(theirs)
                .for_each(|(word, theirs)| *word |= theirs);
            ranges.push(Range::new(region, bits));
        }
        Ok(Pages { ranges })
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        if let Err(error) = super::give_to(&*self.partition, &self.memory.memory(), false) {
            log::warn!("guest memory stays logged, which costs time: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    fn memory() -> Memory {
        Memory::from_ranges(&[
            (GuestAddress(0), 100 * PAGE as usize),
            (GuestAddress(1 << 32), 64 * PAGE as usize),
        ])
        .unwrap()
    }

    #[test]
    fn all_pages_are_a_run_for_each_range() {
        let all = Pages::all(&memory());
        assert_eq!(all.count(), 164);
        let run = |address, pages| Run { address, pages };
        assert_eq!(all.runs(1 << 20), [run(0, 100), run(1 << 32, 64)]);
        assert_eq!(all.runs(70), [run(0, 70), run(70 * PAGE, 30), run(1 << 32, 64)]);
        assert_eq!(Pages::none(&memory()).runs(70), []);
    }

    #[test]
    fn runs_are_what_was_inserted() {
        let mut random = 1u64;
        for _ in 0..200 {
            let mut pages = Pages::none(&memory());
            let mut expected = std::collections::BTreeSet::new();
            for _ in 0..60 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let page = (random >> 33) % 164;
                let address = if page < 100 {
                    page * PAGE
                } else {
                    (1 << 32) + (page - 100) * PAGE
                };
                assert_eq!(pages.insert(address), expected.insert(address));
            }
            for most in [1, 3, 64, 1000] {
                let runs = pages.runs(most);
                assert!(runs.iter().all(|run| (1..=most).contains(&run.pages)));
                let found: Vec<u64> = runs
                    .iter()
                    .flat_map(|run| (0..run.pages).map(|page| run.address + page * PAGE))
                    .collect();
                assert_eq!(found, expected.iter().copied().collect::<Vec<_>>());
            }
            let first = *expected.first().unwrap();
            assert!(pages.remove(first) && !pages.remove(first));
        }
    }

    #[test]
    fn above_an_address_is_all_that_is_not_below_it() {
        let all = Pages::all(&memory());
        for page in [0, 1, 63, 64, 65, 99] {
            let runs = all.clone().above(page * PAGE).runs(1000);
            let run = |address, pages| Run { address, pages };
            assert_eq!(runs, [run(page * PAGE, 100 - page), run(1 << 32, 64)]);
        }
        assert_eq!(all.clone().above((1 << 32) + 63 * PAGE).count(), 1);
        assert!(all.above((1 << 32) + 64 * PAGE).is_empty());
    }

    #[test]
    fn pages_outside_memory_are_none() {
        let mut pages = Pages::none(&memory());
        assert!(!pages.insert(110 * PAGE) && !pages.insert(200 * PAGE) && !pages.insert(u64::MAX));
        assert_eq!(pages.count(), 0);
    }
}
