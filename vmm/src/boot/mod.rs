//! What a guest finds in memory at its first instruction: kernel, initial RAM disk, arguments, tables.
//!
//! ```text
//!   0x0500 descriptor table    0x6000 start_info or    0x7000 zero page    0x9000 page tables (64-bit entry)
//!   0x2_0000 arguments         0xe_0000 ACPI, SMBIOS   0x10_0000 kernel    top of low memory: initrd
//! ```

pub mod acpi;
mod elf;
mod hot_plug;
mod linux;
mod pvh;
pub mod reset;
pub mod smbios;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use nacelle_devices::memory::Memory;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::config::BootConfig;
use crate::memory::{self, LOW_END};
use crate::vcpu::setup::{Entry, GDT_ADDRESS, PAGE_TABLES};
use crate::{Error, Result};

/// Kernel arguments, ended by a zero.
pub const CMDLINE_ADDRESS: u64 = 0x2_0000;
/// Most bytes of kernel arguments that x86 Linux reads (COMMAND_LINE_SIZE), the zero among them.
pub const CMDLINE_MAX: usize = 2048;
/// The ACPI root pointer; the tables follow.
pub const RSDP_ADDRESS: u64 = 0xe_0000;
/// SMBIOS entry point, where guests look for it: 0xf0000 to the end of the first MiB.
pub const SMBIOS_ADDRESS: u64 = 0xf_0000;
/// Where a kernel may lie.
const KERNEL_START: u64 = 0x10_0000;

/// A kernel in guest memory, and what its boot protocol needs to know.
enum Loaded {
    /// An ELF file that names its PVH entry.
    Pvh { entry: u64, end: u64 },
    /// An ELF file without one: Linux is entered in long mode.
    Elf { entry: u64, end: u64 },
    /// A bzImage.
    BzImage {
        header: Box<linux_loader::bootparam::setup_header>,
        start: u64,
        end: u64,
    },
}

/// What is in memory before the guest is put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Zeroes: it was mapped just now. Looking for other bytes would cost milliseconds.
    Zeroes,
    /// What the guest left at a reset: it is cleared where a kernel relies on zeroes.
    Used,
}

/// Puts everything into `memory`; gives how the boot processor starts.
///
/// # Errors
/// When a file cannot be read, is no kernel, or does not fit.
pub fn load(memory: &Memory, boot: &BootConfig, before: Before) -> Result<Entry> {
    let kernel = load_kernel(memory, &boot.kernel, before)?;
    let (end, initrd_max) = match &kernel {
        Loaded::Pvh { end, .. } | Loaded::Elf { end, .. } => (*end, LOW_END),
        Loaded::BzImage { header, end, .. } => (*end, u64::from(header.initrd_addr_max) + 1),
    };
    let initrd = match &boot.initrd {
        Some(path) => Some(load_initrd(memory, path, end, initrd_max)?),
        None => None,
    };
    let cmdline = &boot.cmdline;
    if cmdline.len() >= CMDLINE_MAX {
        let reason = format!(
            "{} bytes, at most {} can be read by the guest",
            cmdline.len(),
            CMDLINE_MAX - 1
        );
        return Err(Error::Config {
            field: "boot.cmdline",
            reason,
        });
    }
    memory::write(
        memory,
        CMDLINE_ADDRESS,
        &[cmdline.as_bytes(), &[0]].concat(),
        "the kernel's arguments",
    )?;
    let entry = match kernel {
        Loaded::Pvh { entry, .. } => pvh::write(memory, entry, initrd)?,
        Loaded::Elf { entry, .. } => linux::write(memory, None, entry, initrd)?,
        Loaded::BzImage { header, start, .. } => linux::write(memory, Some(*header), start + 0x200, initrd)?,
    };
    memory::write(memory, GDT_ADDRESS, &entry.gdt(), "the descriptor table")?;
    memory::write(memory, PAGE_TABLES, &entry.page_tables(), "the first page tables")?;
    Ok(entry)
}

/// Where a file was put.
#[derive(Clone, Copy)]
struct Placed {
    address: u64,
    size: u64,
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

fn load_kernel(memory: &Memory, path: &Path, before: Before) -> Result<Loaded> {
    use linux_loader::loader::elf::PvhBootCapability;
    use linux_loader::loader::{BzImage, Elf, KernelLoader};

    let wrong = |reason: String| Error::Kernel {
        path: path.to_owned(),
        reason,
    };
    let unreadable = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let mut file = open(path)?;
    let mut head = Vec::new();
    (&file).take(0x264).read_to_end(&mut head).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    match kind(&head) {
        Kind::Elf => {
            let loaded =
                Elf::load(memory, None, &mut file, None).map_err(|error| wrong(error.to_string()))?;
            clear_bss(memory, path, &head, &file, before)?;
            match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(entry) => Ok(Loaded::Pvh {
                    entry: entry.0,
                    end: loaded.kernel_end,
                }),
                _ => Ok(Loaded::Elf {
                    entry: loaded.kernel_load.0,
                    end: loaded.kernel_end,
                }),
            }
        }
        Kind::BzImage { preferred, init_size } => {
            // Where it wants to run, so that it need not move itself first.
            let top = memory::size(memory).min(LOW_END);
            let fits = preferred.checked_add(init_size).is_some_and(|end| end <= top);
            let start = if fits && preferred >= KERNEL_START {
                preferred
            } else {
                KERNEL_START
            };
            let loaded = BzImage::load(memory, Some(GuestAddress(start)), &mut file, None)
                .map_err(|error| wrong(error.to_string()))?;
            let header = loaded
                .setup_header
                .ok_or_else(|| wrong("it has no setup header".into()))?;
            if header.xloadflags & 1 == 0 {
                return Err(wrong("it is a 32-bit kernel".into()));
            }
            let end = loaded.kernel_end.max(start.saturating_add(init_size));
            Ok(Loaded::BzImage {
                header: Box::new(header),
                start,
                end,
            })
        }
        Kind::Other(reason) => Err(wrong(reason)),
    }
}

/// Clears what the segments of an ELF file have beyond their bytes in the file.
fn clear_bss(memory: &Memory, path: &Path, head: &[u8], file: &File, before: Before) -> Result<()> {
    use std::os::unix::fs::FileExt;

    let (offset, size, count) = elf::program_headers(head).unwrap_or_default();
    // The loader has read and checked them: 56 bytes each.
    let mut headers = vec![0; size.saturating_mul(count)];
    file.read_exact_at(&mut headers, offset)
        .map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
    for (start, end) in elf::zero_ranges(&headers, size) {
        let fits = match before {
            Before::Used => elf::clear(memory, (start, end)).is_some(),
            Before::Zeroes => memory.check_range(GuestAddress(start), (end - start) as usize),
        };
        fits.then_some(()).ok_or_else(|| Error::DoesNotFit {
            what: "the kernel".into(),
            mib: memory::size(memory) >> 20,
        })?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Elf,
    BzImage { preferred: u64, init_size: u64 },
    Other(String),
}

/// What a file is, by its first bytes.
fn kind(head: &[u8]) -> Kind {
    let word = |offset: usize, len: usize| -> u64 {
        let bytes = head.get(offset..offset + len).unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    let other = |text: &str| Kind::Other(text.to_owned());
    match head {
        [0x7f, b'E', b'L', b'F', 2, 1, ..] if word(18, 2) == 62 => Kind::Elf,
        [0x7f, b'E', b'L', b'F', ..] => other("it is an ELF file, but not one for x86-64"),
        _ if head.get(0x202..0x206) == Some(b"HdrS") => Kind::BzImage {
            preferred: word(0x258, 8),
            init_size: word(0x260, 4),
        },
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0xfd, b'7', b'z', ..] => {
            other("it is compressed; give the bzImage or the unpacked vmlinux")
        }
        [b'M', b'Z', ..] => other("it is an EFI program without Linux's boot header"),
        [] => other("it is empty"),
        _ => other("it is neither ELF nor bzImage"),
    }
}

fn load_initrd(memory: &Memory, path: &Path, after: u64, max: u64) -> Result<Placed> {
    use vm_memory::GuestMemoryBackend;
    use vm_memory::{Bytes, ReadVolatile};

    let unreadable = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let mut file = open(path)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let does_not_fit = || Error::DoesNotFit {
        what: format!(
            "the initial RAM disk of {} MiB beside the kernel",
            size.div_ceil(1 << 20)
        ),
        mib: memory::size(memory) >> 20,
    };
    let top = memory::size(memory).min(LOW_END).min(max);
    let address = top
        .checked_sub(size)
        .map(|address| address & !0xfff)
        .filter(|address| *address >= after);
    let address = address.ok_or_else(does_not_fit)?;
    let len = usize::try_from(size).map_err(|_| does_not_fit())?;
    let mut slices = memory.get_slices(GuestAddress(address), len);
    let slice = slices
        .next()
        .and_then(|slice| slice.ok())
        .filter(|slice| slice.len() == len);
    match slice {
        Some(mut slice) => file
            .read_exact_volatile(&mut slice)
            .map_err(|e| unreadable(std::io::Error::other(e)))?,
        None => memory
            .read_exact_volatile_from(GuestAddress(address), &mut file, len)
            .map_err(|error| unreadable(std::io::Error::other(error)))?,
    }
    Ok(Placed { address, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1];
        elf.resize(0x264, 0);
        assert!(matches!(kind(&elf), Kind::Other(reason) if reason.contains("not one for x86-64")));
        elf[18] = 62;
        assert_eq!(kind(&elf), Kind::Elf);
        let mut image = vec![0; 0x264];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x300_0000u32.to_le_bytes());
        assert_eq!(
            kind(&image),
            Kind::BzImage {
                preferred: 0x100_0000,
                init_size: 0x300_0000
            }
        );
        for (head, reason) in [
            (&b""[..], "it is empty"),
            (
                b"\x1f\x8b\x08",
                "it is compressed; give the bzImage or the unpacked vmlinux",
            ),
            (b"#!/bin/sh", "it is neither ELF nor bzImage"),
            (b"MZ", "it is an EFI program without Linux's boot header"),
        ] {
            assert_eq!(kind(head), Kind::Other(reason.into()));
        }
    }
}
