//! The registers as a saved state, and such a state taken up again after it was checked.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::{DRIVER_OK, FEATURES_OK, RegisterFile, WRITABLE_STATUS};
use crate::state::{QueueState, VirtioState};
use crate::transport::NO_VECTOR;
use crate::{Error, Result};

impl RegisterFile {
    /// The registers, the queues and the device, for a snapshot; vectors are the transport's to add. Only
    /// right while paused.
    pub fn save(&self) -> VirtioState {
        VirtioState {
            device_id: self.device.device_id(),
            status: self.status,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            interrupt_status: 0,
            needs_reset: self.needs_reset.load(Ordering::Acquire),
            queues: self
                .slots
                .iter()
                .map(|slot| QueueState::of(&slot.queue, NO_VECTOR))
                .collect(),
            device: self.device.save(),
        }
    }

    /// Takes up a saved state and stays paused; [`RegisterFile::resume`] then starts the device.
    ///
    /// # Errors
    /// When the state is not of a device like this one, or no driver could have brought it about.
    pub fn restore(&mut self, state: VirtioState) -> Result<()> {
        let device = self.device.name();
        let refuse = |reason: String| Error::State { device, reason };
        if self.running {
            return Err(refuse("this one is running".into()));
        }
        if state.device_id != self.device.device_id() {
            return Err(refuse(format!(
                "device type {} instead of {}",
                state.device_id,
                self.device.device_id()
            )));
        }
        if state.queues.len() != self.slots.len() {
            return Err(refuse(format!(
                "{} queues instead of {}",
                state.queues.len(),
                self.slots.len()
            )));
        }
        let unknown = state.driver_features & !self.offered();
        if state.status & FEATURES_OK != 0 && unknown != 0 {
            return Err(refuse(format!(
                "it uses features {unknown:#x} that are not offered here"
            )));
        }
        let modern = state.driver_features & (1 << VIRTIO_F_VERSION_1) != 0;
        match (state.status & FEATURES_OK != 0, state.status & DRIVER_OK != 0) {
            (true, _) if !modern => return Err(refuse("its driver is a legacy one".into())),
            (false, true) => return Err(refuse("its driver started before features were agreed on".into())),
            _ => {}
        }
        let event_idx = state.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for (index, (slot, saved)) in self.slots.iter_mut().zip(&state.queues).enumerate() {
            slot.queue = saved
                .to_queue(slot.queue.max_size(), event_idx)
                .map_err(|error| refuse(format!("queue {index}: {error}")))?;
        }
        self.device.restore(state.device)?;
        self.status = state.status & WRITABLE_STATUS;
        self.device_features_page = state.device_features_page;
        self.driver_features_page = state.driver_features_page;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.needs_reset.store(state.needs_reset, Ordering::Release);
        self.paused = true;
        self.restored = true;
        Ok(())
    }
}
