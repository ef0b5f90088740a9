//! Gives pages of guest memory back to the host.
#![expect(
    unsafe_code,
    reason = "madvise and fstatfs have no safe face in our libraries"
)]

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::pages::PAGE;

/// Regions of our guest memory.
pub type Region = GuestRegionMmap<AtomicBitmap>;

/// Size of the pages that the host has behind `region`: what it can take back at least.
pub fn host_page_size(region: &Region) -> u64 {
    if region.flags() & libc::MAP_HUGETLB != 0 {
        return match region.flags() >> libc::MAP_HUGE_SHIFT & libc::MAP_HUGE_MASK {
            0 => 2 << 20,
            log2 => 1 << log2,
        };
    }
    let Some(file) = region.file_offset() else {
        return PAGE;
    };
    // SAFETY: all-zero bytes are a valid `statfs`.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open while `file` is borrowed, and `status` is writable and large enough.
    let done = unsafe { libc::fstatfs(file.file().as_raw_fd(), &mut status) };
    match done == 0 && status.f_type == libc::HUGETLBFS_MAGIC {
        true => u64::try_from(status.f_bsize).unwrap_or(PAGE).max(PAGE),
        false => PAGE,
    }
}

/// Gives `len` bytes at `offset` of `region` back; the guest reads zeroes there afterwards, or what a private
/// mapping's file holds.
///
/// # Errors
/// When the range is not in the region or the kernel refuses; nothing is lost then.
pub fn discard(region: &Region, offset: u64, len: u64) -> io::Result<()> {
    let outside = || io::Error::from(io::ErrorKind::InvalidInput);
    let len = usize::try_from(len).map_err(|_| outside())?;
    let slice = region
        .get_slice(MemoryRegionAddress(offset), len)
        .map_err(|_| outside())?;
    // What is shared lives in its file: dropping our mapping of it would free nothing.
    let advice = match region.flags() & libc::MAP_SHARED != 0 {
        true => libc::MADV_REMOVE,
        false => libc::MADV_DONTNEED,
    };
    // SAFETY: `slice` says that these bytes lie in the mapping of `region`, which is borrowed. They are guest
    // memory: only reached by volatile accesses that expect any value at any time.
    match unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
