//! A chain of descriptors that was taken from the ring before and is read from guest memory again.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;

/// Bytes of a descriptor (virtio 1.2, §2.7.5).
const DESCRIPTOR: u32 = 16;

/// The descriptors of a chain, as [`super::Chain`] gives them for one that the driver has just offered. It ends at
/// what is malformed, and after as many descriptors as its table has: the driver may have changed it meanwhile.
pub struct ChainAgain {
    memory: Arc<Memory>,
    table: GuestAddress,
    /// Descriptors in the table.
    size: u16,
    /// Which one is next, and how many more there may be.
    next: u16,
    left: u16,
    indirect: bool,
}

impl ChainAgain {
    pub(super) fn new(queue: &Queue, memory: Arc<Memory>, head: u16) -> Self {
        ChainAgain {
            memory,
            table: GuestAddress(queue.desc_table()),
            size: queue.size(),
            next: head,
            left: queue.size(),
            indirect: false,
        }
    }

    fn read(&self) -> Option<Descriptor> {
        if self.left == 0 || self.next >= self.size {
            return None;
        }
        let offset = u64::from(self.next) * u64::from(DESCRIPTOR);
        let at = self.table.0.checked_add(offset)?;
        self.memory.read_obj(GuestAddress(at)).ok()
    }

    /// Goes on in the table that `descriptor` refers to (§2.7.5.3): of whole descriptors, and only once.
    fn enter(&mut self, descriptor: &Descriptor) -> Option<()> {
        let len = descriptor.len();
        if self.indirect || !len.is_multiple_of(DESCRIPTOR) {
            return None;
        }
        self.size = u16::try_from(len / DESCRIPTOR).ok()?;
        self.table = descriptor.addr();
        self.next = 0;
        self.left = self.size;
        self.indirect = true;
        Some(())
    }
}

impl Iterator for ChainAgain {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(&descriptor)?;
            descriptor = self.read()?;
        }
        if descriptor.refers_to_indirect_table() {
            return None;
        }
        self.left = match descriptor.has_next() {
            true => self.left - 1,
            false => 0,
        };
        self.next = descriptor.next();
        Some(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::QueueOwnedT;

    use super::*;

    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;

    /// Descriptors of the table by index: address, length, flags, next.
    type Table<'a> = &'a [(u64, u32, u16, u16)];

    #[test]
    fn it_is_read_as_the_ring_read_it_whatever_the_driver_made_of_it() {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let put = |base: u64, table: Table| {
            for (i, &(address, len, flags, next)) in (0..).zip(table) {
                let descriptor = Descriptor::new(address, len, flags, next);
                memory.write_obj(descriptor, GuestAddress(base + 16 * i)).unwrap();
            }
        };
        let tables: [Table; 8] = [
            &[(0x5000, 16, NEXT, 1), (0x6000, 512, NEXT, 2), (0x7000, 1, 0, 0)],
            // A loop, a next that is none, an address that wraps.
            &[(0x5000, 16, NEXT, 0)],
            &[(0x5000, 16, NEXT, 4)],
            &[(0x5000, 16, NEXT, 0xffff)],
            // Through another table; one of half a descriptor, one outside memory, one within itself.
            &[(0x5000, 16, NEXT, 1), (0x8000, 48, INDIRECT, 0)],
            &[(0x8000, 47, INDIRECT, 0)],
            &[(u64::MAX - 15, 48, INDIRECT, 0)],
            &[(0x1000, 16, INDIRECT, 0)],
        ];
        put(0x8000, &[(0x5000, 16, NEXT, 2), (0, 0, 0, 0), (0x7000, 1, 0, 0)]);
        for (row, table) in tables.into_iter().enumerate() {
            put(0x1000, &[(0, 0, 0, 0); 4]);
            put(0x1000, table);
            memory.write_obj([0u16, 1, 0, 0], GuestAddress(0x2000)).unwrap();
            let mut queue = Queue::new(4).unwrap();
            queue.set_desc_table_address(Some(0x1000), None);
            queue.set_avail_ring_address(Some(0x2000), None);
            queue.set_used_ring_address(Some(0x3000), None);
            queue.set_ready(true);

            let plain = |descriptor: Descriptor| (descriptor.addr().0, descriptor.len(), descriptor.flags());
            let offered = queue.iter(Arc::clone(&memory)).unwrap().next().unwrap();
            let offered: Vec<_> = offered.map(plain).collect();
            let again = ChainAgain::new(&queue, Arc::clone(&memory), 0);
            let again: Vec<_> = again.map(plain).collect();

            assert_eq!(again, offered, "row {row}");
            assert_eq!(ChainAgain::new(&queue, Arc::clone(&memory), 4).count(), 0);
        }
    }
}
