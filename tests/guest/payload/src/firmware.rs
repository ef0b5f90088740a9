//! What the firmware left in memory: start_info (Xen's x86/HVM direct boot ABI), ACPI and SMBIOS tables.

use crate::memory::Window;
use crate::virtio::{Error, Result};

unsafe extern "C" {
    static start_info_address: u64;
}

const START_INFO_MAGIC: u32 = 0x336e_c578;

fn table(address: u64, len: u64) -> Window {
    // SAFETY: tables of the firmware lie where it says, apart from this program.
    unsafe { Window::new(address, len) }
}

fn start_info() -> Window {
    // SAFETY: boot.s wrote it before any of this ran.
    table(unsafe { start_info_address }, 56)
}

/// The command line.
pub fn command_line() -> &'static str {
    let info = start_info();
    assert!(info.get::<u32>(0) == START_INFO_MAGIC, "start_info is not there");
    let text = table(info.get(24), 2048);
    let len = (0..2048).find(|&i| text.get::<u8>(i) == 0).unwrap_or(0);
    // SAFETY: mapped, and nobody writes it.
    let bytes = unsafe { core::slice::from_raw_parts(text.address() as *const u8, len as usize) };
    core::str::from_utf8(bytes).unwrap_or("")
}

/// Bytes of memory to be used, by the map.
pub fn memory_size() -> u64 {
    let info = start_info();
    let count = u64::from(info.get::<u32>(48));
    let map = table(info.get(40), 24 * count);
    let ram = |i: &u64| map.get::<u32>(24 * i + 16) == 1;
    (0..count).filter(ram).map(|i| map.get::<u64>(24 * i + 8)).sum()
}

fn sums_up(table: &Window) -> bool {
    (0..table.len()).fold(0u8, |sum, i| sum.wrapping_add(table.get(i))) == 0
}

/// An ACPI table, checked.
#[derive(Clone, Copy)]
pub struct Table {
    pub name: [u8; 4],
    pub bytes: Window,
}

impl Table {
    fn at(address: u64) -> Result<Table> {
        let len = table(address, 36).get::<u32>(4);
        let bytes = table(address, len.into());
        let mut name = [0; 4];
        bytes.read(0, &mut name);
        match sums_up(&bytes) {
            true => Ok(Table { name, bytes }),
            false => Err(Error("an ACPI table does not sum up, at", address)),
        }
    }

    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or("?")
    }
}

/// Calls `see` for each table that the root names, and for the DSDT.
pub fn each_table(mut see: impl FnMut(Table)) -> Result<()> {
    let root = table(start_info().get(32), 36);
    if root.get::<u64>(0) != u64::from_le_bytes(*b"RSD PTR ") || !sums_up(&root) {
        return Err(Error("there is no root pointer at", root.address()));
    }
    let xsdt = Table::at(root.get(24))?;
    for at in (36..xsdt.bytes.len()).step_by(8) {
        let table = Table::at(xsdt.bytes.get(at))?;
        see(table);
        if &table.name == b"FACP" {
            see(Table::at(table.bytes.get(140))?);
        }
    }
    Ok(())
}

/// The table of this name.
pub fn find_table(name: &[u8; 4]) -> Result<Table> {
    let mut found = None;
    each_table(|table| {
        if &table.name == name {
            found = Some(table);
        }
    })?;
    found.ok_or(Error("there is no ACPI table", u32::from_le_bytes(*name).into()))
}

/// APIC ids of all processors, in the MADT's order.
pub fn processors(ids: &mut [u32; 64]) -> Result<usize> {
    let madt = find_table(b"APIC")?.bytes;
    let (mut at, mut count) = (44, 0);
    while at < madt.len() {
        if madt.get::<u8>(at) == 0 && madt.get::<u32>(at + 4) & 1 != 0 {
            ids[count] = madt.get::<u8>(at + 3).into();
            count += 1;
        }
        at += u64::from(madt.get::<u8>(at + 1)).max(2);
    }
    Ok(count)
}

/// The interrupt of the device whose registers lie at `base`: in its resources the DSDT names them one after the
/// other (ACPI 6.5, §6.4.3.4 and §6.4.3.6).
pub fn interrupt_of(base: u64) -> Result<u32> {
    let dsdt = find_table(b"DSDT")?.bytes;
    (0..dsdt.len().saturating_sub(21))
        .find(|&at| {
            dsdt.get::<u8>(at) == 0x86
                && dsdt.get::<u16>(at + 1) == 9
                && u64::from(dsdt.get::<u32>(at + 4)) == base
                && dsdt.get::<u8>(at + 12) == 0x89
        })
        .map(|at| dsdt.get(at + 17))
        .ok_or(Error("the tables name no interrupt for", base))
}

/// The system's UUID and serial number, from SMBIOS (DSP0134, §7.2).
pub fn identity(serial: &mut [u8; 64]) -> Result<([u8; 16], usize)> {
    let area = table(0xf_0000, 0x1_0000);
    let entry = (0..area.len() - 24)
        .step_by(16)
        .map(|at| area.part(at, 24))
        .find(|entry| entry.get::<u32>(0) == u32::from_le_bytes(*b"_SM3") && sums_up(entry))
        .ok_or(Error("there is no SMBIOS", 0))?;
    let all = table(entry.get(16), entry.get::<u32>(12).into());
    let mut at = 0;
    while at < all.len() {
        let (kind, len) = (all.get::<u8>(at), u64::from(all.get::<u8>(at + 1)));
        let mut string = at + len;
        if kind == 1 {
            let mut uuid = [0; 16];
            all.read(at + 8, &mut uuid);
            for _ in 1..all.get::<u8>(at + 7) {
                while all.get::<u8>(string) != 0 {
                    string += 1;
                }
                string += 1;
            }
            let mut len = 0;
            while all.get::<u8>(string + len as u64) != 0 && len < 64 {
                serial[len] = all.get(string + len as u64);
                len += 1;
            }
            return Ok((uuid, len));
        }
        while all.get::<u16>(string) != 0 {
            string += 1;
        }
        at = string + 2;
    }
    Err(Error("SMBIOS has no system", 0))
}
