//! A bare-metal guest: the words of its command line name what it does; each reports `ok NAME DETAILS` or
//! `fail NAME WHY` over the serial line. Then it powers the machine off.
#![no_std]
#![no_main]

mod cpu;
mod firmware;
mod interrupts;
mod memory;
mod serial;
mod tests;
mod virtio;

use core::arch::global_asm;
use core::panic::PanicInfo;

global_asm!(include_str!("boot.s"));

unsafe extern "C" {
    static exception_record: [u64; 4];
}

/// Where every processor arrives from ring 0, the first one as number 0.
#[unsafe(no_mangle)]
extern "C" fn start(number: u32) -> ! {
    if number > 0 {
        tests::other_processor();
    }
    cpu::init_interrupts();
    // Ends a line that was being said when the machine was reset.
    say!("\nok start");
    for word in firmware::command_line().split_whitespace() {
        if let Err(virtio::Error(why, number)) = tests::run(word) {
            say!("fail {word} {why} {number} ({number:#x})");
        }
    }
    cpu::power_off()
}

/// An exception of the processor ends here.
#[unsafe(no_mangle)]
extern "C" fn on_exception() -> ! {
    // SAFETY: boot.s wrote it just now.
    let [vector, code, rip, address] = unsafe { exception_record };
    say!("fail exception {vector} code {code:#x} at {rip:#x} address {address:#x}");
    cpu::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    say!("fail panic {info}");
    cpu::power_off()
}

/// The prebuilt `core` names it; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
