//! PVH: what the guest finds at `start_info` (Xen's x86/HVM direct boot ABI).

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use nacelle_devices::memory::Memory;
use vm_memory::ByteValued;

use super::{CMDLINE_ADDRESS, Placed, RSDP_ADDRESS};
use crate::Result;
use crate::memory;
use crate::vcpu::setup::Entry;

const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x6080;
const MAGIC: u32 = 0x336e_c578;

/// Writes the structures; gives the entry.
pub(super) fn write(memory: &Memory, rip: u64, initrd: Option<Placed>) -> Result<Entry> {
    let map: Vec<_> = memory::map(memory::size(memory))
        .into_iter()
        .map(|(addr, size, kind)| hvm_memmap_table_entry {
            addr,
            size,
            type_: kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE_ADDRESS,
        rsdp_paddr: RSDP_ADDRESS,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory::write(memory, START_INFO, info.as_slice(), "start_info")?;
    if let Some(Placed { address, size }) = initrd {
        let module = hvm_modlist_entry {
            paddr: address,
            size,
            ..Default::default()
        };
        memory::write(memory, MODULES, module.as_slice(), "the module list")?;
    }
    let map: Vec<u8> = map.iter().flat_map(|entry| entry.as_slice().to_vec()).collect();
    memory::write(memory, MEMORY_MAP, &map, "the memory map")?;
    Ok(Entry::Pvh {
        rip,
        start_info: START_INFO,
    })
}
