//! Entropy device (virtio 1.2, §5.4).

use super::ring::{Buffer, Ring};
use super::{Device, Result};
use crate::cpu;
use crate::memory::Window;

pub const DEVICE_ID: u32 = 4;

/// A source of entropy.
pub struct Rng {
    pub device: Device,
    pub ring: Ring,
}

impl Rng {
    pub fn new(device: Device) -> Result<Rng> {
        device.negotiate(0)?;
        let ring = device.queue(0, 16)?;
        device.start();
        Ok(Rng { device, ring })
    }

    /// Has some of `memory` filled; gives how much.
    pub fn fill(&mut self, memory: &Window) -> Result<u32> {
        self.device.offer(&mut self.ring, &[Buffer::write(memory)])?;
        Ok(cpu::wait(|| self.ring.take_used()).len)
    }
}
