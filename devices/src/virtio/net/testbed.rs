//! A network for tests: one socket.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use super::features::{GUEST_OFFLOADS, HOST_OFFLOADS};
use crate::net::backend::{readv, writev};
use crate::net::{Frame, NetBackend};

/// A network of one socket: what the device sends comes out of its peer, and the other way round.
pub struct Wire {
    pub socket: UnixDatagram,
    pub seen: Arc<Mutex<Seen>>,
}

/// What the device asked of its network.
#[derive(Default)]
pub struct Seen {
    pub offloads: u64,
    pub active: Option<bool>,
}

impl Wire {
    /// The network behind this socket, which does not block.
    pub fn new(socket: UnixDatagram) -> Wire {
        Wire {
            socket,
            seen: Arc::default(),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NetBackend for Wire {
    fn receive(&self, frame: &mut Frame<'_>) -> std::io::Result<usize> {
        readv(self, frame)
    }
    fn send(&self, frame: &Frame<'_>) -> std::io::Result<()> {
        writev(self, frame)
    }
    fn offloads(&self) -> u64 {
        GUEST_OFFLOADS | HOST_OFFLOADS
    }
    fn set_offloads(&self, features: u64) -> std::io::Result<()> {
        self.seen.lock().unwrap().offloads = features;
        Ok(())
    }
    fn set_active(&self, active: bool) -> std::io::Result<()> {
        self.seen.lock().unwrap().active = Some(active);
        Ok(())
    }
}
