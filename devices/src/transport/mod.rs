//! How a driver reaches a virtio device: the registers that virtio-mmio and virtio-pci share.
//!
//! [`RegisterFile`] holds the device and what the driver wrote about it; [`mmio`] and [`pci`] map addresses
//! onto it. Whoever owns one locks it for one access, and takes no other lock meanwhile.

pub mod mmio;
pub mod pci;
mod registers;

use std::sync::MutexGuard;

pub use registers::RegisterFile;

use crate::Result;
use crate::state::TransportState;

/// "No vector" of virtio-pci (virtio 1.2, §4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

/// Part of a queue's set-up, as both transports name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table.
    Descriptors,
    /// The available ring ("driver area").
    Available,
    /// The used ring ("device area").
    Used,
}

/// A virtio device behind a transport, as the owner of a machine sees it.
pub trait Transport: Send + Sync {
    /// The registers, locked.
    fn registers(&self) -> MutexGuard<'_, RegisterFile>;
    /// Brings device and transport back to how they were at power-on.
    fn reset(&self);
    /// All that a restored transport must know. Only right while paused.
    fn save(&self) -> TransportState;
    /// Takes up a saved state and stays paused.
    ///
    /// # Errors
    /// When the state is another transport's, or does not fit the device.
    fn restore(&self, state: TransportState) -> Result<()>;

    /// Holds the device still, as [`RegisterFile::pause`] says.
    ///
    /// # Errors
    /// When a worker of the device has ended.
    fn pause(&self) -> Result<()> {
        self.registers().pause()
    }

    /// Lets a paused device go on where it stood.
    ///
    /// # Errors
    /// When the device cannot start.
    fn resume(&self) -> Result<()> {
        self.registers().resume()
    }
}

#[cfg(test)]
mod tests;
