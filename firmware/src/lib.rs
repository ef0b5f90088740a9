//! What finds a kernel on a disk: partitions, file systems, boot entries, which of them boots, and where in memory it
//! goes. Nothing here touches the machine: a disk is something to read from, so all of it runs and is tested on any
//! host. The program around it (`main.rs`, `machine/`, `virtio/`) is the firmware of Nacelle's machines.
//!
//! A disk is hostile: what is read of it is checked, bounded, and refused with a reason.
#![no_std]

extern crate alloc;

pub mod boot;
pub mod bytes;
mod error;
pub mod fs;
pub mod io;
pub mod memory;
pub mod partitions;
#[cfg(test)]
mod testing;

pub use error::{Error, Result};
