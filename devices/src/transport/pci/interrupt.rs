//! Which MSI-X vector each of a virtio device's interrupts has (virtio 1.2, §4.1.5.1.2).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use super::NO_VECTOR;
use crate::irq::{Interrupt, Vector};
use crate::pci::msix::Msix;

/// The bits of the ISR status are those of virtio-mmio's interrupt status (§4.1.4.5).
const ISR_QUEUE: u8 = VIRTIO_MMIO_INT_VRING as u8;
const ISR_CONFIG: u8 = VIRTIO_MMIO_INT_CONFIG as u8;

/// The interrupts of a virtio-pci device. Devices raise them from their own threads, so nothing here locks.
pub(super) struct MsixInterrupt {
    pub(super) msix: Msix,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    isr: AtomicU8,
    needs_reset: Arc<AtomicBool>,
}

impl MsixInterrupt {
    pub(super) fn new(msix: Msix, queues: u16, needs_reset: Arc<AtomicBool>) -> Self {
        MsixInterrupt {
            msix,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            needs_reset,
        }
    }

    fn assigned(&self, vector: Vector) -> Option<&AtomicU16> {
        match vector {
            Vector::Config => Some(&self.config),
            Vector::Queue(index) => self.queues.get(usize::from(index)),
        }
    }

    /// The MSI-X vector assigned; [`NO_VECTOR`] for none.
    pub(super) fn vector(&self, vector: Vector) -> u16 {
        self.assigned(vector)
            .map_or(NO_VECTOR, |number| number.load(Ordering::Acquire))
    }

    /// Assigns an MSI-X vector; one that does not exist reads back as [`NO_VECTOR`].
    pub(super) fn set_vector(&self, vector: Vector, number: u16) {
        let number = if number < self.msix.count() {
            number
        } else {
            NO_VECTOR
        };
        if let Some(assigned) = self.assigned(vector) {
            assigned.store(number, Ordering::Release);
        }
    }

    /// The ISR status.
    pub(super) fn isr(&self) -> u8 {
        self.isr.load(Ordering::SeqCst)
    }

    pub(super) fn set_isr(&self, isr: u8) {
        self.isr.store(isr & (ISR_QUEUE | ISR_CONFIG), Ordering::SeqCst);
    }

    /// The driver reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    /// The device was reset: no vectors, no causes.
    pub(super) fn reset(&self) {
        for assigned in self.queues.iter().chain([&self.config]) {
            assigned.store(NO_VECTOR, Ordering::Release);
        }
        self.set_isr(0);
        self.msix.clear_pending();
    }
}

impl Interrupt for MsixInterrupt {
    fn trigger(&self, vector: Vector) -> io::Result<()> {
        if self.msix.enabled() {
            return self.msix.signal(self.vector(vector));
        }
        let cause = match vector {
            Vector::Config => ISR_CONFIG,
            Vector::Queue(_) => ISR_QUEUE,
        };
        self.isr.fetch_or(cause, Ordering::SeqCst);
        Ok(())
    }

    /// `None` where the driver wants no interrupt. A data path in the kernel keeps the vector that the driver
    /// assigned before DRIVER_OK.
    fn eventfd(&self, vector: Vector) -> Option<&EventFd> {
        self.msix.eventfd(self.vector(vector))
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        if let Err(error) = self.trigger(Vector::Config) {
            log::warn!("the driver is not told to reset: {error}");
        }
    }
}
