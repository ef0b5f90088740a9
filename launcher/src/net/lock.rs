//! One process at a time changes what machines share: free networks, forwarding, tables of dead machines.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::error::Cause;

/// An abstract unix socket: its name is the network namespace's, as what it guards, and goes with its holder.
const NAME: &str = "nacelle-net";
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// The lock, while it lives.
pub(super) struct Lock(#[expect(dead_code, reason = "held for its name")] UnixDatagram);

impl Lock {
    /// Waits for it.
    pub fn take() -> Result<Lock, Cause> {
        let failed = || Cause::io("take the lock of the host's networks");
        let address = SocketAddr::from_abstract_name(NAME).map_err(failed())?;
        let until = Instant::now() + PATIENCE;
        loop {
            match UnixDatagram::bind_addr(&address) {
                Ok(socket) => return Ok(Lock(socket)),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(failed()(error)),
                Err(_) if Instant::now() > until => return Err(Cause::Locked),
                Err(_) => sleep(PAUSE),
            }
        }
    }
}
