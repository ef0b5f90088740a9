//! The heap: memory from the end of the firmware to where kernels begin. Blocks of powers of two; a freed block is
//! kept for the next of its size.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

use super::window::Window;

/// Where the heap begins: link.ld sees to it that the firmware ends below.
const START: usize = 2 << 20;
/// Where it ends, and kernels may lie.
pub const END: usize = 16 << 20;
/// The smallest block, 2^4 bytes, which every alignment asked for so far divides.
const SMALLEST: u32 = 4;
const SIZES: usize = 28;

struct Heap(UnsafeCell<State>);

struct State {
    next: usize,
    /// The first free block of each size, which holds the address of the next.
    free: [*mut u8; SIZES],
}

// SAFETY: one processor runs the firmware, and nothing interrupts it.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State {
    next: START,
    free: [ptr::null_mut(); SIZES],
}));

/// The power of two, as its exponent, in which `layout` fits.
fn order(layout: &Layout) -> u32 {
    let size = layout.size().max(layout.align()).max(1 << SMALLEST);
    size.next_power_of_two().trailing_zeros()
}

// SAFETY: blocks do not overlap: they are cut from a range that only grows, and given out again only once freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let order = order(&layout);
        // SAFETY: there is one processor, and `alloc` does not call itself.
        let state = unsafe { &mut *self.0.get() };
        let Some(free) = state.free.get_mut((order - SMALLEST) as usize) else {
            return ptr::null_mut();
        };
        if !free.is_null() {
            let block = *free;
            // SAFETY: a free block holds the address of the next one.
            *free = unsafe { block.cast::<*mut u8>().read() };
            return block;
        }
        // What is large only has the alignment of a page: a 1 MiB buffer need not begin at a multiple of 1 MiB.
        let align = layout.align().max((1 << order).min(4096));
        let start = state.next.next_multiple_of(align);
        match start.checked_add(1 << order) {
            Some(end) if end <= END => {
                state.next = end;
                start as *mut u8
            }
            _ => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`; the block is the caller's no more, and has room for an address.
        unsafe {
            let state = &mut *self.0.get();
            if let Some(free) = state.free.get_mut((order(&layout) - SMALLEST) as usize) {
                block.cast::<*mut u8>().write(*free);
                *free = block;
            }
        }
    }
}

/// Takes `pages` zeroed pages that are never given back, for page tables and rings.
pub fn take_pages(pages: usize) -> Window {
    let bytes = alloc::vec![0u8; pages * 4096 + 4096].leak();
    let base = (bytes.as_ptr() as u64).next_multiple_of(4096);
    // SAFETY: `leak` leaves the block to us, and its slice ends here.
    unsafe { Window::new(base, pages as u64 * 4096) }
}
