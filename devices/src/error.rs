//! The crate's error: what failed, on which object. The cause is the `source`, never repeated in the text.

use std::io;

/// What can go wrong with a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The I/O thread could not be started.
    #[error("cannot start the I/O thread {name}")]
    Spawn {
        /// Name of the thread.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// An event loop refused; it only does when its descriptors are exhausted or it has ended.
    #[error("the I/O thread refused a request: {0:?}")]
    Loop(event_manager::Error),
    /// An address range cannot be given to a device.
    #[error("addresses {base:#x}..{end:#x} are empty or overlap {other}")]
    Range {
        /// First address.
        base: u64,
        /// Address after the last.
        end: u64,
        /// What is there already.
        other: String,
    },
    /// A virtqueue as the driver set it up cannot be used (virtio 1.2, §2.7).
    #[error("{device}: queue {index} does not lie in guest memory as it was set up")]
    Queue {
        /// The device.
        device: &'static str,
        /// Index of the queue.
        index: u16,
    },
    /// A device cannot be made as it was asked for.
    #[error("{device}: it cannot be made so: {reason}")]
    Config {
        /// The device.
        device: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A saved state does not fit the device that it is given to.
    #[error("{device}: the saved state does not fit: {reason}")]
    State {
        /// The device.
        device: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A PCI slot cannot take a function.
    #[error("PCI slot {slot} cannot be used: {reason}")]
    Slot {
        /// The slot.
        slot: u8,
        /// Why not.
        reason: String,
    },
    /// A base address register cannot be made like this.
    #[error("BAR {index} of {size:#x} bytes cannot lie at {base:#x}")]
    Bar {
        /// Number of the register.
        index: u8,
        /// Where it should lie.
        base: u64,
        /// Its size.
        size: u64,
    },
    /// The capabilities of a PCI function do not fit.
    #[error("the capabilities of a PCI function exceed its configuration space")]
    Capabilities,
    /// A disk image cannot be used.
    #[error("cannot {what} disk {disk}")]
    Disk {
        /// The disk, as it was named when it was opened.
        disk: String,
        /// What was tried, as a verb.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A disk image is in use.
    #[error("disk {disk} is locked by another virtual machine or program")]
    DiskLocked {
        /// The disk.
        disk: String,
    },
    /// What was asked of a disk is not possible, or its image is not to be trusted.
    #[error("disk {disk}: {reason}")]
    DiskRefused {
        /// The disk.
        disk: String,
        /// What does not fit.
        reason: String,
    },
    /// The operating system refused something that a device needs.
    #[error("cannot {what}")]
    Io {
        /// What was tried, as a verb phrase.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] for `what`, for use with `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// An [`Error::Disk`], likewise.
    pub(crate) fn disk(disk: &str, what: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let disk = disk.to_owned();
        move |source| Error::Disk { disk, what, source }
    }
}

impl From<event_manager::Error> for Error {
    fn from(source: event_manager::Error) -> Self {
        Error::Loop(source)
    }
}
