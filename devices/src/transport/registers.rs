//! The registers that virtio-mmio and virtio-pci share: the device's status, features and queues.

mod saved;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::RingPart;
use crate::irq::{Interrupt, Vector};
use crate::memory::SharedMemory;
use crate::vhost::WriteLog;
use crate::virtio::{Activation, ActiveQueue, VirtioDevice};
use crate::{Error, Result};

const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;
const WRITABLE_STATUS: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;

/// What the transport offers for every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A page of 32 features.
fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

struct Slot {
    /// What the driver set up; while the device runs, positions are the device's.
    queue: Queue,
    kick: EventFd,
}

/// The registers of one virtio device, apart from where they lie.
pub struct RegisterFile {
    device: Box<dyn VirtioDevice>,
    memory: SharedMemory,
    interrupt: Arc<dyn Interrupt>,
    needs_reset: Arc<AtomicBool>,
    status: u8,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue_select: u16,
    slots: Vec<Slot>,
    /// The device has the queues.
    running: bool,
    /// The monitor holds the device still; the driver does not notice.
    paused: bool,
    /// The state came from elsewhere, and the device has not run since.
    restored: bool,
}

impl RegisterFile {
    /// Registers of `device`, reset. `interrupt` sets `needs_reset` when the device asks for that.
    ///
    /// # Errors
    /// When the host has no eventfd for a doorbell left, or a queue size is no power of two.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: SharedMemory,
        interrupt: Arc<dyn Interrupt>,
        needs_reset: Arc<AtomicBool>,
    ) -> Result<Self> {
        let mut slots = Vec::new();
        for (index, &size) in device.queue_sizes().iter().enumerate() {
            let queue = Queue::new(size).map_err(|_| Error::Queue {
                device: device.name(),
                index: index as u16,
            })?;
            let kick = EventFd::new(EFD_NONBLOCK).map_err(Error::io("make an eventfd for a doorbell"))?;
            slots.push(Slot { queue, kick });
        }
        Ok(RegisterFile {
            device,
            memory,
            interrupt,
            needs_reset,
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue_select: 0,
            slots,
            running: false,
            paused: false,
            restored: false,
        })
    }

    /// The device's type (§5).
    pub fn device_id(&self) -> u32 {
        self.device.device_id()
    }

    /// The device's name for messages.
    pub fn name(&self) -> &'static str {
        self.device.name()
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> u16 {
        self.slots.len() as u16
    }

    /// The doorbell of a queue.
    pub fn kick(&self, index: u16) -> Option<&EventFd> {
        self.slots.get(usize::from(index)).map(|slot| &slot.kick)
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// Selects the page of 32 device features that is read.
    pub fn select_device_features(&mut self, page: u32) {
        self.device_features_page = page;
    }

    /// The page of device features selected.
    pub fn device_features_page(&self) -> u32 {
        self.device_features_page
    }

    /// The selected page of device features.
    pub fn device_features(&self) -> u32 {
        page(self.offered(), self.device_features_page)
    }

    /// Selects the page of 32 driver features that is written.
    pub fn select_driver_features(&mut self, page: u32) {
        self.driver_features_page = page;
    }

    /// The page of driver features selected.
    pub fn driver_features_page(&self) -> u32 {
        self.driver_features_page
    }

    /// The selected page of what the driver accepted.
    pub fn driver_features(&self) -> u32 {
        page(self.driver_features, self.driver_features_page)
    }

    /// Takes a page of what the driver accepts; too late once FEATURES_OK stands (§3.1.1).
    pub fn set_driver_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_page {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// The status register (§2.1).
    pub fn status(&self) -> u8 {
        let needs_reset = if self.needs_reset.load(Ordering::Acquire) {
            NEEDS_RESET
        } else {
            0
        };
        self.status | needs_reset
    }

    /// Writes the status register: zero resets, DRIVER_OK starts the device.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut added = value & WRITABLE_STATUS & !self.status;
        if added & FEATURES_OK != 0 && !self.features_acceptable() {
            added &= !FEATURES_OK;
        }
        // A driver that skips the negotiation cannot start the device (§3.1.1).
        if added & DRIVER_OK != 0 && (self.status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        self.status |= added;
        if added & DRIVER_OK != 0 && !self.paused {
            self.start();
        }
    }

    /// A subset of what is offered, and not a legacy driver (§6.1).
    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn start(&mut self) {
        if let Err(error) = self.try_start() {
            log::warn!(
                "{}: cannot start as the driver set it up: {error}",
                self.device.name()
            );
            self.interrupt.needs_reset();
        }
    }

    fn try_start(&mut self) -> Result<()> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let memory = self.memory.memory();
        let mut queues = Vec::new();
        for (index, slot) in self
            .slots
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| slot.queue.ready())
        {
            let index = index as u16;
            let malformed = Error::Queue {
                device: self.device.name(),
                index,
            };
            if !slot.queue.is_valid(&*memory) {
                return Err(malformed);
            }
            slot.queue.set_event_idx(event_idx);
            let queue = Queue::try_from(slot.queue.state()).map_err(|_| malformed)?;
            let kick = slot.kick.try_clone().map_err(Error::io("duplicate a doorbell"))?;
            queues.push(ActiveQueue { index, queue, kick });
        }
        drop(memory);
        self.device.start(Activation {
            features: self.driver_features,
            memory: self.memory.clone(),
            interrupt: Arc::clone(&self.interrupt),
            queues,
        })?;
        self.running = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.running) {
            return Ok(());
        }
        for ActiveQueue { index, queue, .. } in self.device.stop()? {
            if let Some(slot) = self.slots.get_mut(usize::from(index)) {
                slot.queue = queue;
            }
        }
        Ok(())
    }

    /// Brings everything back to how it was at power-on.
    pub fn reset(&mut self) {
        if let Err(error) = self.stop() {
            log::error!("{}: the device did not stop: {error}", self.device.name());
        }
        self.device.reset();
        self.status = 0;
        self.needs_reset.store(false, Ordering::Release);
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.queue_select = 0;
        for slot in &mut self.slots {
            slot.queue.reset();
            let _ = slot.kick.read();
        }
    }

    /// Selects the queue that the queue registers speak of.
    pub fn select_queue(&mut self, index: u16) {
        self.queue_select = index;
    }

    /// The queue selected; it may not exist.
    pub fn selected_queue(&self) -> u16 {
        self.queue_select
    }

    fn slot(&self) -> Option<&Slot> {
        self.slots.get(usize::from(self.queue_select))
    }

    /// The selected queue while the driver may change it: before DRIVER_OK, and before it is enabled.
    fn settable(&mut self) -> Option<&mut Slot> {
        let open = self.status & DRIVER_OK == 0;
        self.slots
            .get_mut(usize::from(self.queue_select))
            .filter(|slot| open && !slot.queue.ready())
    }

    /// Largest size of the selected queue; 0 where there is none.
    pub fn queue_max_size(&self) -> u16 {
        self.slot().map_or(0, |slot| slot.queue.max_size())
    }

    /// Size of the selected queue.
    pub fn queue_size(&self) -> u16 {
        self.slot().map_or(0, |slot| slot.queue.size())
    }

    /// Sets the size of the selected queue; one that is no power of two or too large is ignored.
    pub fn set_queue_size(&mut self, size: u16) {
        if let Some(slot) = self.settable() {
            let _ = slot.queue.try_set_size(size);
        }
    }

    /// Whether the selected queue is enabled.
    pub fn queue_ready(&self) -> bool {
        self.slot().is_some_and(|slot| slot.queue.ready())
    }

    /// Enables the selected queue; disabling one needs a reset (we do not offer VIRTIO_F_RING_RESET), except
    /// before the device runs.
    pub fn set_queue_ready(&mut self, ready: bool) {
        let open = self.status & DRIVER_OK == 0;
        if let Some(slot) = self.slots.get_mut(usize::from(self.queue_select))
            && open
        {
            slot.queue.set_ready(ready);
        }
    }

    /// Address of a part of the selected queue.
    pub fn ring_address(&self, part: RingPart) -> u64 {
        self.slot().map_or(0, |slot| match part {
            RingPart::Descriptors => slot.queue.desc_table(),
            RingPart::Available => slot.queue.avail_ring(),
            RingPart::Used => slot.queue.used_ring(),
        })
    }

    /// Sets the low or high half of the address of a part of the selected queue; misaligned ones are ignored.
    pub fn set_ring_address(&mut self, part: RingPart, low: Option<u32>, high: Option<u32>) {
        let address = self.ring_address(part);
        let low = low.unwrap_or(address as u32);
        let high = high.unwrap_or((address >> 32) as u32);
        let address = GuestAddress(u64::from(high) << 32 | u64::from(low));
        if let Some(slot) = self.settable() {
            let _ = match part {
                RingPart::Descriptors => slot.queue.try_set_desc_table_address(address),
                RingPart::Available => slot.queue.try_set_avail_ring_address(address),
                RingPart::Used => slot.queue.try_set_used_ring_address(address),
            };
        }
    }

    /// Rings a doorbell, for a write that came over the bus.
    pub fn ring(&self, index: u16) {
        if let Some(slot) = self.slots.get(usize::from(index))
            && let Err(error) = slot.kick.write(1)
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            log::warn!("{}: doorbell {index} is lost: {error}", self.device.name());
        }
    }

    /// Reads the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// Writes the device's configuration space; not before the driver said that it is one (§2.5.2).
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & DRIVER != 0 {
            self.device.write_config(offset, data);
        }
    }

    /// The configuration's generation (§2.5.1).
    pub fn config_generation(&self) -> u32 {
        self.device.config_generation()
    }

    /// Holds the device still: its queues come back here, nothing is in flight. Twice is once.
    ///
    /// # Errors
    /// When a worker of the device has ended.
    pub fn pause(&mut self) -> Result<()> {
        self.paused = true;
        self.stop()
    }

    /// Lets a paused device go on where it stood.
    ///
    /// # Errors
    /// When the device cannot start.
    pub fn resume(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.paused) {
            return Ok(());
        }
        let restored = std::mem::take(&mut self.restored);
        if self.status & DRIVER_OK == 0 || self.needs_reset.load(Ordering::Acquire) {
            return Ok(());
        }
        self.try_start()?;
        if restored { self.interrupt_all() } else { Ok(()) }
    }

    /// Raises every interrupt once: the last ones may have been on their way when the state was saved. A
    /// driver takes one too many for nothing, but would wait for one too few.
    fn interrupt_all(&self) -> Result<()> {
        let queues = (0..self.queue_count()).map(Vector::Queue);
        for vector in queues.chain([Vector::Config]) {
            let failed = Error::io("interrupt a restored guest");
            self.interrupt.trigger(vector).map_err(failed)?;
        }
        Ok(())
    }

    /// Tells the device that the map of guest memory was swapped for another.
    ///
    /// # Errors
    /// As [`VirtioDevice::memory_changed`].
    pub fn memory_changed(&mut self) -> Result<()> {
        self.device.memory_changed(&self.memory)
    }

    /// As [`VirtioDevice::log_writes`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn log_writes(&mut self, log: Option<&Arc<WriteLog>>) -> Result<()> {
        self.device.log_writes(log)
    }

    /// Tells the driver that the configuration changed.
    ///
    /// # Errors
    /// When the kernel does not take the signal.
    pub fn config_changed(&self) -> std::io::Result<()> {
        self.interrupt.trigger(Vector::Config)
    }
}

impl Drop for RegisterFile {
    /// The device's queues must not be served by a worker that lives on.
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::error!("{}: the device did not stop: {error}", self.device.name());
        }
    }
}
