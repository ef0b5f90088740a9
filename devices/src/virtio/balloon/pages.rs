//! Which pages the guest gave, and which of the host's pages that frees. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Size of a balloon's pages, whatever the guest's or the host's are (virtio 1.2, §5.5.6).
pub const PAGE: u64 = 4096;

/// Page numbers as guest address ranges, sorted, neighbours joined.
pub fn runs(mut pfns: Vec<u32>) -> Vec<Range<u64>> {
    pfns.sort_unstable();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for pfn in pfns {
        let start = u64::from(pfn) * PAGE;
        match runs.last_mut() {
            Some(last) if start <= last.end => last.end = start + PAGE,
            _ => runs.push(start..start + PAGE),
        }
    }
    runs
}

/// `range` without the parts of host pages at its ends; empty where it holds no whole one.
pub fn whole(range: Range<u64>, host_page: u64) -> Range<u64> {
    let start = range.start.next_multiple_of(host_page);
    let end = range.end - range.end % host_page;
    start..end.max(start)
}

/// Host pages larger than a balloon's, of which the guest gave some part: such a page goes back to the host
/// when the guest gave all of it. Costs a bit for each 4 KiB of what was given.
///
/// It is not saved: after a move the pages given before count as kept, which costs memory and never data.
#[derive(Default)]
pub struct Given(BTreeMap<u64, Parts>);

/// The parts given of one host page: how many, and a bit for each.
#[derive(Default)]
struct Parts {
    count: u64,
    words: Vec<u64>,
}

impl Parts {
    /// Notes whether the part `index` is given; `true` when that is news.
    fn set(&mut self, index: u64, given: bool) -> bool {
        let Some(word) = self.words.get_mut((index / 64) as usize) else {
            return false;
        };
        let bit = 1 << (index % 64);
        if (*word & bit != 0) == given {
            return false;
        }
        *word ^= bit;
        match given {
            true => self.count += 1,
            false => self.count -= 1,
        }
        true
    }
}

impl Given {
    /// The guest gave `run`; gives the host pages that are whole now.
    pub fn inflate(&mut self, run: Range<u64>, host_page: u64) -> Vec<Range<u64>> {
        let mut freed = Vec::new();
        for start in run.step_by(PAGE as usize) {
            let base = start - start % host_page;
            let pages = host_page / PAGE;
            let parts = self.0.entry(base).or_insert_with(|| Parts {
                count: 0,
                words: vec![0; pages.div_ceil(64) as usize],
            });
            if parts.set((start - base) / PAGE, true) && parts.count == pages {
                freed.push(base..base + host_page);
            }
        }
        freed
    }

    /// The guest takes `run` back.
    pub fn deflate(&mut self, run: Range<u64>, host_page: u64) {
        for start in run.step_by(PAGE as usize) {
            let base = start - start % host_page;
            if let Some(parts) = self.0.get_mut(&base) {
                parts.set((start - base) / PAGE, false);
                if parts.count == 0 {
                    self.0.remove(&base);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: u64 = 2 << 20;

    #[test]
    fn neighbouring_pages_in_any_order_become_one_range() {
        assert_eq!(
            runs(vec![5, 3, 4, 9, 4]),
            vec![3 * PAGE..6 * PAGE, 9 * PAGE..10 * PAGE]
        );
        assert_eq!(
            runs(vec![u32::MAX]),
            vec![u64::from(u32::MAX) * PAGE..(1 << 32) * PAGE]
        );
        assert!(runs(vec![]).is_empty());
    }

    #[test]
    fn a_range_is_cut_to_whole_host_pages() {
        for (range, whole_part) in [
            (0..HUGE, 0..HUGE),
            (PAGE..3 * HUGE, HUGE..3 * HUGE),
            (PAGE..3 * HUGE - 1, HUGE..2 * HUGE),
            (PAGE..HUGE, HUGE..HUGE),
            (PAGE..2 * PAGE, HUGE..HUGE),
        ] {
            assert_eq!(whole(range.clone(), HUGE), whole_part, "{range:?}");
        }
    }

    #[test]
    fn a_huge_page_is_freed_by_the_last_of_its_parts_and_again_after_it_was_taken_back() {
        let mut given = Given::default();
        assert!(given.inflate(HUGE..2 * HUGE - PAGE, HUGE).is_empty());
        assert!(given.inflate(HUGE..HUGE + PAGE, HUGE).is_empty(), "given twice");
        assert_eq!(
            given.inflate(2 * HUGE - PAGE..2 * HUGE, HUGE),
            vec![HUGE..2 * HUGE]
        );

        given.deflate(HUGE + PAGE..HUGE + 2 * PAGE, HUGE);
        assert!(given.inflate(HUGE..HUGE + PAGE, HUGE).is_empty());
        assert_eq!(
            given.inflate(HUGE + PAGE..HUGE + 2 * PAGE, HUGE),
            vec![HUGE..2 * HUGE]
        );

        given.deflate(HUGE..2 * HUGE, HUGE);
        assert!(given.0.is_empty());
    }
}
