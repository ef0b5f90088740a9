//! Block device (virtio 1.2, §5.2).

use super::ring::{Buffer, Ring};
use super::{Device, Error, Result};
use crate::cpu;
use crate::memory::{self, Window};

pub const DEVICE_ID: u32 = 2;
const QUEUE_SIZE: u16 = 128;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// Request types.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH_CACHE: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD_SECTORS: u32 = 11;
pub const ZERO_SECTORS: u32 = 13;

/// Each chain has its header and its status byte here, by its head.
const SLOT: u64 = 32;
const STATUS: u64 = 16;

/// A disk.
pub struct Blk {
    pub device: Device,
    pub ring: Ring,
    slots: Window,
}

impl Blk {
    /// Sets up the device's first queue.
    pub fn new(device: Device) -> Result<Blk> {
        device.negotiate(FLUSH | DISCARD | WRITE_ZEROES)?;
        let ring = device.queue(0, QUEUE_SIZE)?;
        device.start();
        let slots = memory::take(SLOT * u64::from(ring.size));
        Ok(Blk { device, ring, slots })
    }

    /// Length in sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.device.config().get(0)
    }

    /// Begins a request.
    pub fn submit(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Result<u16> {
        let slot = self.slots.part(SLOT * u64::from(self.ring.next_head()), SLOT);
        slot.set(0, kind);
        slot.set(4, 0u32);
        slot.set(8, sector);
        slot.set(STATUS, 0xffu8);
        let mut chain = [Buffer::read(&slot.part(0, 16)); 8];
        let end = data.len() + 1;
        let room = chain
            .get_mut(1..end)
            .ok_or(Error("too many buffers", data.len() as u64))?;
        room.copy_from_slice(data);
        let status = chain
            .get_mut(end)
            .ok_or(Error("too many buffers", data.len() as u64))?;
        *status = Buffer::write(&slot.part(STATUS, 1));
        self.device.offer(&mut self.ring, &chain[..=end])
    }

    /// A request that is done: its head and its status.
    pub fn complete(&mut self) -> Option<(u16, u8)> {
        let used = self.ring.take_used()?;
        Some((used.head, self.slots.get(SLOT * u64::from(used.head) + STATUS)))
    }

    /// A whole request; gives its status. Nothing else may be under way.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Result<u8> {
        let head = self.submit(kind, sector, data)?;
        match cpu::wait(|| self.complete()) {
            (done, status) if done == head => Ok(status),
            (other, _) => Err(Error("another request is done", other.into())),
        }
    }
}
