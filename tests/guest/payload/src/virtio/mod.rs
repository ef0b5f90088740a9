//! The driver's side of virtio (version 1.2): a device, found on either transport, and its rings.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod ring;
pub mod rng;
pub mod vsock;

use crate::memory::Window;
use ring::Ring;

/// What went wrong, and a number that says more.
#[derive(Clone, Copy, Debug)]
pub struct Error(pub &'static str, pub u64);

pub type Result<T> = core::result::Result<T, Error>;

/// Device status (§2.1).
pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 64;

/// A device of today, not of the time before the standard (§6).
const VERSION_1: u64 = 1 << 32;

/// A device, wherever it was found.
pub struct Device {
    pub way: Way,
}

/// How its registers are reached.
pub enum Way {
    Mmio(mmio::Registers),
    Pci(pci::Function),
}

/// Does the same on either transport.
macro_rules! each {
    ($device:expr, $registers:ident => $act:expr) => {
        match &$device.way {
            Way::Mmio($registers) => $act,
            Way::Pci($registers) => $act,
        }
    };
}

impl Device {
    /// The first device of type `id` (§5): on the PCI bus where there is one, else on virtio-mmio.
    pub fn find(id: u32) -> Result<Device> {
        let way = match pci::present() {
            true => pci::Function::find(id).map(Way::Pci),
            false => mmio::Registers::find(id).map(Way::Mmio),
        };
        way.map(|way| Device { way })
            .ok_or(Error("no device of type", id.into()))
    }

    pub fn status(&self) -> u8 {
        each!(self, registers => registers.status())
    }

    /// Adds to the status.
    pub fn add_status(&self, status: u8) {
        each!(self, registers => registers.set_status(registers.status() | status));
    }

    /// Resets it, and waits until it is (§3.1.1).
    pub fn reset(&self) {
        each!(self, registers => registers.set_status(0));
        while self.status() != 0 {}
    }

    /// What it offers.
    pub fn features(&self) -> u64 {
        each!(self, registers => registers.features())
    }

    /// Resets it and agrees on those of `wanted` that it offers; gives them. Queues follow, then [`Device::start`].
    pub fn negotiate(&self, wanted: u64) -> Result<u64> {
        self.reset();
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        let features = self.features() & (wanted | VERSION_1);
        each!(self, registers => registers.set_features(features));
        self.add_status(FEATURES_OK);
        match self.status() & FEATURES_OK {
            0 => Err(Error("the device refuses the features", features)),
            _ => Ok(features),
        }
    }

    /// Sets up queue `index` with `size` entries at most.
    pub fn queue(&self, index: u16, size: u16) -> Result<Ring> {
        let max = each!(self, registers => registers.queue_max(index));
        if max == 0 {
            return Err(Error("there is no queue", index.into()));
        }
        let mut ring = Ring::new(index, size.min(max));
        let parts = [&ring.descriptors, &ring.available, &ring.used].map(Window::address);
        ring.doorbell = self.place_queue(index, ring.size, parts);
        Ok(ring)
    }

    /// From now on it works.
    pub fn start(&self) {
        self.add_status(DRIVER_OK);
    }

    /// Rings the doorbell of `ring`.
    pub fn notify(&self, ring: &Ring) {
        self.ring(ring.index, ring.doorbell);
    }

    /// Rings a doorbell for queue `index`, whichever there are.
    pub fn ring(&self, index: u16, doorbell: u64) {
        each!(self, registers => registers.ring(index, doorbell));
    }

    /// Says that queue `index` lies at `parts`, whatever is there; gives its doorbell.
    pub fn place_queue(&self, index: u16, size: u16, parts: [u64; 3]) -> u64 {
        each!(self, registers => registers.place_queue(index, size, parts))
    }

    /// The largest size of queue `index`, 0 where there is none.
    pub fn queue_max(&self, index: u16) -> u16 {
        each!(self, registers => registers.queue_max(index))
    }

    /// Sets the status, whatever it was.
    pub fn set_status(&self, status: u8) {
        each!(self, registers => registers.set_status(status));
    }

    /// Asks for features, offered or not.
    pub fn set_features(&self, features: u64) {
        each!(self, registers => registers.set_features(features));
    }

    /// Why it interrupted, over virtio-mmio (1: a queue, 2: the configuration); that is settled then.
    pub fn acknowledge(&self) -> u32 {
        each!(self, registers => registers.acknowledge())
    }

    /// Its own configuration.
    pub fn config(&self) -> Window {
        each!(self, registers => registers.config())
    }

    /// Makes `buffers` available in `ring` and rings.
    pub fn offer(&self, ring: &mut Ring, buffers: &[ring::Buffer]) -> Result<u16> {
        let head = ring.offer(buffers)?;
        self.notify(ring);
        Ok(head)
    }
}
