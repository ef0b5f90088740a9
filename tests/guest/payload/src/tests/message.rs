//! Message-signalled interrupts, held back and let go.

use crate::virtio::ring::Buffer;
use crate::virtio::rng::{self, Rng};
use crate::virtio::{Error, Result, Way};
use crate::{cpu, interrupts, memory, say};

/// Masks the queue's vector, then all of them: messages wait and come once, afterwards.
pub fn masked() -> Result<()> {
    let (device, vectors) = interrupts::open(rng::DEVICE_ID)?;
    let mut rng = Rng::new(device)?;
    let Way::Pci(function) = &rng.device.way else {
        return Err(Error("there is no PCI bus", 0));
    };
    let msix = &function.msix;
    let vector = vectors.first + 1;
    let page = memory::take(64);
    type Mask<'a> = &'a dyn Fn(bool);
    let masks: [(&str, Mask); 2] = [
        ("one", &|masked| msix.mask(1, masked)),
        ("all", &|masked| msix.mask_all(masked)),
    ];
    for (name, mask) in masks {
        let before = cpu::interrupts(vector);
        mask(true);
        rng.device.offer(&mut rng.ring, &[Buffer::write(&page)])?;
        // No interrupt will tell.
        while rng.ring.take_used().is_none() {}
        while !msix.pending(1) {}
        if cpu::interrupts(vector) != before {
            return Err(Error("a masked vector interrupts", vector.into()));
        }
        mask(false);
        cpu::wait(|| (cpu::interrupts(vector) == before + 1).then_some(()));
        if msix.pending(1) {
            return Err(Error("the message waits after it was sent", vector.into()));
        }
        say!("ok msix {name}");
    }
    Ok(())
}
