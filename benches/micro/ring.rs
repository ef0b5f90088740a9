//! A ring as a driver lays it out, offered again and again.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each benchmark uses its part"
)]

use std::sync::Arc;

use nacelle_devices::irq::{Interrupt, Vector};
use nacelle_devices::memory::Memory;
use nacelle_devices::virtio::ActiveQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of the ring.
pub const SIZE: u16 = 256;
/// Where the first buffer lies.
pub const BUFFERS: u64 = 0x10_0000;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Nobody is interrupted.
pub struct Silent;

impl Interrupt for Silent {
    fn trigger(&self, _vector: Vector) -> std::io::Result<()> {
        Ok(())
    }
    fn needs_reset(&self) {}
}

/// A queue whose chains all have these parts (length, whether the device writes); its buffers lie one after the other.
pub fn queue(parts: &[(u32, bool)]) -> (Arc<Memory>, ActiveQueue) {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap());
    let mut buffer = BUFFERS;
    for index in 0..SIZE {
        let last = index as usize % parts.len() == parts.len() - 1;
        let (len, write) = parts[index as usize % parts.len()];
        let flags = if last { 0 } else { NEXT } | if write { WRITE } else { 0 };
        let at = TABLE + 16 * u64::from(index);
        memory.write_obj(buffer, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(index + 1, GuestAddress(at + 14)).unwrap();
        buffer += u64::from(len).next_multiple_of(4096);
    }
    let chains = SIZE / parts.len() as u16;
    for entry in 0..chains {
        let at = AVAILABLE + 4 + 2 * u64::from(entry);
        memory
            .write_obj(entry * parts.len() as u16, GuestAddress(at))
            .unwrap();
    }
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_desc_table_address(Some(TABLE as u32), None);
    queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
    queue.set_used_ring_address(Some(USED as u32), None);
    queue.set_event_idx(true);
    queue.set_ready(true);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    (
        memory,
        ActiveQueue {
            index: 0,
            queue,
            kick,
        },
    )
}

/// Offers the first `count` chains, as if none had been before.
pub fn offer(memory: &Memory, queue: &mut ActiveQueue, count: u16) {
    memory.write_obj(count, GuestAddress(AVAILABLE + 2)).unwrap();
    queue.queue.set_next_avail(0);
    queue.queue.set_next_used(0);
}
