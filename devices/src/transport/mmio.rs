//! virtio-mmio, version 2 (virtio 1.2, §4.2): one page of registers and one interrupt line.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use vmm_sys_util::eventfd::EventFd;

use super::{RegisterFile, RingPart, Transport};
use crate::bus::BusDevice;
use crate::irq::{Interrupt, Vector};
use crate::memory::SharedMemory;
use crate::state::{TransportState, VirtioState};
use crate::virtio::VirtioDevice;
use crate::{Error, Result};

/// Size of the register window: 0x100 of registers, then the device's configuration.
pub const SIZE: u64 = 0x1000;
/// Where a driver writes the index of a queue to ring its doorbell.
pub const NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Vendor "NCL" in the way of PCI subsystem vendors; drivers do not look at it.
const VENDOR: u32 = 0x4c43_4e00;

/// The interrupt of a virtio-mmio device: a line, and a register that says why.
struct LineInterrupt {
    line: EventFd,
    status: AtomicU32,
    needs_reset: Arc<AtomicBool>,
}

impl Interrupt for LineInterrupt {
    fn trigger(&self, vector: Vector) -> io::Result<()> {
        let cause = match vector {
            Vector::Config => VIRTIO_MMIO_INT_CONFIG,
            Vector::Queue(_) => VIRTIO_MMIO_INT_VRING,
        };
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.line.write(1)
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        if let Err(error) = self.trigger(Vector::Config) {
            log::warn!("the driver is not told to reset: {error}");
        }
    }
}

/// A virtio device on the memory bus.
pub struct MmioTransport {
    registers: Mutex<RegisterFile>,
    interrupt: Arc<LineInterrupt>,
}

impl MmioTransport {
    /// Puts `device` behind registers; `line` raises its interrupt, edge-triggered.
    ///
    /// # Errors
    /// As [`RegisterFile::new`].
    pub fn new(device: Box<dyn VirtioDevice>, memory: SharedMemory, line: EventFd) -> Result<Self> {
        let needs_reset = Arc::new(AtomicBool::new(false));
        let interrupt = Arc::new(LineInterrupt {
            line,
            status: AtomicU32::new(0),
            needs_reset: Arc::clone(&needs_reset),
        });
        let registers = RegisterFile::new(device, memory, interrupt.clone(), needs_reset)?;
        Ok(MmioTransport {
            registers: Mutex::new(registers),
            interrupt,
        })
    }

    /// The registers, locked. A holder that panicked left them as the last whole access did.
    pub fn registers(&self) -> MutexGuard<'_, RegisterFile> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that a restored transport must know. Only right while paused.
    pub fn save(&self) -> VirtioState {
        let interrupt_status = self.interrupt.status.load(Ordering::SeqCst);
        VirtioState {
            interrupt_status,
            ..self.registers().save()
        }
    }

    /// Takes up a saved state and stays paused.
    ///
    /// # Errors
    /// As [`RegisterFile::restore`].
    pub fn restore(&self, state: VirtioState) -> Result<()> {
        let status = state.interrupt_status & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
        self.registers().restore(state)?;
        self.interrupt.status.store(status, Ordering::SeqCst);
        Ok(())
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = self.registers();
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => registers.device_id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => registers.device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => u32::from(registers.queue_max_size()),
            VIRTIO_MMIO_QUEUE_READY => u32::from(registers.queue_ready()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => u32::from(registers.status()),
            VIRTIO_MMIO_CONFIG_GENERATION => registers.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        let mut registers = self.registers();
        let ring = |registers: &mut RegisterFile, part, high| match high {
            false => registers.set_ring_address(part, Some(value), None),
            true => registers.set_ring_address(part, None, Some(value)),
        };
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.select_device_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES => registers.set_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.select_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => registers.select_queue(u16::try_from(value).unwrap_or(u16::MAX)),
            VIRTIO_MMIO_QUEUE_NUM => registers.set_queue_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_READY => registers.set_queue_ready(value == 1),
            VIRTIO_MMIO_QUEUE_NOTIFY => registers.ring(u16::try_from(value).unwrap_or(u16::MAX)),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => {
                registers.set_status(value as u8);
                if value == 0 {
                    self.interrupt.status.store(0, Ordering::SeqCst);
                }
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => ring(&mut registers, RingPart::Descriptors, false),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => ring(&mut registers, RingPart::Descriptors, true),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => ring(&mut registers, RingPart::Available, false),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => ring(&mut registers, RingPart::Available, true),
            VIRTIO_MMIO_QUEUE_USED_LOW => ring(&mut registers, RingPart::Used, false),
            VIRTIO_MMIO_QUEUE_USED_HIGH => ring(&mut registers, RingPart::Used, true),
            _ => {}
        }
    }
}

impl Transport for MmioTransport {
    fn registers(&self) -> MutexGuard<'_, RegisterFile> {
        self.registers()
    }

    fn reset(&self) {
        self.registers().reset();
        self.interrupt.status.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> TransportState {
        TransportState::Mmio(self.save())
    }

    fn restore(&self, state: TransportState) -> Result<()> {
        match state {
            TransportState::Mmio(state) => self.restore(state),
            TransportState::Pci(_) => Err(Error::State {
                device: self.registers().name(),
                reason: "it was behind virtio-pci".into(),
            }),
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.registers().read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) {
            *data = self.read_register(offset as u32).to_le_bytes();
        } else {
            // Registers are read 32 bits at a time (§4.2.2.2).
            data.fill(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.registers().write_config(offset, data);
        } else if let Ok(&value) = <&[u8; 4]>::try_from(data) {
            self.write_register(offset as u32, u32::from_le_bytes(value));
        }
    }
}

#[cfg(test)]
mod tests;
