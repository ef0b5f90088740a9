//! The processor: ports, interrupts and their controllers, waiting.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::memory::Window;

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static interrupt_entries: [[u8; 16]; 256];
    static interrupt_counts: [AtomicU64; 256];
    static interrupts_taken: AtomicU32;
    static cpus_started: AtomicU32;
    fn ring0(argument: u32, what: u32);
}

/// What ring 0 does for us.
#[derive(Clone, Copy)]
pub enum Ring0 {
    /// Waits for an interrupt, unless `interrupts_taken` is no longer the argument.
    Halt = 0,
    /// Runs `int3`.
    Int3 = 1,
    /// Runs `fwait`.
    Fwait = 2,
    /// Makes the processor give up.
    TripleFault = 3,
    /// Lets interrupts in.
    AllowInterrupts = 4,
}

/// Has ring 0 do something.
pub fn ask(what: Ring0) {
    // SAFETY: boot.s comes back with all registers as they were, but RAX.
    unsafe { ring0(0, what as u32) }
}

/// Writes a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: ports do not touch our memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

/// Reads a port.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as `outb`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) };
    value
}

/// Reads or writes a port with 1, 2 or 4 bytes; gives what was read.
pub fn port(port: u16, width: u8, value: Option<u32>) -> u32 {
    let mut eax = value.unwrap_or(0);
    // SAFETY: as `outb`.
    unsafe {
        match (width, value.is_some()) {
            (1, true) => asm!("out dx, al", in("dx") port, in("al") eax as u8),
            (2, true) => asm!("out dx, ax", in("dx") port, in("ax") eax as u16),
            (_, true) => asm!("out dx, eax", in("dx") port, in("eax") eax),
            (1, false) => asm!("in al, dx", in("dx") port, inout("eax") eax),
            (2, false) => asm!("in ax, dx", in("dx") port, inout("eax") eax),
            (_, false) => asm!("in eax, dx", in("dx") port, inout("eax") eax),
        }
    }
    eax
}

/// First vector of interrupts that are ours to give out.
pub const FIRST_VECTOR: u8 = 0x30;
/// Where a message goes that interrupts the first processor.
pub const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// Registers of this processor's local APIC.
pub fn local_apic() -> Window {
    // SAFETY: it lies there after reset, beyond memory.
    unsafe { Window::new(0xfee0_0000, 0x1000) }
}

fn io_apic(register: u32, value: u32) {
    // SAFETY: it lies there, says the MADT; beyond memory.
    let window = unsafe { Window::new(0xfec0_0000, 0x20) };
    window.set(0, register);
    window.set(0x10, value);
}

/// Lets interrupts in: fills the table of handlers, silences the old controllers, switches the APIC on.
pub fn init_interrupts() {
    for vector in 0..256 {
        // SAFETY: both tables have 256 entries, and nobody else writes the first one.
        unsafe {
            let entry = (&raw const interrupt_entries[vector]) as u64;
            // Ring 0 code, present, interrupt gate.
            let low = (entry & 0xffff) | 0x08 << 16 | 0x8e00 << 32 | (entry >> 16 & 0xffff) << 48;
            idt[vector] = [low, entry >> 32];
        }
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    local_apic().set(0xf0, 0x1ffu32);
    ask(Ring0::AllowInterrupts);
}

/// Sends edges of a pin of the I/O APIC to `vector` of the first processor.
pub fn route_pin(pin: u32, vector: u8) {
    io_apic(0x10 + 2 * pin + 1, 0);
    io_apic(0x10 + 2 * pin, u32::from(vector));
}

/// How often `vector` came.
pub fn interrupts(vector: u8) -> u64 {
    // SAFETY: the table has 256 entries of numbers that are only added to.
    unsafe { (*(&raw const interrupt_counts))[usize::from(vector)].load(Ordering::SeqCst) }
}

/// How many processors have begun.
pub fn started() -> u32 {
    // SAFETY: a number that boot.s only adds to.
    unsafe { (*(&raw const cpus_started)).load(Ordering::SeqCst) }
}

/// Sleeps until `look` finds something; it looks after every interrupt.
pub fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        // SAFETY: a number that is only added to.
        let taken = unsafe { (*(&raw const interrupts_taken)).load(Ordering::SeqCst) };
        if let Some(found) = look() {
            return found;
        }
        // SAFETY: as `ask`. An interrupt since the first line is not slept over.
        unsafe { ring0(taken, Ring0::Halt as u32) }
    }
}

/// Stops for good.
pub fn stop() -> ! {
    wait(|| None)
}

/// Switches the machine off (ACPI's sleep control register, soft off).
pub fn power_off() -> ! {
    outb(0x600, 5 << 2 | 1 << 5);
    stop()
}

/// Resets the machine as PCs do.
pub fn reset() -> ! {
    outb(0x64, 0xfe);
    stop()
}
