//! The menu on the serial line.

use alloc::vec::Vec;
use core::hint::spin_loop;

use nacelle_firmware::boot::Entry;

use crate::machine::serial::say;
use crate::machine::{ports, serial};

/// As many as have a digit.
const SHOWN: usize = 9;
/// How often the clock is looked at: each look is an exit to the monitor.
const LOOKS: u32 = 20_000;

/// Shows the first of `entries` and waits for a digit for so many seconds; the one that is chosen comes first then.
pub fn show(entries: &mut Vec<&Entry>, wait: u32) {
    for (i, entry) in (1..).zip(entries.iter().take(SHOWN)) {
        say!("  {i}  {} ({})", entry.title, entry.kind);
    }
    let most = entries.len().min(SHOWN);
    say!("nacelle: 1 to {most} boots one of them, Enter the first, which boots in {wait} s");
    serial::listen(true);
    let chosen = choose(most, wait);
    serial::listen(false);
    if let Some(index) = chosen {
        let entry = entries.remove(index);
        entries.insert(0, entry);
    }
}

fn choose(most: usize, wait: u32) -> Option<usize> {
    let mut second = ports::clock_second();
    let mut passed = 0;
    while passed < wait {
        match serial::typed() {
            Some(b'\r' | b'\n') => return None,
            Some(digit @ b'1'..=b'9') if usize::from(digit - b'0') <= most => {
                return Some(usize::from(digit - b'1'));
            }
            _ => {}
        }
        (0..LOOKS).for_each(|_| spin_loop());
        let now = ports::clock_second();
        passed += u32::from(now != second);
        second = now;
    }
    None
}
