//! Disks: what a block device reads and writes.
//!
//! ```text
//!   Disk ──open_queue──▶ DiskQueue   one per worker thread: submit, commit, completion event, reap
//!    │                    ├ uring    io_uring, for raw disks
//!    │                    ├ inline   the queue's own thread, for raw disks in memory
//!    │                    └ pool     blocking calls on a few shared threads, for all else and where
//!    ▼                               io_uring is denied
//!   Backend: raw │ qcow2 │ overlay   one blocking operation on the image
//! ```

mod backend;
mod inline;
mod limits;
mod lock;
mod mirror;
mod open;
mod overlay;
mod pool;
mod qcow2;
mod raw;
mod uring;

use std::fs::File;
use std::io;

pub use backend::Backend;
pub use mirror::{Changes, Copier, Mirror, PIECE};
pub use open::{DiskOptions, Engine, Format, Lock, OverlayFile, Source, open, over};
pub use pool::Pool;
use vmm_sys_util::eventfd::EventFd;

use crate::Result;
use crate::memory::GuestBuffer;

/// The unit of the virtio block protocol and of every disk's length, in bytes.
pub const SECTOR: u64 = 512;

/// One operation on a disk; offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Fills the buffer from here.
    Read {
        /// Where to begin.
        offset: u64,
    },
    /// Writes the buffer here.
    Write {
        /// Where to begin.
        offset: u64,
        /// The data must be on stable storage when the operation completes.
        durable: bool,
    },
    /// Brings all writes completed so far to stable storage.
    Flush,
    /// The content of this range is not needed any more; a hint.
    Discard {
        /// Where the range begins.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// This range reads as zeroes from now on.
    WriteZeroes {
        /// Where the range begins.
        offset: u64,
        /// How long it is.
        len: u64,
        /// The space may be given back to the host.
        unmap: bool,
        /// It must be on stable storage when the operation completes.
        durable: bool,
    },
}

/// How the storage below likes to be accessed, in bytes. A hint to the guest: every sector can be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// What the storage writes at once without reading first; a power of two.
    pub physical: u32,
    /// Offset of the first physical block.
    pub alignment: u32,
    /// Smallest transfer that is efficient, 0 where not known.
    pub minimum: u32,
    /// Best transfer, 0 where not known.
    pub optimal: u32,
}

/// A disk, shared by all that work on it.
pub trait Disk: Send + Sync {
    /// Name for messages.
    fn name(&self) -> &str;
    /// Length in bytes, a multiple of [`SECTOR`].
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether it refuses what changes it.
    fn read_only(&self) -> bool;
    /// How it likes to be accessed.
    fn topology(&self) -> Topology;
    /// A queue of at most `depth` operations in flight.
    ///
    /// # Errors
    /// When the kernel has no ring or eventfd left.
    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>>;
    /// Makes the disk `len` bytes long, or with `None` looks how long its host object is now; gives the
    /// length. A disk does not shrink this way.
    ///
    /// # Errors
    /// When that length cannot be had; the old one stays.
    fn resize(&self, len: Option<u64>) -> Result<u64>;
    /// Takes the locks that [`open`] took again after [`Disk::unlock`].
    ///
    /// # Errors
    /// [`crate::Error::DiskLocked`] when somebody else has the disk.
    fn lock(&self) -> Result<()>;
    /// Brings everything to stable storage and releases the locks, so that another process, on another
    /// machine even, may take the disk over. Right only while nothing writes.
    ///
    /// # Errors
    /// When the storage fails; the locks are kept then.
    fn unlock(&self) -> Result<()>;
    /// Its files, opened as they are here, locks and all: the image, then the layer above it, where there is one.
    ///
    /// # Errors
    /// When there is no descriptor left.
    fn files(&self) -> Result<Vec<File>>;
    /// Puts what is only in memory into the files, for the process of this host that was given them: it has the locks,
    /// too, which stay when this disk goes. [`Disk::lock`] takes it back. Right only while nothing writes.
    ///
    /// # Errors
    /// When the storage fails.
    fn hand_over(&self) -> Result<()>;
}

/// A finished operation.
pub struct Completion {
    /// The tag it was submitted with.
    pub tag: u16,
    /// Its buffer, released by the kernel.
    pub buffer: GuestBuffer,
    /// Bytes moved; 0 for what moves none.
    pub result: io::Result<u32>,
}

/// Operations in flight on a disk, for one thread at a time.
///
/// Whoever drops it with operations in flight waits for them: the kernel may still access guest memory.
pub trait DiskQueue: Send {
    /// Takes an operation in; `tag` is the caller's, below the queue's depth and not in flight. It may start
    /// only at [`DiskQueue::commit`].
    ///
    /// # Errors
    /// When it was not taken in; it will not complete.
    fn submit(&mut self, tag: u16, op: DiskOp, buffer: GuestBuffer) -> io::Result<()>;
    /// Starts what was submitted. What finishes meanwhile is to be reaped after it: [`DiskQueue::completion`] may not
    /// tell of it.
    ///
    /// # Errors
    /// When the kernel cannot take more now; to be called again later, nothing is lost.
    fn commit(&mut self) -> io::Result<()>;
    /// An operation that has finished, if any.
    fn reap(&mut self) -> Option<Completion>;
    /// Readable when something finished since it was last read, and not within [`DiskQueue::commit`].
    fn completion(&self) -> &EventFd;
}

#[cfg(test)]
mod tests;
