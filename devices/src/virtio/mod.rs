//! What a virtio device is, apart from any transport and any hypervisor (virtio 1.2, §2).
//!
//! ```text
//!   reset ──▶ stopped ──start──▶ running ──stop──▶ stopped      DRIVER_OK, resume and restore are all `start`:
//!               ▲ save, restore                      │          the queues carry their positions.
//!               └────────────────────────────────────┘
//! ```

pub mod balloon;
pub mod blk;
mod chain;
pub mod console;
pub mod net;
mod queue;
pub mod rng;
pub mod vsock;

use std::sync::Arc;

pub use chain::ChainAgain;
pub use queue::{ActiveQueue, Chain, Served};

use crate::Result;
use crate::irq::Interrupt;
use crate::memory::SharedMemory;
use crate::state::DeviceState;
use crate::vhost::WriteLog;

/// All that a device needs to run.
pub struct Activation {
    /// Features that the driver accepted, the transport's among them.
    pub features: u64,
    /// The guest's memory.
    pub memory: SharedMemory,
    /// The way back to the guest.
    pub interrupt: Arc<dyn Interrupt>,
    /// The queues that are enabled, by rising index.
    pub queues: Vec<ActiveQueue>,
}

/// A virtio device. The transport calls it from one thread at a time.
pub trait VirtioDevice: Send {
    /// Device type (§5).
    fn device_id(&self) -> u32;
    /// Short name for messages, as in "blk".
    fn name(&self) -> &'static str;
    /// Features of this device type that are offered; each one offered is served. The transport adds those
    /// that every device of ours has: VERSION_1, EVENT_IDX, INDIRECT_DESC.
    fn features(&self) -> u64;
    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the configuration space; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; what is read-only or not there is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Changes whenever several bytes of the configuration space changed that a driver reads one after
    /// another (§2.5.1).
    fn config_generation(&self) -> u32 {
        0
    }
    /// Hands the queues to the device's worker and begins to serve them. DRIVER_OK, resume and restore are all
    /// the same: the queues carry their positions, and each handler looks at its queue once unasked.
    ///
    /// # Errors
    /// When the device cannot serve; it stays stopped and the transport asks for a reset.
    fn start(&mut self, activation: Activation) -> Result<()>;
    /// Takes the handlers back from their workers, finishes what was popped and returns the queues; nothing
    /// is in flight afterwards. Stopping a stopped device gives no queues.
    ///
    /// # Errors
    /// When a worker has ended; its queues are lost.
    fn stop(&mut self) -> Result<Vec<ActiveQueue>>;
    /// The map of guest memory was swapped for another, as by a hot-plug. Only a device whose data path holds
    /// addresses of its own (vhost) has to act; the others look at the map for each request. Called running or
    /// stopped.
    ///
    /// # Errors
    /// When the kernel refuses; the device goes on with the former map.
    fn memory_changed(&mut self, _memory: &SharedMemory) -> Result<()> {
        Ok(())
    }
    /// From now on pages are noted in `log` that somebody else than we writes for this device, or no more. Called
    /// running or stopped, and kept over both.
    ///
    /// # Errors
    /// When the kernel refuses; what it writes is not known then.
    fn log_writes(&mut self, _log: Option<&Arc<WriteLog>>) -> Result<()> {
        Ok(())
    }
    /// Forgets what the driver negotiated or stored. Called stopped.
    fn reset(&mut self) {}
    /// What a restored device must know beside its queues. Called stopped.
    fn save(&self) -> DeviceState {
        DeviceState::Stateless
    }
    /// Takes up a saved state. Called once, before `start`.
    ///
    /// # Errors
    /// When the state is another device's or does not fit this one's configuration.
    fn restore(&mut self, state: DeviceState) -> Result<()> {
        match state {
            DeviceState::Stateless => Ok(()),
            other => Err(other.refused_by(self.name())),
        }
    }
}

/// Reads a configuration space held as bytes: copies what is there, zero beyond.
pub fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(space.len());
    for (to, byte) in data.iter_mut().zip(space.iter().skip(from)) {
        *to = *byte;
    }
}
