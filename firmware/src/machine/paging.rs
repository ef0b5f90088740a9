//! Memory is mapped to itself, open to ring 3: of it the first 2 MiB by entry.s, the rest of the first 4 GiB before
//! anything else is done. Registers of PCI devices lie above the memory of the machine, and are mapped when they are
//! found.

use super::heap;
use super::window::Window;

unsafe extern "C" {
    static pml4: [u64; 512];
    static low_pages: [u64; 4 * 512];
}

const TABLE: u64 = 4096;
const LARGE: u64 = 2 << 20;
/// Present, writable, for ring 3.
const FLAGS: u64 = 7;
/// A large page.
const PAGE_SIZE: u64 = 0x80;
/// A large page that is not cached.
const DEVICE: u64 = PAGE_SIZE | 0x10 | FLAGS;
/// The highest address that four levels of tables reach.
const LIMIT: u64 = 1 << 47;

fn table(address: u64) -> Window {
    // SAFETY: page tables lie in memory that nothing else uses.
    unsafe { Window::new(address, TABLE) }
}

/// Maps the first 4 GiB.
pub fn map_memory() {
    let pages = &raw const low_pages as u64;
    let directory = table(table(&raw const pml4 as u64).get::<u64>(0) & !0xfff);
    for i in 0..4 {
        let of = table(pages + i * TABLE);
        for entry in 0..512 {
            of.set(8 * entry, (512 * i + entry) * LARGE | PAGE_SIZE | FLAGS);
        }
        directory.set(8 * i, of.address() | FLAGS);
    }
}

/// The table below entry `index` of `of`, made if it is not there.
fn below(of: Window, index: u64) -> Window {
    let entry: u64 = of.get(8 * index);
    if entry & 1 != 0 {
        return table(entry & !0xfff);
    }
    let new = heap::take_pages(1);
    of.set(8 * index, new.address() | FLAGS);
    new
}

/// Registers of a device: `len` bytes at `base`, mapped where they are not yet.
pub fn registers(base: u64, len: u64) -> Option<Window> {
    let end = base.checked_add(len).filter(|end| *end <= LIMIT)?;
    let mut page = base & !(LARGE - 1);
    while page < end {
        let root = table(&raw const pml4 as u64);
        let middle = below(root, page >> 39);
        let last = below(middle, page >> 30 & 511);
        let index = page >> 21 & 511;
        if last.get::<u64>(8 * index) & 1 == 0 {
            last.set(8 * index, page | DEVICE);
        }
        page += LARGE;
    }
    // SAFETY: mapped now, and no memory that the compiler uses: PCI gave this range to the device.
    Some(unsafe { Window::new(base, len) })
}
