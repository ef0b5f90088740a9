//! The keyboard controller's one pin that every guest knows: pulsing it resets the machine.

use crate::bus::BusDevice;

/// Ports 0x60 to 0x64.
pub const BASE: u64 = 0x60;
/// How many ports.
pub const SIZE: u64 = 5;
/// The command port, and the command that pulses the reset line.
pub const RESET: (u16, u8) = (0x64, 0xfe);

/// A keyboard controller without a keyboard.
pub struct I8042 {
    reset: Box<dyn Fn() + Send + Sync>,
}

impl I8042 {
    /// `reset` is called when the guest pulses the reset line.
    pub fn new(reset: Box<dyn Fn() + Send + Sync>) -> Self {
        I8042 { reset }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Status: both buffers empty, so that a guest neither waits for us nor reads a key.
        data.fill(if offset == 4 { 0 } else { 0xff });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 4 && data == [RESET.1] {
            (self.reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn only_the_pulse_resets() {
        let count = Arc::new(AtomicU32::new(0));
        let heard = count.clone();
        let device = I8042::new(Box::new(move || {
            heard.fetch_add(1, Ordering::SeqCst);
        }));
        device.write(0, &[0xfe]);
        device.write(4, &[0xd1]);
        assert_eq!(count.load(Ordering::SeqCst), 0);
        device.write(4, &[0xfe]);
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }
}
