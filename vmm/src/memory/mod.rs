//! Guest memory: where it lies for the guest, and what backs it on the host.
//!
//! ```text
//!   0 ─────────── 3 GiB ──────────────────────────── 4 GiB ──────────── end of memory ── 64-bit window
//!   memory        virtio-mmio, ECAM, I/O APIC, APIC  memory above 3 GiB                  PCI BARs
//! ```
#![expect(unsafe_code, reason = "gives mapped memory to the hypervisor")]

pub mod dirty;

use std::fs::File;
use std::io;
use std::sync::Arc;

use nacelle_devices::memory::Memory;
use vm_memory::mmap::{GuestRegionMmap, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use crate::config::{MemoryConfig, PageSize};
use crate::hypervisor::{MemorySlot, Partition};
use crate::{Error, Result};

/// End of memory below 4 GiB at most; devices lie between here and 4 GiB.
pub const LOW_END: u64 = 3 << 30;
/// Where memory goes on above the devices.
pub const HIGH_START: u64 = 4 << 30;
/// The window of virtio-mmio devices, a page each.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// The ACPI event device.
pub const GED_BASE: u64 = 0xd800_0000;
/// Registers of PCI hot-plug.
pub const HOT_PLUG_BASE: u64 = GED_BASE + 0x1000;
/// PCI configuration space (ECAM) of bus 0.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Size of the configuration space of one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// 32-bit window for PCI BARs.
pub const PCI32_BASE: u64 = 0xc000_0000;
/// Size of the 32-bit window.
pub const PCI32_SIZE: u64 = 0x1000_0000;
/// Size of the 64-bit window for PCI BARs, which begins above memory.
pub const PCI64_SIZE: u64 = 1 << 34;
/// First address of the part of the first MiB that holds firmware tables, not memory to be used.
pub const BIOS_START: u64 = 0xa_0000;
/// End of the first MiB.
pub const BIOS_END: u64 = 0x10_0000;

/// Guest memory in one or two ranges.
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    match size.checked_sub(LOW_END) {
        None | Some(0) => vec![(0, size)],
        Some(high) => vec![(0, LOW_END), (HIGH_START, high)],
    }
}

/// Where the 64-bit window for PCI BARs begins: above memory, on a GiB.
pub fn pci64_base(size: u64) -> u64 {
    let end = ranges(size).last().map_or(0, |(base, len)| base + len);
    end.max(HIGH_START).next_multiple_of(1 << 30)
}

/// What the firmware's memory map says of a range (ACPI 6.5, §15, E820).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Memory to be used.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// The memory map that a guest is told: start, length, kind.
pub fn map(size: u64) -> Vec<(u64, u64, RangeKind)> {
    let mut map = vec![
        (0, BIOS_START, RangeKind::Ram),
        (BIOS_START, BIOS_END - BIOS_START, RangeKind::Reserved),
    ];
    for (base, len) in ranges(size) {
        let start = base.max(BIOS_END);
        map.push((start, base + len - start, RangeKind::Ram));
    }
    map.push((ECAM_BASE, ECAM_SIZE, RangeKind::Reserved));
    map.sort_unstable_by_key(|&(start, ..)| start);
    map
}

/// Maps guest memory as `config` says.
///
/// # Errors
/// When the host has not that much.
pub fn create(config: &MemoryConfig) -> Result<Memory> {
    let fail = |source| memory_error(config, source);
    let file = if config.shared {
        Some(Arc::new(memfd(config).map_err(fail)?))
    } else {
        None
    };
    let mut flags = match config.shared {
        true => libc::MAP_SHARED,
        false => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    if config.prefault {
        flags |= libc::MAP_POPULATE;
    }
    if !config.shared {
        flags |= match config.pages {
            PageSize::Ordinary => 0,
            PageSize::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            PageSize::Huge1G => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
        };
    }
    regions(config, file, flags)
}

/// Maps guest memory from `file`, which has it range after range. What the guest writes is not written to it.
///
/// # Errors
/// When the host does not map so much.
pub fn from_file(config: &MemoryConfig, file: File) -> Result<Memory> {
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    regions(config, Some(Arc::new(file)), flags)
}

/// Maps guest memory that another process of this host has in `file`, as [`file`](fn@file) gives it.
///
/// # Errors
/// When it is no file of this much.
pub fn shared(config: &MemoryConfig, file: File) -> Result<Memory> {
    let len = file
        .metadata()
        .map_err(|source| memory_error(config, source))?
        .len();
    if len < config.size {
        return Err(Error::Restore(format!(
            "a file of {len} bytes for memory of {}",
            config.size
        )));
    }
    regions(config, Some(Arc::new(file)), libc::MAP_SHARED)
}

/// The file that `memory` is mapped shared from, where it is.
///
/// # Errors
/// When there is no descriptor left.
pub fn file(memory: &Memory) -> Result<Option<File>> {
    let shared = memory
        .iter()
        .find(|region| region.flags() & libc::MAP_SHARED != 0);
    let file = shared.and_then(GuestMemoryRegion::file_offset);
    file.map(|at| at.file().try_clone())
        .transpose()
        .map_err(Error::io("duplicate the file of guest memory"))
}

fn regions(config: &MemoryConfig, file: Option<Arc<File>>, flags: libc::c_int) -> Result<Memory> {
    let fail = |source| memory_error(config, source);
    let mut regions = Vec::new();
    let mut offset = 0;
    for (base, len) in ranges(config.size) {
        let size = usize::try_from(len).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
        let backing = file
            .as_ref()
            .map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        let region =
            MmapRegion::build(backing, size, libc::PROT_READ | libc::PROT_WRITE, flags).map_err(|error| {
                fail(match error {
                    MmapRegionError::Mmap(source) => source,
                    other => io::Error::other(other),
                })
            })?;
        let advise = |advice| {
            // SAFETY: the range was mapped just now and is owned by `region`; neither advice changes what is in it.
            unsafe { libc::madvise(region.as_ptr().cast(), size, advice) };
        };
        // A core dump of the monitor is about the monitor.
        advise(libc::MADV_DONTDUMP);
        if config.pages == PageSize::Ordinary {
            // Most hosts join pages only where they are asked to. A fault of the guest then brings 2 MiB, and its own
            // pages are found in fewer steps.
            advise(libc::MADV_HUGEPAGE);
        }
        let region = GuestRegionMmap::new(region, GuestAddress(base))
            .ok_or_else(|| fail(io::Error::other("guest addresses overflow")))?;
        regions.push(region);
        offset += len;
    }
    Memory::from_regions(regions).map_err(|error| fail(io::Error::other(error)))
}

fn memfd(config: &MemoryConfig) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    let huge = match config.pages {
        PageSize::Ordinary => 0,
        PageSize::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        PageSize::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    };
    // SAFETY: the name is a C string; the call has no other requirement.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC | huge) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(config.size)?;
    Ok(file)
}

fn memory_error(config: &MemoryConfig, source: io::Error) -> Error {
    let pages = config.size / config.pages.bytes();
    let hint = match config.pages {
        PageSize::Ordinary => String::new(),
        PageSize::Huge2M => {
            format!(
                ": it needs {pages} free 2 MiB pages (/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
            )
        }
        PageSize::Huge1G => {
            format!(
                ": it needs {pages} free 1 GiB pages (/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages)"
            )
        }
    };
    Error::Memory {
        mib: config.size >> 20,
        hint,
        source,
    }
}

/// Tells the hypervisor of all of `memory`, one slot a range.
///
/// # Errors
/// When it refuses.
pub fn give_to(partition: &dyn Partition, memory: &Memory, log_dirty: bool) -> Result<()> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = MemorySlot {
            slot: slot as u32,
            guest: region.start_addr().0,
            size: region.len(),
            host: region.as_ptr() as u64,
            log_dirty,
        };
        // SAFETY: the machine keeps `memory` for as long as it keeps the partition, and drops the partition's
        // vCPUs first.
        unsafe { partition.set_memory(slot) }?;
    }
    Ok(())
}

/// Bytes of guest memory.
pub fn size(memory: &Memory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Copies `data` to guest memory at `address`; `what` is for the message.
///
/// # Errors
/// When it does not fit.
pub fn write(memory: &Memory, address: u64, data: &[u8], what: &str) -> Result<()> {
    use vm_memory::Bytes;
    memory
        .write_slice(data, GuestAddress(address))
        .map_err(|_| Error::DoesNotFit {
            what: what.to_owned(),
            mib: size(memory) >> 20,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_makes_room_for_devices_below_4_gib() {
        assert_eq!(ranges(GIB), [(0, GIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(8 * GIB), [(0, 3 * GIB), (4 * GIB, 5 * GIB)]);
        assert_eq!(pci64_base(GIB), 4 * GIB);
        assert_eq!(pci64_base(8 * GIB), 9 * GIB);
    }

    #[test]
    fn the_map_says_all_memory_once_and_in_order() {
        for size in [64 << 20, 3 * GIB, 8 * GIB] {
            let map = map(size);
            let ram: u64 = map.iter().filter(|r| r.2 == RangeKind::Ram).map(|r| r.1).sum();
            assert_eq!(ram, size - (BIOS_END - BIOS_START));
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
            }
        }
    }

    #[test]
    fn more_huge_pages_than_there_are_is_an_error_that_says_where_to_get_them() {
        let config = MemoryConfig {
            size: 1 << 40,
            pages: PageSize::Huge2M,
            ..Default::default()
        };
        let error = create(&config).unwrap_err().to_string();
        assert!(error.contains("524288 free 2 MiB pages"), "{error}");
    }
}
