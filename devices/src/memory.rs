//! Guest memory as devices see it, and the owned range that the kernel may read or write meanwhile.
#![expect(unsafe_code, reason = "iovecs hold raw pointers into guest memory")]

use std::sync::Arc;

use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, VolatileSlice,
};

/// Guest memory with the dirty bitmap that migration reads.
pub type Memory = GuestMemoryMmap<AtomicBitmap>;
/// Guest memory as devices hold it: a hot-plug swaps the map under them.
pub type SharedMemory = GuestMemoryAtomic<Memory>;
/// A contiguous piece of guest memory.
pub type Slice<'a> = VolatileSlice<'a, BS<'a, AtomicBitmap>>;

/// Ranges of guest memory that the kernel may access while an operation is in flight.
///
/// It keeps the map alive, so a buffer may outlive a hot-plug that removes its memory from the guest.
pub struct GuestBuffer {
    memory: Arc<Memory>,
    ranges: Vec<(GuestAddress, usize)>,
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers in `iovecs` lie in mappings that `memory` keeps alive; guest memory may be accessed
// from any thread, and nothing here is tied to the thread that made it.
unsafe impl Send for GuestBuffer {}

impl GuestBuffer {
    /// The buffer made of `ranges`, in order.
    ///
    /// # Errors
    /// When a range does not lie in guest memory.
    pub fn new(memory: Arc<Memory>, ranges: Vec<(GuestAddress, usize)>) -> Result<Self, GuestMemoryError> {
        let mut iovecs = Vec::with_capacity(ranges.len());
        for &(address, len) in &ranges {
            for slice in memory.get_slices(address, len) {
                let slice = slice?;
                iovecs.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Ok(GuestBuffer {
            memory,
            ranges,
            iovecs,
        })
    }

    /// Where the buffer lies in this process, for `readv`, `writev` and io_uring. Valid while `self` is.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|&(_, len)| len).sum()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from `offset` on, `len` of them or as many as there are.
    ///
    /// # Errors
    /// When guest memory went away.
    pub fn part(&self, offset: usize, len: usize) -> Result<GuestBuffer, GuestMemoryError> {
        let (mut skip, mut left) = (offset, len);
        let mut ranges = Vec::new();
        for &(address, size) in &self.ranges {
            let before = skip.min(size);
            let here = (size - before).min(left);
            if here > 0 {
                ranges.push((GuestAddress(address.0 + before as u64), here));
            }
            skip -= before;
            left -= here;
        }
        GuestBuffer::new(Arc::clone(&self.memory), ranges)
    }

    /// The buffer as slices of guest memory, for libraries that know `vm-memory`.
    ///
    /// # Errors
    /// When guest memory went away.
    pub fn slices(&self) -> Result<Vec<Slice<'_>>, GuestMemoryError> {
        let mut slices = Vec::with_capacity(self.iovecs.len());
        for &(address, len) in &self.ranges {
            for slice in self.memory.get_slices(address, len) {
                slices.push(slice?);
            }
        }
        Ok(slices)
    }

    /// Says that the kernel wrote the first `len` bytes: it bypasses the dirty bitmap, we must not.
    pub fn mark_written(&self, len: usize) {
        let mut left = len;
        for &(address, size) in &self.ranges {
            let mut done = 0;
            let part = size.min(left);
            left -= part;
            while done < part {
                let Some((region, offset)) =
                    self.memory.to_region_addr(GuestAddress(address.0 + done as u64))
                else {
                    return;
                };
                let offset = offset.0 as usize;
                let here = (part - done).min(region.len() as usize - offset);
                region.bitmap().mark_dirty(offset, here);
                done += here;
            }
        }
    }

    /// Copies `data` to the start of the buffer and marks it; gives how much fitted.
    ///
    /// # Errors
    /// When guest memory went away.
    pub fn write(&self, data: &[u8]) -> Result<usize, GuestMemoryError> {
        let mut left = data;
        for &(address, len) in &self.ranges {
            let (now, later) = left.split_at(len.min(left.len()));
            self.memory.write_slice(now, address)?;
            left = later;
        }
        Ok(data.len() - left.len())
    }

    /// Fills the whole buffer with `value` and marks it.
    ///
    /// # Errors
    /// When guest memory went away.
    pub fn fill(&self, value: u8) -> Result<(), GuestMemoryError> {
        let page = [value; 4096];
        for &(address, len) in &self.ranges {
            for done in (0..len).step_by(page.len()) {
                let piece = page.get(..page.len().min(len - done)).unwrap_or_default();
                self.memory
                    .write_slice(piece, GuestAddress(address.0 + done as u64))?;
            }
        }
        Ok(())
    }

    /// Copies the start of the buffer to `data`; gives how much there was.
    ///
    /// # Errors
    /// When guest memory went away.
    pub fn read(&self, data: &mut [u8]) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for &(address, len) in &self.ranges {
            let end = (done + len).min(data.len());
            let Some(part) = data.get_mut(done..end) else {
                break;
            };
            self.memory.read_slice(part, address)?;
            done = end;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000)]).unwrap())
    }

    #[test]
    fn a_range_across_two_regions_is_written_read_and_marked() {
        let memory = memory();
        let buffer = GuestBuffer::new(
            memory.clone(),
            vec![(GuestAddress(0x3ffe), 4), (GuestAddress(0x100), 2)],
        )
        .unwrap();

        assert_eq!(buffer.write(b"abcdefgh").unwrap(), 6);

        assert_eq!(buffer.iovecs().len(), 3);
        let mut data = [0; 8];
        assert_eq!(buffer.read(&mut data).unwrap(), 6);
        assert_eq!(&data, b"abcdef\0\0");
    }

    #[test]
    fn what_the_kernel_wrote_is_dirty_and_the_rest_is_not() {
        let memory = memory();
        let buffer = GuestBuffer::new(memory.clone(), vec![(GuestAddress(0x3000), 0x3000)]).unwrap();

        buffer.mark_written(0x1001);

        let dirty = |address| {
            let (region, offset) = memory.to_region_addr(GuestAddress(address)).unwrap();
            region.bitmap().dirty_at(offset.0 as usize)
        };
        assert!(dirty(0x3000) && dirty(0x4000));
        assert!(!dirty(0x2000) && !dirty(0x5000));
    }

    #[test]
    fn a_part_is_what_lies_between_its_ends() {
        let whole =
            GuestBuffer::new(memory(), vec![(GuestAddress(0x10), 4), (GuestAddress(0x100), 4)]).unwrap();
        whole.write(b"abcdefgh").unwrap();
        for (offset, len, expected) in [
            (0, 8, &b"abcdefgh"[..]),
            (3, 2, b"de"),
            (4, 9, b"efgh"),
            (5, 1, b"f"),
            (8, 1, b""),
        ] {
            let part = whole.part(offset, len).unwrap();
            let mut data = vec![0; part.len()];
            part.read(&mut data).unwrap();
            assert_eq!(data, expected, "{offset}+{len}");
        }
        whole.part(3, 2).unwrap().fill(b'-').unwrap();
        let mut data = [0; 8];
        whole.read(&mut data).unwrap();
        assert_eq!(&data, b"abc--fgh");
    }

    #[test]
    fn a_range_outside_memory_is_refused() {
        assert!(GuestBuffer::new(memory(), vec![(GuestAddress(0x7fff), 2)]).is_err());
        assert!(GuestBuffer::new(memory(), vec![(GuestAddress(u64::MAX), 2)]).is_err());
    }
}
