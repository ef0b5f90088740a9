//! The generic event device (ACPI 6.5, §5.6.9): an interrupt, and a register that says what happened.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// Size of the register window.
pub const SIZE: u64 = 4;
/// The power button was pressed.
pub const POWER_BUTTON: u32 = 1;
/// The machine was restored from a snapshot: the generation id changed.
pub const NEW_GENERATION: u32 = 2;
/// A device came, or is to go ([`crate::pci::hotplug`] says which).
pub const PCI_HOT_PLUG: u32 = 4;

/// The event device.
pub struct EventDevice {
    line: EventFd,
    pending: AtomicU32,
}

impl EventDevice {
    /// `line` raises its interrupt, edge-triggered.
    pub fn new(line: EventFd) -> Self {
        EventDevice {
            line,
            pending: AtomicU32::new(0),
        }
    }

    /// Tells the guest of `event`.
    ///
    /// # Errors
    /// When the kernel does not take the signal.
    pub fn notify(&self, event: u32) -> io::Result<()> {
        self.pending.fetch_or(event, Ordering::SeqCst);
        self.line.write(1)
    }

    /// Events that the guest has not read yet, for a snapshot.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// Takes up events of a saved machine.
    pub fn restore(&self, pending: u32) {
        self.pending.store(pending, Ordering::SeqCst);
    }
}

impl BusDevice for EventDevice {
    /// Reading takes the events.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *data = self.pending.swap(0, Ordering::SeqCst).to_le_bytes();
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn events_are_told_and_taken_once() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = EventDevice::new(line.try_clone().unwrap());
        device.notify(POWER_BUTTON).unwrap();
        device.notify(NEW_GENERATION).unwrap();
        assert_eq!(line.read().unwrap(), 2);
        let mut data = [0; 4];
        device.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), POWER_BUTTON | NEW_GENERATION);
        device.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
