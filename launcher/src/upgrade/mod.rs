//! Another program under a running machine: `nacelle upgrade` has the process that runs it start the new program and
//! hand it all over, on one host, by a migration over a socket in which nothing is copied that can be passed.
//!
//! ```text
//!   old process                                   new process (nacelle take-over, its socket is standard input)
//!   starts it ──────────────────────────────────▶
//!   Handover, and the descriptors of its roles ─▶ plans the same machine, over the same memory, disks, taps
//!   ◀──────────────── vmm::migrate ─────────────▶ State, Ready, Resume, Running
//!   its console's last words, end of the socket ▶ has the terminal
//!   waits for it: signals, its status                serves the machine's socket
//! ```
//! Whoever started the first process, a shell or a service manager, goes on waiting for that. It keeps the
//! terminal and the host's side of the networks (DHCP, translation), and has no machine any more.

mod descriptors;
mod give;
mod stand_in;
mod take;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nacelle_vmm::config::{CacheMode, DiskFormat};
use serde::{Deserialize, Serialize};

pub use self::give::{Estate, Heir, Interface};
pub use self::stand_in::stand_in;
pub use self::take::take_over;
use crate::origin::Origin;

/// What the document says, in its first version.
const VERSION: u32 = 1;

/// What the new process must know before the machine comes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Handover {
    version: u32,
    /// What the machine was made of.
    origin: Origin,
    /// In the plan's order.
    disks: Vec<Behind>,
    /// In the plan's order.
    nets: Vec<Network>,
    /// Arguments of its kernel.
    cmdline: String,
    /// Milliseconds since it was started.
    uptime: u64,
    /// What each of the descriptors is.
    roles: Vec<Role>,
}

/// What is behind a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Behind {
    /// Its file's name.
    pub path: PathBuf,
    /// What is in it.
    pub format: DiskFormat,
    /// There is a layer above it.
    pub ephemeral: bool,
    /// When a write is done.
    pub cache: CacheMode,
    /// Logical and physical block size, where they are not the usual ones.
    #[serde(default)]
    pub block_size: Option<(u32, u32)>,
}

/// What stands for an interface on the host, but for its tap.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Network {
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
}

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Role {
    /// Guest memory.
    Memory,
    /// The kernel that a reset loads.
    Kernel,
    /// Its initial RAM disk.
    Initrd,
    /// A file of this device: the image, then the layer.
    Disk(String),
    /// A queue pair of the interface of this number.
    Tap(usize),
    /// The socket to the guest's sockets.
    Vsock,
    /// The machine's own socket.
    Socket,
    /// The first process's terminal.
    Terminal,
}

/// Descriptors with their roles.
#[derive(Default)]
struct Bundle {
    roles: Vec<Role>,
    descriptors: Vec<OwnedFd>,
}

impl Bundle {
    fn add(&mut self, role: Role, descriptor: impl Into<OwnedFd>) {
        self.roles.push(role);
        self.descriptors.push(descriptor.into());
    }
}
