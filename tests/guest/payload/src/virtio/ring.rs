//! A split ring (virtio 1.2, §2.7) as the driver sees it.

use core::sync::atomic::{Ordering, fence};

use super::{Error, Result};
use crate::memory::{self, Window};

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A piece of memory for the device.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

impl Buffer {
    /// For the device to read.
    pub fn read(memory: &Window) -> Buffer {
        Buffer {
            address: memory.address(),
            len: memory.len() as u32,
            writable: false,
        }
    }

    /// For the device to write.
    pub fn write(memory: &Window) -> Buffer {
        Buffer {
            writable: true,
            ..Buffer::read(memory)
        }
    }
}

/// What the device has done with a chain.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u16,
    /// Bytes that it wrote.
    pub len: u32,
}

/// A ring, and which of its descriptors are free: those are chained.
pub struct Ring {
    pub index: u16,
    pub size: u16,
    pub descriptors: Window,
    pub available: Window,
    pub used: Window,
    /// Where the transport rings for it.
    pub doorbell: u64,
    free: u16,
    first_free: u16,
    next_available: u16,
    next_used: u16,
}

impl Ring {
    /// An empty ring of `size` entries, a power of two up to 256.
    pub fn new(index: u16, size: u16) -> Ring {
        let entries = u64::from(size);
        let memory = memory::take(3 * memory::PAGE);
        let ring = Ring {
            index,
            size,
            descriptors: memory.part(0, 16 * entries),
            available: memory.part(memory::PAGE, 6 + 2 * entries),
            used: memory.part(2 * memory::PAGE, 6 + 8 * entries),
            doorbell: 0,
            free: size,
            first_free: 0,
            next_available: 0,
            next_used: 0,
        };
        for i in 0..size {
            ring.set_descriptor(i, 0, 0, 0, (i + 1) % size);
        }
        ring
    }

    /// Writes one descriptor as it is.
    pub fn set_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = 16 * u64::from(index);
        self.descriptors.set(at, address);
        self.descriptors.set(at + 8, len);
        self.descriptors.set(at + 12, flags);
        self.descriptors.set(at + 14, next);
    }

    fn next(&self, index: u16) -> u16 {
        self.descriptors.get(16 * u64::from(index) + 14)
    }

    /// The first descriptor of the next chain.
    pub fn next_head(&self) -> u16 {
        self.first_free
    }

    /// How many descriptors are free.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// Makes a chain of `buffers` available; gives its head. The doorbell is the device's.
    pub fn offer(&mut self, buffers: &[Buffer]) -> Result<u16> {
        let count = buffers.len() as u16;
        if count == 0 || count > self.free {
            return Err(Error("no room in the ring for descriptors", count.into()));
        }
        let head = self.first_free;
        let mut index = head;
        for (i, buffer) in (1..).zip(buffers) {
            let next = self.next(index);
            let flags = if i < count { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
            self.set_descriptor(index, buffer.address, buffer.len, flags, next);
            index = next;
        }
        self.first_free = index;
        self.free -= count;
        self.make_available(head);
        Ok(head)
    }

    /// Makes the chain at `head` available, whatever it is.
    pub fn make_available(&mut self, head: u16) {
        self.available
            .set(4 + 2 * u64::from(self.next_available % self.size), head);
        self.next_available = self.next_available.wrapping_add(1);
        // The device must see the entry before the index, and we must look at its flags after that.
        fence(Ordering::SeqCst);
        self.available.set(2, self.next_available);
        fence(Ordering::SeqCst);
    }

    /// The next chain that the device is done with, if there is one; its descriptors are free again.
    pub fn take_used(&mut self) -> Option<Used> {
        let index: u16 = self.used.get(2);
        if index == self.next_used {
            return None;
        }
        fence(Ordering::SeqCst);
        let at = 4 + 8 * u64::from(self.next_used % self.size);
        let used = Used {
            head: self.used.get::<u32>(at) as u16,
            len: self.used.get(at + 4),
        };
        self.next_used = self.next_used.wrapping_add(1);
        let mut last = used.head;
        self.free += 1;
        while self.descriptors.get::<u16>(16 * u64::from(last) + 12) & NEXT != 0 {
            last = self.next(last);
            self.free += 1;
        }
        self.descriptors.set(16 * u64::from(last) + 14, self.first_free);
        self.first_free = used.head;
        Some(used)
    }
}
