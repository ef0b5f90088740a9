//! I/O ports.

use core::arch::asm;

/// Reads a byte.
pub fn read(port: u16) -> u8 {
    let value;
    // SAFETY: the ports that the firmware names have no effect on memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a byte.
pub fn write(port: u16, value: u8) {
    // SAFETY: as in `read`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Seconds of the hardware clock's minute, for waits in seconds (MC146818, register 0).
pub fn clock_second() -> u8 {
    write(0x70, 0);
    read(0x71)
}

/// Tells the monitor that the machine cannot go on (pvpanic's port and its bit for a panic).
pub fn give_notice() {
    write(0x505, 1);
}
