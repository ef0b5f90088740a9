//! Every width at every offset: ports, and registers in memory.

use super::Dice;
use crate::memory::Window;
use crate::virtio::Result;
use crate::{cpu, say, serial};

/// Ports that are written only on purpose: they end or reset the machine, or are the kernel's own (interrupt
/// controllers, timer), or tell that the guest has panicked.
fn is_left_alone(port: u16) -> bool {
    matches!(port, 0x20..=0x23 | 0x40..=0x43 | 0x5d..=0x64 | 0xa0..=0xa3 | 0x4cd..=0x4d1 | 0x502..=0x505 | 0x5fd..=0x603 | 0xcf5..=0xcf9)
}

/// Where registers lie in memory, as far as this program has it mapped.
const REGISTERS: [(u64, u64); 5] = [
    (0xc000_0000, 0x1000_0000),
    (0xd000_0000, 0x1_0000),
    (0xd800_0000, 0x1000),
    (0xe000_0000, 1 << 20),
    (0x1_0000_0000, 12 << 30),
];
/// So much of each is read and written in every place; the rest in some.
const DENSE: u64 = 0x200;
const SAMPLES: u64 = 1500;

/// Reads and writes them, by a seed.
pub fn sweep(seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed);
    let line: [u8; 8] = core::array::from_fn(|i| match i {
        0 | 2 | 5 | 6 => 0,
        i => cpu::inb(0x3f8 + i as u16),
    });
    for port in 0..0x800u16 {
        for width in [1, 2, 4] {
            cpu::port(port, width, None);
            if !is_left_alone(port) && !(0x3f5..0x400).contains(&port) {
                cpu::port(port, width, Some(dice.roll() as u32));
            }
        }
    }
    for _ in 0..SAMPLES {
        let (port, width) = (dice.roll() as u16 | 0x1000, dice.of(&[1, 2, 4]));
        cpu::port(port, width, None);
        cpu::port(port, width, Some(dice.roll() as u32));
    }
    // The serial line last, as it says the rest: all of its registers, then what they were.
    for _ in 0..200 {
        let port = 0x3f8 + dice.below(8) as u16;
        cpu::port(port, dice.of(&[1, 2, 4]), None);
        // Not the data, which would be said.
        if port != 0x3f8 {
            cpu::port(port, 1, Some(dice.roll() as u32));
        }
    }
    for i in [1, 3, 4, 7] {
        cpu::outb(0x3f8 + i, line[usize::from(i)]);
    }
    while serial::typed().is_some() {}
    say!("\nok sweep ports");
    for (base, len) in REGISTERS {
        // SAFETY: beyond memory: devices, or nothing.
        let window = unsafe { Window::new(base, len) };
        let places = (0..DENSE).chain((0..SAMPLES).map(|_| u64::MAX));
        for place in places {
            let at = if place == u64::MAX {
                dice.below(len - 8)
            } else {
                place
            };
            touch(&window, at, &mut dice);
        }
    }
    say!("ok sweep registers");
    Ok(())
}

fn touch(window: &Window, at: u64, dice: &mut Dice) {
    let value = dice.roll();
    match dice.below(4) {
        0 => {
            let _ = window.get::<u8>(at);
            window.set(at, value as u8);
        }
        1 => {
            let _ = window.get::<u16>(at);
            window.set(at, value as u16);
        }
        2 => {
            let _ = window.get::<u32>(at);
            window.set(at, value as u32);
        }
        _ => {
            let _ = window.get::<u64>(at);
            window.set(at, value);
        }
    }
}
