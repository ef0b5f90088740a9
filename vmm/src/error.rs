//! The crate's error: what failed, on which object. The cause is the `source`, never repeated in the text.

use std::io;
use std::path::PathBuf;

/// What can go wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be.
    #[error("{field}: {reason}")]
    Config {
        /// The field of [`crate::VmConfig`].
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// The hypervisor's device file is not there.
    #[error("{path} is not there: the machine has no KVM, or its module (kvm_intel, kvm_amd) is not loaded")]
    NoHypervisor {
        /// The device file.
        path: PathBuf,
    },
    /// The hypervisor's device file may not be opened.
    #[error("no permission to open {path}: run as root or join the group that owns it (often kvm)")]
    HypervisorPermission {
        /// The device file.
        path: PathBuf,
    },
    /// The hypervisor lacks something that we cannot do without.
    #[error("this KVM lacks {0}")]
    Capability(&'static str),
    /// The hypervisor refused.
    #[error("KVM cannot {what}")]
    Hypervisor {
        /// What was asked, as a verb phrase.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The host has not that much memory.
    #[error("cannot get {mib} MiB of guest memory from the host{hint}")]
    Memory {
        /// Size in MiB.
        mib: u64,
        /// What to do.
        hint: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the machine cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel is none that we can start.
    #[error("{path} is not a kernel that can be started: {reason}")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something does not fit into guest memory.
    #[error("{what} does not fit into {mib} MiB of guest memory")]
    DoesNotFit {
        /// What.
        what: String,
        /// Size of guest memory.
        mib: u64,
    },
    /// A device could not be made or did not do as told.
    #[error("device {id}")]
    Device {
        /// The device.
        id: String,
        /// Why.
        source: nacelle_devices::Error,
    },
    /// There is no device or console of this name.
    #[error("there is no {0}")]
    NotFound(String),
    /// What was asked does not fit the machine's present state.
    #[error("cannot {what} while the machine is {state}")]
    State {
        /// What was asked.
        what: &'static str,
        /// What the machine is doing.
        state: &'static str,
    },
    /// The guest ran into something that the hypervisor cannot do.
    #[error("vCPU {vcpu} stopped: {reason}")]
    Vcpu {
        /// Which vCPU.
        vcpu: u8,
        /// What happened, with what to do about it.
        reason: String,
    },
    /// A saved state does not fit.
    #[error("the saved state does not fit: {0}")]
    Restore(String),
    /// A machine cannot be moved, or not to where it should.
    #[error("{0}")]
    Cannot(String),
    /// The other side of a migration gave up.
    #[error("the other side refuses: {0}")]
    Refused(String),
    /// What the other side of a migration sends is not what it must be.
    #[error("the migration's stream is wrong: {0}")]
    Protocol(String),
    /// Somebody wished so.
    #[error("the migration was cancelled")]
    Cancelled,
    /// The guest writes faster than can be sent.
    #[error(
        "after {seconds} s the guest would still stand still for {downtime} ms, more than the {limit} ms allowed: \
         allow more downtime, give it more bandwidth, or let it finish at any price"
    )]
    NotConverging {
        /// How long it was tried.
        seconds: u64,
        /// How long the guest would stand still.
        downtime: u64,
        /// How long it may.
        limit: u64,
    },
    /// The target was told to go on, and has not said that it does. The machine is not run here any more.
    #[error(
        "the machine was handed over, but the other side has not confirmed that it runs: look there before it is \
         started anywhere"
    )]
    Unconfirmed {
        /// What happened to the connection.
        source: Box<Error>,
    },
    /// A snapshot cannot be written or read.
    #[error("cannot {what} the snapshot {directory}")]
    Snapshot {
        /// "write" or "read".
        what: &'static str,
        /// Its directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was tried, as a verb phrase.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A thread of the machine has ended unexpectedly.
    #[error("the thread of {0} has ended")]
    ThreadEnded(String),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] for `what`, for use with `map_err`.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, source }
    }

    /// An [`Error::Hypervisor`] for `what`, for use with `map_err`.
    pub fn hypervisor<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Hypervisor {
            what,
            source: source.into(),
        }
    }
}
