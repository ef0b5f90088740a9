//! The driver's side of virtio (version 1.2): disks, over either transport, without interrupts.

pub mod blk;
pub mod mmio;
pub mod pci;
pub mod queue;

use queue::Queue;

/// Type of a block device (§5.2).
pub const BLOCK: u32 = 2;
/// Device status (§2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// A device of today, not of the time before the standard (§6).
const VERSION_1: u64 = 1 << 32;

/// Registers of a device, whatever its transport.
pub trait Registers {
    /// Device status.
    fn status(&self) -> u8;
    /// Sets the device status; 0 resets the device.
    fn set_status(&self, status: u8);
    /// Features that it offers.
    fn features(&self) -> u64;
    /// Features that the driver takes.
    fn set_features(&self, features: u64);
    /// Most entries of queue 0.
    fn queue_max(&self) -> u16;
    /// Switches queue 0 on.
    fn set_queue(&self, queue: &Queue);
    /// Rings the doorbell of queue 0.
    fn notify(&self);
    /// A number in the device's own configuration.
    fn config(&self, offset: u64) -> u32;
}

/// Starts a device with one queue and those of `wanted` that it offers (§3.1.1); gives what was agreed.
pub fn start(device: &dyn Registers, wanted: u64) -> Option<(u64, Queue)> {
    device.set_status(0);
    while device.status() != 0 {}
    device.set_status(ACKNOWLEDGE | DRIVER);
    let features = device.features() & (wanted | VERSION_1);
    device.set_features(features);
    device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if device.status() & FEATURES_OK == 0 || device.queue_max() < queue::SIZE {
        return None;
    }
    let queue = Queue::new();
    device.set_queue(&queue);
    device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    Some((features, queue))
}

/// Resets a device, so that it touches no memory any more: a kernel is about to use it.
pub fn stop(device: &dyn Registers) {
    device.set_status(0);
    while device.status() != 0 {}
}
