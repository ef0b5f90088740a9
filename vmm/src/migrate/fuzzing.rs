//! What the fuzz targets in `fuzz/` reach of a migration that is nobody else's.

use std::time::Duration;

use nacelle_devices::disk::Disk;
use nacelle_devices::memory::Memory;

use super::connection::{Cancel, Connection, Stream};
use super::disks::Receiving;
use super::lazy::{Lazy, hear_missing};
use super::packing::{Compression, Packing};
use super::pages::Sender;
use super::wire::Kind;
use crate::Result;
use crate::memory::dirty::Pages;

/// Disks that come.
#[derive(Default)]
pub struct Disks(Receiving);

impl Disks {
    /// One more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, disk: &dyn Disk) -> Result<()> {
        self.0.add("disk", disk)
    }

    /// Does what a Disk frame says.
    ///
    /// # Errors
    /// When that cannot be, or the storage fails.
    pub fn take(&mut self, flags: u16, payload: &[u8]) -> Result<()> {
        self.0.take(flags, payload)
    }
}

fn connection(stream: Box<dyn Stream>) -> Connection {
    Connection::new(stream, Cancel::new(), Duration::ZERO)
}

/// Which pages of `memory` a list of Missing frames names.
///
/// # Errors
/// When it is not such a list.
pub fn missing(stream: Box<dyn Stream>, memory: &Memory) -> Result<Pages> {
    hear_missing(&mut connection(stream), memory)
}

/// Answers Fault frames with pages of `memory`.
///
/// # Errors
/// When something else comes.
pub fn serve(stream: Box<dyn Stream>, memory: &Memory) -> Result<()> {
    let packing = Packing::new(Compression::Auto);
    super::serve::answer(&mut Sender::new(connection(stream), packing), memory)
}

/// Memory of which pages are missing.
pub struct Arriving(Lazy);

impl Arriving {
    /// These pages of `memory`, which forgets them.
    ///
    /// # Errors
    /// When the host does not let this process answer page faults.
    pub fn new(memory: &Memory, missing: Pages) -> Result<Arriving> {
        Lazy::new(memory, missing).map(Arriving)
    }

    /// Does what a frame says if it brings pages; whether it does.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn take(&self, kind: Kind, flags: u16, payload: &[u8]) -> Result<bool> {
        self.0.take(kind, flags, payload)
    }

    /// What is missing now is zero.
    pub fn let_go(&self) {
        self.0.let_go();
    }
}
