//! Where the kernel notes the pages of guest memory that it writes, while a live migration wants to know.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::Memory;

/// Bytes of a page in the log (`VHOST_PAGE_SIZE`).
pub const PAGE: u64 = 4096;

/// A bit for each page of guest memory, by its address. Devices share one.
pub struct WriteLog(Vec<AtomicU64>);

impl WriteLog {
    /// A log for `memory`, empty.
    pub fn new(memory: &Memory) -> WriteLog {
        let ends = memory
            .iter()
            .map(|region| region.start_addr().raw_value() + region.len());
        let pages = ends.max().unwrap_or(0).div_ceil(PAGE);
        WriteLog((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// The pages of `len` bytes from `start` on that were written since the last time, a bit each. `start` lies on
    /// 64 pages.
    pub fn take(&self, start: u64, len: u64) -> impl Iterator<Item = u64> {
        let first = (start / PAGE / 64) as usize;
        let count = (len / PAGE).div_ceil(64) as usize;
        let words = self.0.get(first..).unwrap_or_default();
        words
            .iter()
            .take(count)
            .map(|word| word.swap(0, Ordering::AcqRel))
    }

    /// Where it lies in this process, for the kernel.
    pub(super) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn a_log_reaches_to_the_end_of_memory_and_is_taken_by_ranges() {
        let memory =
            Memory::from_ranges(&[(GuestAddress(0), 64 << 12), (GuestAddress(128 << 12), 100 << 12)])
                .unwrap();
        let log = WriteLog::new(&memory);
        assert_eq!(log.0.len(), 4);
        log.0[3].store(1 << 35, Ordering::Release);
        assert_eq!(log.take(0, 64 << 12).collect::<Vec<_>>(), [0]);
        assert_eq!(log.take(128 << 12, 100 << 12).collect::<Vec<_>>(), [0, 1 << 35]);
        assert_eq!(log.take(128 << 12, 100 << 12).collect::<Vec<_>>(), [0, 0]);
    }
}
