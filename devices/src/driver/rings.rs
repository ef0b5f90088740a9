//! Rings as a driver keeps them: what it offers, when it rings, how it hears of what was used (virtio 1.2, §2.7).

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::{Driver, EVENT_IDX, WAIT, eventually};

/// Descriptor flag: the device writes this buffer (virtio 1.2, §2.7.5).
pub const WRITE: u16 = 2;
pub const NEXT: u16 = 1;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// What a queue takes of memory.
pub(super) const SPACING: usize = 0x1_0000;
/// Room for the indirect table of each descriptor.
const INDIRECT_TABLE: u64 = 7 * 16;

/// One ring as the driver sees it.
pub(super) struct Ring {
    size: u16,
    next_descriptor: u16,
    avail: u16,
    /// As far as the device was told by the doorbell.
    rung: u16,
    used: u16,
}

impl Ring {
    pub(super) fn new(size: u16) -> Self {
        Ring {
            size,
            next_descriptor: 0,
            avail: 0,
            rung: 0,
            used: 0,
        }
    }
}

/// How a driver goes about what the specification leaves to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// Its chains lie in indirect tables (§2.7.5.3).
    pub indirect: bool,
    /// It rings only when the device asks for that, and sleeps until it is interrupted (§2.7.7, §2.7.10).
    pub polite: bool,
}

impl Driver {
    /// Where a queue lies: descriptors, then the available ring, the used ring, indirect tables.
    pub(super) fn base(queue: u16) -> u64 {
        SPACING as u64 * (u64::from(queue) + 1)
    }

    /// Writes one descriptor of a queue's table.
    pub fn descriptor(&self, queue: u16, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(Self::base(queue), index, address, len, flags, next);
    }

    /// Writes one descriptor of the table at `table`.
    pub fn descriptor_at(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut raw = address.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &raw);
    }

    /// Makes the descriptor `head` available, whatever it holds.
    pub fn make_available(&mut self, queue: u16, head: u16) {
        let ring = &mut self.rings[usize::from(queue)];
        let avail = Self::base(queue) + 0x4000;
        let entry = avail + 4 + 2 * u64::from(ring.avail % ring.size);
        self.memory
            .write_slice(&head.to_le_bytes(), GuestAddress(entry))
            .unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        self.memory
            .write_slice(&ring.avail.to_le_bytes(), GuestAddress(avail + 2))
            .unwrap();
    }

    /// Lets the available index lie.
    pub fn set_avail_index(&mut self, queue: u16, index: u16) {
        self.memory
            .write_slice(&index.to_le_bytes(), GuestAddress(Self::base(queue) + 0x4002))
            .unwrap();
    }

    /// Offers a chain of `(address, length, device writes)`; gives its head. Does not ring.
    pub fn offer(&mut self, queue: u16, buffers: &[(u64, u32, bool)]) -> u16 {
        let ring = &mut self.rings[usize::from(queue)];
        let size = ring.size;
        let head = ring.next_descriptor;
        let taken = if self.manners.indirect {
            1
        } else {
            buffers.len() as u16
        };
        ring.next_descriptor = (head + taken) % size;
        let (table, first, count) = match self.manners.indirect {
            true => (
                Self::base(queue) + 0x9000 + u64::from(head) * INDIRECT_TABLE,
                0,
                u16::MAX,
            ),
            false => (Self::base(queue), head, size),
        };
        for (i, &(address, len, write)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let index = (first + i as u16) % count;
            self.descriptor_at(table, index, address, len, flags, (index + 1) % count);
        }
        if self.manners.indirect {
            let len = 16 * buffers.len() as u32;
            assert!(u64::from(len) <= INDIRECT_TABLE);
            self.descriptor(queue, head, table, len, INDIRECT, 0);
        }
        self.make_available(queue, head);
        head
    }

    pub fn ring(&mut self, queue: u16) {
        let ring = &mut self.rings[usize::from(queue)];
        let (new, old) = (ring.avail, std::mem::replace(&mut ring.rung, ring.avail));
        let size = u64::from(ring.size);
        let used = Self::base(queue) + 0x8000;
        // The chain is on offer before we look whether the device wants to hear of it.
        fence(Ordering::SeqCst);
        let wanted = if self.features & EVENT_IDX != 0 {
            let event: u16 = self.number(used + 4 + 8 * size);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.number(used) & 1 == 0
        };
        if wanted || !self.manners.polite {
            self.write(0x50, u32::from(queue));
        }
    }

    /// What the device has written of each queue, as it lies in memory.
    pub fn used_rings(&self) -> Vec<Vec<u8>> {
        (0..self.queue_count())
            .map(|queue| self.get(Self::base(queue) + 0x8000, 4 + 8 * 256))
            .collect()
    }

    fn number(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Asks for an interrupt at the next used buffer.
    fn want_interrupt(&self, queue: u16) {
        let ring = &self.rings[usize::from(queue)];
        let avail = Self::base(queue) + 0x4000;
        self.put(avail + 4 + 2 * u64::from(ring.size), &ring.used.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// Asks for interrupts at used buffers, or for none; for a driver without EVENT_IDX (§2.7.7).
    pub fn want_interrupts(&self, queue: u16, wanted: bool) {
        self.put(Self::base(queue) + 0x4000, &u16::from(!wanted).to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// The next used entry `(head, written)` that is there already.
    pub fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let ring = &mut self.rings[usize::from(queue)];
        let used = Self::base(queue) + 0x8000;
        let index: u16 = self
            .memory
            .load(GuestAddress(used + 2), Ordering::Acquire)
            .unwrap();
        if index == ring.used {
            return None;
        }
        let entry = used + 4 + 8 * u64::from(ring.used % ring.size);
        ring.used = ring.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        Some((head as u16, len))
    }

    /// Waits for a used entry; the device has ten seconds.
    pub fn wait(&mut self, queue: u16) -> (u16, u32) {
        let until = std::time::Instant::now() + WAIT;
        loop {
            if let Some(used) = self.used(queue) {
                return used;
            }
            assert!(
                std::time::Instant::now() < until,
                "no used buffer in queue {queue}, status {:#x}",
                self.status()
            );
            if !self.manners.polite {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
            self.want_interrupt(queue);
            if let Some(used) = self.used(queue) {
                return used;
            }
            eventually("an interrupt", || self.interrupts() > 0);
        }
    }

    /// Offers, rings, waits; gives how much was written.
    pub fn request(&mut self, queue: u16, buffers: &[(u64, u32, bool)]) -> u32 {
        let head = self.offer(queue, buffers);
        self.ring(queue);
        let (used, len) = self.wait(queue);
        assert_eq!(used, head);
        len
    }
}
