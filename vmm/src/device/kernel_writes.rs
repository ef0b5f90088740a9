//! What the host's kernel writes to guest memory where it serves devices (vhost).

use std::sync::{Arc, Mutex, PoisonError};

use nacelle_devices::Result;
use nacelle_devices::memory::Memory;
use nacelle_devices::transport::Transport;
use nacelle_devices::vhost::WriteLog;

/// It is noted while this value lives.
pub(crate) struct KernelWrites {
    log: Arc<WriteLog>,
    devices: Mutex<Vec<Arc<dyn Transport>>>,
}

impl KernelWrites {
    /// Of no device yet.
    pub(super) fn new(memory: &Memory) -> KernelWrites {
        KernelWrites {
            log: Arc::new(WriteLog::new(memory)),
            devices: Mutex::default(),
        }
    }

    /// Of `device`, too, from now on.
    pub(super) fn note(&self, device: &Arc<dyn Transport>) -> Result<()> {
        device.registers().log_writes(Some(&self.log))?;
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.push(Arc::clone(device));
        Ok(())
    }

    /// The pages of `len` bytes of guest memory from `start` on that were written since the last time, a bit each.
    pub fn take(&self, start: u64, len: u64) -> impl Iterator<Item = u64> {
        self.log.take(start, len)
    }
}

impl Drop for KernelWrites {
    fn drop(&mut self) {
        let devices = self.devices.get_mut().unwrap_or_else(PoisonError::into_inner);
        for device in devices {
            if let Err(error) = device.registers().log_writes(None) {
                log::warn!("the kernel goes on noting what it writes: {error}");
            }
        }
    }
}
