//! The reset vector, for guests that restart a PC by jumping to it in real mode.
//!
//! Linux does so where ACPI is hardware-reduced: it then trusts EFI alone to restart the machine, and without EFI takes
//! the way of the first PC (`arch/x86/kernel/reboot.c`).

use nacelle_devices::platform::i8042;

/// F000:FFF0 (IBM PC/AT Technical Reference, 1984, BIOS listing: the power-on reset vector).
pub const ADDRESS: u64 = 0xf_fff0;

/// 16-bit code that pulses the reset line of the keyboard controller, and waits for what comes of it.
pub const CODE: [u8; 7] = [
    0xb0, // mov al, imm8
    i8042::RESET.1,
    0xe6, // out imm8, al
    i8042::RESET.0 as u8,
    0xf4, // hlt
    0xeb, // jmp to the hlt
    0xfd,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_ends_with_the_first_mib_and_stays_in_it() {
        assert!(ADDRESS + CODE.len() as u64 <= crate::memory::BIOS_END);
        // The jump goes back from its own end to the byte before it.
        let end = CODE.len() as i8;
        assert_eq!(CODE[(end + CODE[6] as i8) as usize], 0xf4);
    }
}
