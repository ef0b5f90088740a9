//! A split queue (§2.7) with one chain in it at a time.

use core::hint::spin_loop;
use core::sync::atomic::{Ordering, fence};

use crate::machine::heap;
use crate::machine::window::Window;

/// Entries: a header, three pieces of data and a status are five.
pub const SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// "Do not interrupt" (§2.7.6).
const NO_INTERRUPT: u16 = 1;

/// A piece of memory for the device.
pub struct Buffer {
    /// Where.
    pub address: u64,
    /// How many bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// The queue, its three parts in one page.
pub struct Queue {
    descriptors: Window,
    available: Window,
    used: Window,
    done: u16,
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Queue {
        let page = heap::take_pages(1);
        let queue = Queue {
            descriptors: page.part(0, 0x100),
            available: page.part(0x100, 0x100),
            used: page.part(0x200, 0x200),
            done: 0,
        };
        queue.available.set(0, NO_INTERRUPT);
        queue
    }

    /// Addresses of descriptors, of what is available and of what is used.
    pub fn addresses(&self) -> [u64; 3] {
        [&self.descriptors, &self.available, &self.used].map(Window::address)
    }

    /// Offers a chain of at most [`SIZE`] buffers, rings by `notify`, and waits until the device is done with it.
    pub fn ask(&mut self, buffers: &[Buffer], notify: impl FnOnce()) {
        assert!(buffers.len() <= usize::from(SIZE));
        let mut next = 0u16;
        for buffer in buffers {
            let at = 16 * u64::from(next);
            next += 1;
            let more = if usize::from(next) < buffers.len() {
                NEXT
            } else {
                0
            };
            self.descriptors.set(at, buffer.address);
            self.descriptors.set(at + 8, buffer.len);
            self.descriptors
                .set(at + 12, more | if buffer.writable { WRITE } else { 0 });
            self.descriptors.set(at + 14, next);
        }
        self.available.set(4 + 2 * u64::from(self.done % SIZE), 0u16);
        self.done = self.done.wrapping_add(1);
        // The device must see the chain before the index, and what it wrote is not looked at before it is done.
        fence(Ordering::SeqCst);
        self.available.set(2, self.done);
        fence(Ordering::SeqCst);
        notify();
        while self.used.get::<u16>(2) != self.done {
            spin_loop();
        }
        fence(Ordering::SeqCst);
    }
}
