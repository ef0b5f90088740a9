//! The guest's memory statistics (virtio 1.2, §5.5.6.3). Pure.

use std::time::Instant;

/// A tag of two bytes and a value of eight, without padding.
const ENTRY: usize = 10;
/// What is read of a statistics buffer: thrice the tags that exist.
pub const MAX_BYTES: usize = 48 * ENTRY;

/// What the guest last said about its memory. It says what it likes: for people and for graphs, no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatistics {
    /// When the guest said it; `None` when it never did.
    pub received: Option<Instant>,
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes not used for anything.
    pub free_memory: Option<u64>,
    /// Bytes that the guest's kernel manages.
    pub total_memory: Option<u64>,
    /// Bytes that a new program could get without swapping.
    pub available_memory: Option<u64>,
    /// Bytes of disk caches that can be given up.
    pub disk_caches: Option<u64>,
    /// Huge pages that were allocated.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
}

impl BalloonStatistics {
    /// What `bytes` say. Unknown tags are left out, and so is an amount of memory above `memory_size`, which
    /// cannot be; the last entry of a tag counts.
    pub fn parse(bytes: &[u8], memory_size: u64) -> Self {
        let mut statistics = BalloonStatistics::default();
        for entry in bytes.chunks_exact(ENTRY) {
            let &[tag0, tag1, ref value @ ..] = entry else {
                continue;
            };
            let Ok(value) = <[u8; 8]>::try_from(value) else {
                continue;
            };
            let value = u64::from_le_bytes(value);
            let amount = Some(value).filter(|&value| value <= memory_size);
            match u16::from_le_bytes([tag0, tag1]) {
                0 => statistics.swap_in = Some(value),
                1 => statistics.swap_out = Some(value),
                2 => statistics.major_faults = Some(value),
                3 => statistics.minor_faults = Some(value),
                4 => statistics.free_memory = amount,
                5 => statistics.total_memory = amount,
                6 => statistics.available_memory = amount,
                7 => statistics.disk_caches = amount,
                8 => statistics.hugetlb_allocations = Some(value),
                9 => statistics.hugetlb_failures = Some(value),
                _ => {}
            }
        }
        statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn known_tags_are_taken_and_unknown_ones_left_out() {
        let bytes = [entry(4, 100), entry(0xfff0, 7), entry(2, u64::MAX), entry(9, 3)].concat();
        assert_eq!(
            BalloonStatistics::parse(&bytes, 1000),
            BalloonStatistics {
                free_memory: Some(100),
                major_faults: Some(u64::MAX),
                hugetlb_failures: Some(3),
                ..Default::default()
            }
        );
    }

    #[test]
    fn more_memory_than_there_is_and_a_torn_entry_are_left_out() {
        let mut bytes = [entry(4, 1001), entry(5, 1000)].concat();
        bytes.extend(&entry(6, 1)[..9]);
        assert_eq!(
            BalloonStatistics::parse(&bytes, 1000),
            BalloonStatistics {
                total_memory: Some(1000),
                ..Default::default()
            }
        );
    }
}
