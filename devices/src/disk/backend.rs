//! An image format: one operation at a time on the calling thread, from as many threads as there are.

use std::fs::File;
use std::io;

use super::Topology;
use super::{DiskOp, SECTOR};
use crate::Result;
use crate::memory::GuestBuffer;

/// What an image format does; [`super::Disk`] and its queues are built on it.
pub trait Backend: Send + Sync {
    /// Name for messages.
    fn name(&self) -> &str;
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Whether it refuses what changes it.
    fn read_only(&self) -> bool;
    /// See [`super::Disk::topology`].
    fn topology(&self) -> Topology;
    /// Does `op` and gives the number of bytes moved. The caller has checked the range against `size`.
    ///
    /// # Errors
    /// When the storage fails; how much was done is not known then.
    fn execute(&self, op: DiskOp, buffer: &GuestBuffer) -> io::Result<u32>;
    /// Fills `data` from `offset`, for a layer above.
    ///
    /// # Errors
    /// When the storage fails or ends before.
    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// See [`super::Disk::resize`].
    ///
    /// # Errors
    /// When that length cannot be had.
    fn resize(&self, len: Option<u64>) -> Result<u64>;
    /// See [`super::Disk::lock`].
    ///
    /// # Errors
    /// When somebody else has it.
    fn lock(&self) -> Result<()>;
    /// See [`super::Disk::unlock`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn unlock(&self) -> Result<()>;
    /// See [`super::Disk::files`].
    ///
    /// # Errors
    /// When there is no descriptor left.
    fn files(&self) -> Result<Vec<File>>;
    /// See [`super::Disk::hand_over`].
    ///
    /// # Errors
    /// When the storage fails.
    fn hand_over(&self) -> Result<()>;
}

/// `len` cut to whole sectors: what lies behind the last cannot be addressed by a guest.
pub(super) fn whole_sectors(name: &str, len: u64) -> u64 {
    let rest = len % SECTOR;
    if rest != 0 {
        log::warn!("disk {name}: the last {rest} bytes are no whole sector and stay unused");
    }
    len - rest
}

/// Guest memory that went away under an operation, as the operating system would put it.
pub(super) fn gone(error: vm_memory::GuestMemoryError) -> io::Error {
    io::Error::other(error)
}
