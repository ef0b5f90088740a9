//! Virtio and platform devices for virtual machine monitors.
//!
//! The crate knows neither a hypervisor nor an async runtime: a device reaches the guest through guest
//! memory ([`memory`]), an interrupt ([`irq`]) and the address ranges it is given on a [`bus`]; it works on
//! an I/O thread ([`worker`]) that owns what it serves.
//!
//! Where to look:
//! - [`virtio`]: what a virtio device is, and the devices;
//! - [`disk`]: what a block device reads and writes: raw, qcow2, copy-on-write;
//! - [`transport`]: how a driver reaches one (virtio-mmio, virtio-pci);
//! - [`pci`]: the PCI bus: configuration space, BARs, MSI-X, slots;
//! - [`platform`]: what a PC has besides (serial line, clock, power button);
//! - [`state`]: all that a device saves, in one reviewed file.
#![deny(unsafe_code)]

pub mod bus;
pub mod complaint;
#[cfg(test)]
mod conformance;
pub mod disk;
#[cfg(test)]
mod driver;
pub mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod irq;
pub mod memory;
pub mod net;
pub mod pci;
pub mod platform;
pub mod ratelimit;
pub mod state;
pub mod transport;
pub mod vhost;
pub mod virtio;
pub mod worker;

pub use error::{Error, Result};
