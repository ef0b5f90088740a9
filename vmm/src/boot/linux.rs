//! Linux's 64-bit boot protocol: the zero page (Linux, Documentation/arch/x86/boot.rst, zero-page.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use nacelle_devices::memory::Memory;
use vm_memory::ByteValued;

use super::{CMDLINE_ADDRESS, CMDLINE_MAX, Placed, RSDP_ADDRESS};
use crate::Result;
use crate::memory;
use crate::vcpu::setup::Entry;

const ZERO_PAGE: u64 = 0x7000;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = u32::from_le_bytes(*b"HdrS");
/// "A loader without a number of its own".
const LOADER_UNDEFINED: u8 = 0xff;
const MIN_ALIGNMENT: u32 = 0x100_0000;

/// Writes the zero page; gives the entry. An ELF kernel has no header of its own.
pub(super) fn write(
    memory: &Memory,
    header: Option<setup_header>,
    rip: u64,
    initrd: Option<Placed>,
) -> Result<Entry> {
    let mut params = boot_params {
        hdr: header.unwrap_or_default(),
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE_ADDRESS as u32;
    if header.is_none() {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER;
        params.hdr.kernel_alignment = MIN_ALIGNMENT;
        params.hdr.cmdline_size = CMDLINE_MAX as u32 - 1;
    }
    if let Some(Placed { address, size }) = initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    params.acpi_rsdp_addr = RSDP_ADDRESS;
    let mut table = params.e820_table;
    let map = memory::map(memory::size(memory));
    for (entry, (addr, size, kind)) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *kind as u32,
        };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    memory::write(memory, ZERO_PAGE, params.as_slice(), "the zero page")?;
    Ok(Entry::Linux64 {
        rip,
        boot_params: ZERO_PAGE,
    })
}
