//! Socket device (virtio 1.2, §5.10): streams between programs of the guest and programs of the host, which
//! meet at unix sockets, as Firecracker's users know them. A program of the host connects to the socket PATH,
//! says `CONNECT <port>\n` and reads `OK <its port>\n` once the guest has granted it; a program of the guest
//! that connects to port P of context 2 reaches the socket `PATH_P`, where a program of the host listens.
//!
//! Only streams; packets of other types are refused. A guest can have a limited number of streams, each with
//! a buffer that is its own credit, so what it makes us keep is bounded. Pausing keeps streams; a move to
//! another process ends them, and the guest is told by the transport reset event (§5.10.6.7).

mod connection;
pub(crate) mod event;
mod host;
pub(crate) mod packet;
mod queues;
mod receive;
mod unix;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::host::Host;
use self::queues::VsockQueues;
use super::{Activation, ActiveQueue, VirtioDevice, read_config_bytes};
use crate::state::{DeviceState, VsockState};
use crate::worker::{Placed, Worker};
use crate::{Error, Result};

/// The device's type and name.
pub(crate) const DEVICE_ID: u32 = 19;
pub(crate) const NAME: &str = "vsock";
/// Feature bit 0: streams.
pub(crate) const STREAM: u64 = 1;
/// Receive (host to guest), transmit (guest to host), event (§5.10.2).
pub(crate) const QUEUE_SIZES: &[u16] = &[256, 256, 16];
/// Contexts below are reserved, and so is the last of 32 bits (§5.10.4).
const FIRST_CID: u64 = 3;
const MAX_CONNECTIONS: usize = 256;

/// How a guest's sockets reach the host.
#[derive(Clone, Debug)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more and less than 2³²-1.
    pub guest_cid: u64,
    /// The socket that programs of the host connect to; `PATH_P` is where the guest's connections to port P
    /// arrive. Made by the device and removed with it.
    pub uds_path: PathBuf,
}

/// The socket device.
pub struct Vsock {
    config: VsockConfig,
    worker: Worker,
    running: Option<Placed<VsockQueues>>,
    /// While stopped.
    host: Option<Host>,
    control: VsockControl,
}

/// The host's way to a device: its socket can be handed over.
#[derive(Clone)]
pub struct VsockControl(Arc<Door>);

struct Door {
    listener: UnixListener,
    /// Another process has it.
    given: AtomicBool,
}

/// Refuses what can be no guest's context.
pub(crate) fn check_cid(cid: u64) -> Result<()> {
    match (FIRST_CID..u64::from(u32::MAX)).contains(&cid) {
        true => Ok(()),
        false => Err(Error::Config {
            device: NAME,
            reason: format!("context id {cid} is reserved"),
        }),
    }
}

/// The configuration space: the guest's context (§5.10.4).
pub(crate) fn read_config(cid: u64, offset: u64, data: &mut [u8]) {
    read_config_bytes(&cid.to_le_bytes(), offset, data);
}

impl Vsock {
    /// A device whose queues are served by `worker`. It listens on its socket from now on, and answers there
    /// once the guest runs.
    ///
    /// # Errors
    /// When the context id is reserved, or the socket cannot be made, as when there is something at its path.
    pub fn new(config: VsockConfig, worker: Worker) -> Result<Vsock> {
        Self::with_limit(config, worker, MAX_CONNECTIONS)
    }

    fn with_limit(config: VsockConfig, worker: Worker, limit: usize) -> Result<Vsock> {
        check_cid(config.guest_cid)?;
        let at = config.uds_path.display();
        let listener = UnixListener::bind(&config.uds_path)
            .map_err(Error::io(format!("listen for the guest's sockets at {at}")))?;
        Self::listening(config, listener, worker, limit)
    }

    /// A device that goes on with the socket of another process, which handed it over.
    ///
    /// # Errors
    /// When the context id is reserved.
    pub fn succeed(config: VsockConfig, listener: UnixListener, worker: Worker) -> Result<Vsock> {
        Self::listening(config, listener, worker, MAX_CONNECTIONS)
    }

    fn listening(config: VsockConfig, listener: UnixListener, worker: Worker, limit: usize) -> Result<Vsock> {
        check_cid(config.guest_cid)?;
        let at = config.uds_path.display();
        listener
            .set_nonblocking(true)
            .map_err(Error::io(format!("set the socket {at} not to block")))?;
        let ours = listener
            .try_clone()
            .map_err(Error::io(format!("duplicate the socket {at}")))?;
        let host = Host::new(listener, config.uds_path.clone(), limit);
        Ok(Vsock {
            config,
            worker,
            running: None,
            host: Some(host),
            control: VsockControl(Arc::new(Door {
                listener: ours,
                given: AtomicBool::new(false),
            })),
        })
    }

    /// The host's way to it.
    pub fn control(&self) -> VsockControl {
        self.control.clone()
    }
}

impl VsockControl {
    /// The socket, for another process of this host.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn listener(&self) -> Result<UnixListener> {
        let duplicate = self.0.listener.try_clone();
        duplicate.map_err(Error::io("duplicate the guest's socket"))
    }

    /// The socket is that process's from now on, or ours again: its file stays when this device goes, or does not.
    pub fn give(&self, given: bool) {
        self.0.given.store(given, Ordering::Release);
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        if !self.control.0.given.load(Ordering::Acquire) {
            let _ = std::fs::remove_file(&self.config.uds_path);
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(self.config.guest_cid, offset, data);
    }

    fn start(&mut self, activation: Activation) -> Result<()> {
        let Some(host) = self.host.take() else {
            return Err(Error::Io {
                what: "start the socket device again after its I/O thread ended".into(),
                source: std::io::ErrorKind::NotConnected.into(),
            });
        };
        let queues = VsockQueues::new(activation, self.config.guest_cid, host);
        self.running = Some(self.worker.add(queues)?);
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        let Some(running) = self.running.take() else {
            return Ok(Vec::new());
        };
        let (queues, host) = running.remove()?.stop();
        self.host = Some(host);
        Ok(queues)
    }

    fn reset(&mut self) {
        if let Some(host) = &mut self.host {
            host.forget_all();
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {})
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        let DeviceState::Vsock(VsockState {}) = state else {
            return Err(state.refused_by(self.name()));
        };
        if let Some(host) = &mut self.host {
            host.forget_all();
            host.reset_due = true;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testbed;
#[cfg(test)]
mod tests;
