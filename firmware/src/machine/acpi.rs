//! ACPI tables (6.5, §5.2), as far as they say where devices are: the PCI configuration space, and virtio-mmio.

use alloc::vec::Vec;

use super::window::Window;

const HEADER: u64 = 36;
/// No table of a machine is larger.
const MAX_TABLE: u32 = 1 << 20;

fn at(address: u64, len: u64) -> Window {
    // SAFETY: the monitor wrote the tables where the root pointer leads, apart from the firmware.
    unsafe { Window::new(address, len) }
}

/// The tables that the root pointer at `rsdp` leads to, the DSDT among them.
fn tables(rsdp: u64) -> Vec<Window> {
    let root = at(rsdp, 36);
    // From version 2 on there are 64-bit addresses, which the monitor's tables have.
    let known = root.get::<u64>(0) == u64::from_le_bytes(*b"RSD PTR ") && root.get::<u8>(15) >= 2;
    if rsdp == 0 || !known {
        return Vec::new();
    }
    let table = |address: u64| {
        let len = at(address, HEADER).get::<u32>(4).clamp(HEADER as u32, MAX_TABLE);
        at(address, len.into())
    };
    let xsdt = table(root.get(24));
    let mut tables = Vec::new();
    for entry in (HEADER..xsdt.len() - 7).step_by(8) {
        let found = table(xsdt.get(entry));
        tables.push(found);
        if name(&found) == *b"FACP" && found.len() >= 148 {
            tables.push(table(found.get(140)));
        }
    }
    tables
}

fn name(table: &Window) -> [u8; 4] {
    table.get::<u32>(0).to_le_bytes()
}

/// Where devices are.
pub struct Places {
    /// The PCI configuration space of bus 0 (MCFG).
    pub ecam: Option<u64>,
    /// Registers of virtio-mmio devices, as the DSDT names them.
    pub mmio: Vec<u64>,
}

/// Looks them up.
pub fn places(rsdp: u64) -> Places {
    let mut places = Places {
        ecam: None,
        mmio: Vec::new(),
    };
    for table in tables(rsdp) {
        match &name(&table) {
            // The first allocation, after 8 reserved bytes.
            b"MCFG" if table.len() >= HEADER + 24 => places.ecam = Some(table.get(HEADER + 8)),
            b"DSDT" => places.mmio = mmio(&table.to_vec()),
            _ => {}
        }
    }
    places
}

/// A device with the id of virtio-mmio is followed by its resources, of which the first is a range of memory
/// (§6.4.3.4: 0x86, 9 bytes, flags, base, length).
fn mmio(dsdt: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    let mut rest = dsdt;
    while let Some(id) = rest.windows(8).position(|bytes| bytes == b"LNRO0005") {
        rest = rest.get(id + 8..).unwrap_or_default();
        let range = rest.windows(8).position(|bytes| bytes.starts_with(&[0x86, 9, 0]));
        let Some([_, _, _, _, base @ ..]) = range.and_then(|at| rest.get(at..at + 8)) else {
            break;
        };
        found.extend(base.try_into().map(u32::from_le_bytes).map(u64::from));
    }
    found
}
