//! From devices to vectors: each gets as many as it can send.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::cpu;
use crate::firmware;
use crate::virtio::{Device, Result, Way};

static NEXT: AtomicU8 = AtomicU8::new(cpu::FIRST_VECTOR);

/// Takes `count` vectors.
pub fn vectors(count: u16) -> u8 {
    NEXT.fetch_add(count as u8, Ordering::Relaxed)
}

/// Vectors of a device: over PCI the first is the configuration's, queues follow; over MMIO there is one.
#[derive(Clone, Copy)]
pub struct Vectors {
    pub first: u8,
    pub count: u16,
}

impl Vectors {
    /// Waits for the first interrupt, which comes after what it is about.
    pub fn wait(&self) {
        cpu::wait(|| (self.total() > 0).then_some(()));
    }

    /// How often the device interrupted.
    pub fn total(&self) -> u64 {
        (0..self.count)
            .map(|i| cpu::interrupts(self.first + i as u8))
            .sum()
    }
}

/// Finds the device of type `id` and lets its interrupts through.
pub fn open(id: u32) -> Result<(Device, Vectors)> {
    let device = Device::find(id)?;
    let vectors = match &device.way {
        Way::Pci(function) => {
            let count = function.msix.len();
            let first = vectors(count);
            for vector in 0..count {
                function
                    .msix
                    .route(vector, cpu::MESSAGE_ADDRESS, u32::from(first) + u32::from(vector));
                function.msix.mask(vector, false);
            }
            Vectors { first, count }
        }
        Way::Mmio(registers) => {
            let first = pin(firmware::interrupt_of(registers.address())?);
            Vectors { first, count: 1 }
        }
    };
    Ok((device, vectors))
}

/// A vector for a pin of the I/O APIC.
pub fn pin(pin: u32) -> u8 {
    let vector = vectors(1);
    cpu::route_pin(pin, vector);
    vector
}
