//! The launcher's own memory, which counts times the number of machines.

use std::ffi::c_void;
use std::fs;

/// Gives the host what reading, fetching and building took and a running machine does not need: free heap, and the
/// pages of code and constants that were used once. What is needed again is mapped again from the page cache.
#[expect(
    unsafe_code,
    reason = "neither the allocator nor the kernel offers it another way"
)]
pub(crate) fn give_back() {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in of_files(&maps) {
        // SAFETY: the range is a mapping of a file that nobody may write and that has no page of its own: every
        // page of it comes back from the file as it was.
        unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    }
    drop(maps);
    // SAFETY: it touches only what the allocator holds free, and may be called at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Address and length of the mappings in `/proc/self/smaps` that are files throughout: read-only, and without a page
/// that was written before it became so, as relocated data has.
fn of_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        match (fields.next(), fields.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(candidate.take()),
            (Some(range), Some("r--p" | "r-xp"))
                if fields.nth(3).is_some_and(|file| file.starts_with('/')) =>
            {
                candidate = span(range);
            }
            (Some(range), Some(_)) if span(range).is_some() => candidate = None,
            _ => {}
        }
    }
    found
}

/// `START-END` in hexadecimal as start and length.
fn span(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let (start, end) = (
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    );
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_file_itself_is_given_back() {
        let smaps = "\
1000-3000 r-xp 00001000 08:01 42    /usr/bin/nacelle
Anonymous:             0 kB
3000-4000 r--p 00001000 08:01 42    /usr/bin/nacelle
Anonymous:             4 kB
4000-5000 rw-p 00001000 08:01 42    /usr/bin/nacelle
Anonymous:             0 kB
5000-6000 r-xp 00000000 00:00 0     [vdso]
Anonymous:             0 kB
6000-7000 r--p 00000000 00:00 0
Anonymous:             0 kB
7000-a000 r--p 00000000 08:01 43    /usr/lib/libc.so.6
Rss:                   8 kB
Anonymous:             0 kB
";
        assert_eq!(of_files(smaps), [(0x1000, 0x2000), (0x7000, 0x3000)]);
    }

    #[test]
    fn a_process_goes_on_after_it() {
        let text = "kept".repeat(1000);
        assert!(!of_files(&fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
        give_back();
        assert_eq!(text, "kept".repeat(1000));
    }
}
