//! The sleep registers of hardware-reduced ACPI (ACPI 6.5, §4.8.3.7): control, then status.

use crate::bus::BusDevice;

/// Control and status, a byte each.
pub const SIZE: u64 = 2;

const SLEEP_ENABLE: u8 = 1 << 5;
const WAKE_STATUS: u8 = 1 << 7;

/// Sleep control and sleep status; the one sleep there is, is soft off.
pub struct SleepRegisters {
    off: u8,
    power_off: Box<dyn Fn() + Send + Sync>,
}

impl SleepRegisters {
    /// `off` is the sleep type that the tables give for soft off; `power_off` is called at it.
    pub fn new(off: u8, power_off: Box<dyn Fn() + Send + Sync>) -> Self {
        SleepRegisters { off, power_off }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 1 { WAKE_STATUS } else { 0 });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, &[value]) = (offset, data)
            && value & SLEEP_ENABLE != 0
            && value >> 2 & 7 == self.off
        {
            (self.power_off)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn only_soft_off_with_the_enable_bit_powers_off() {
        let off = Arc::new(AtomicBool::new(false));
        let heard = off.clone();
        let registers = SleepRegisters::new(5, Box::new(move || heard.store(true, Ordering::SeqCst)));
        for value in [5 << 2, SLEEP_ENABLE, SLEEP_ENABLE | 3 << 2] {
            registers.write(0, &[value]);
            assert!(!off.load(Ordering::SeqCst), "{value:#x}");
        }
        registers.write(0, &[SLEEP_ENABLE | 5 << 2]);
        assert!(off.load(Ordering::SeqCst));
    }
}
