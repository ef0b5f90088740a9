//! What the monitor says of the machine: `start_info` of Xen's x86/HVM direct boot ABI.

use alloc::string::String;
use alloc::vec::Vec;

use nacelle_firmware::memory::{Range, RangeKind};

use super::window::Window;

unsafe extern "C" {
    static start_info_address: u64;
}

const MAGIC: u32 = 0x336e_c578;
/// Most bytes of a command line that is looked at, and most ranges of a memory map: the zero page has no more.
const MAX_CMDLINE: u64 = 2048;
const MAX_RANGES: u32 = 128;

/// What the monitor says.
pub struct StartInfo {
    /// Words for the firmware.
    pub cmdline: String,
    /// The machine's memory.
    pub memory: Vec<Range>,
    /// Address of the ACPI root pointer.
    pub rsdp: u64,
}

/// Reads it.
pub fn start_info() -> Option<StartInfo> {
    // SAFETY: entry.s wrote it before any of this ran.
    let address = unsafe { (&raw const start_info_address).read() };
    // SAFETY: the monitor put it there, apart from the firmware; version 1 has 56 bytes.
    let info = unsafe { Window::new(address, 56) };
    if info.get::<u32>(0) != MAGIC || info.get::<u32>(4) < 1 {
        return None;
    }
    let count = info.get::<u32>(48).min(MAX_RANGES);
    // SAFETY: as above; an entry has 24 bytes.
    let map = unsafe { Window::new(info.get(40), 24 * u64::from(count)) };
    let memory = (0..u64::from(count))
        .map(|i| Range {
            start: map.get(24 * i),
            len: map.get(24 * i + 8),
            kind: RangeKind::from(map.get::<u32>(24 * i + 16)),
        })
        .collect();
    Some(StartInfo {
        cmdline: text(info.get(24)),
        memory,
        rsdp: info.get(32),
    })
}

fn text(address: u64) -> String {
    if address == 0 {
        return String::new();
    }
    // SAFETY: as above; it lies in low memory, all of which is there.
    let bytes = unsafe { Window::new(address, MAX_CMDLINE) };
    let byte = (0..MAX_CMDLINE).map(|i| bytes.get::<u8>(i));
    byte.take_while(|byte| *byte != 0).map(char::from).collect()
}
