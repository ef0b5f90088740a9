//! Partition tables: GPT (UEFI 2.10, §5.3), by `gpt_disk_io`, and MBR with its extended partitions.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use gpt_disk_io::{BlockIo, Disk};
use gpt_disk_types::{BlockSize, GptHeader, GptPartitionType, Lba};

use crate::bytes::Bytes;
use crate::io::Source;
use crate::{Error, Result};

/// What a partition is for, as far as it matters here (UAPI Discoverable Partitions Specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The EFI system partition.
    Esp,
    /// The extended boot loader partition, a distribution's /boot.
    Xbootldr,
    /// Anything else.
    Other,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1 on, as Linux counts.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// Its own UUID (PARTUUID), as Linux writes it.
    pub uuid: String,
    /// `gpt` or `msdos`, as GRUB calls the tables.
    pub table: &'static str,
}

/// What is read of a GPT: tables have 128 entries.
const MAX_ENTRIES: usize = 1024;
/// Most logical partitions of an MBR.
const MAX_LOGICAL: u32 = 64;
const XBOOTLDR: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";

/// The partitions of a disk whose blocks have `block_size` bytes; none where it has no table.
///
/// # Errors
/// When the table is damaged, or cannot be read.
pub fn partitions(disk: &Source, block_size: u32) -> Result<Vec<Partition>> {
    if disk.len() < 512 {
        return Ok(Vec::new());
    }
    let mbr = disk.bytes(0, 512)?;
    if !mbr.ends_with(&[0x55, 0xaa]) {
        return Ok(Vec::new());
    }
    let records = records(&mbr)?;
    // A file system without a table has a boot sector, too, and other things where the table would be.
    if records.iter().any(|record| record.status & 0x7f != 0) {
        return Ok(Vec::new());
    }
    if records.iter().any(|record| record.kind == PROTECTIVE) {
        return gpt(disk, block_size);
    }
    mbr_partitions(disk, &mbr, &records, u64::from(block_size))
}

/// The disk for `gpt_disk_io`, in blocks.
struct Blocks<'a> {
    disk: &'a Source,
    size: BlockSize,
}

impl BlockIo for Blocks<'_> {
    type Error = Error;

    fn block_size(&self) -> BlockSize {
        self.size
    }

    fn num_blocks(&mut self) -> Result<u64> {
        Ok(self.disk.len() / u64::from(self.size.to_u32()))
    }

    fn read_blocks(&mut self, start: Lba, into: &mut [u8]) -> Result<()> {
        let at = start.to_u64().checked_mul(self.size.to_u32().into());
        self.disk.read_at(at.unwrap_or(u64::MAX), into)
    }

    fn write_blocks(&mut self, _: Lba, _: &[u8]) -> Result<()> {
        Err(Error::unsupported(format_args!("writing to a disk")))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn gpt(disk: &Source, block_size: u32) -> Result<Vec<Partition>> {
    let size = BlockSize::new(block_size)
        .filter(|_| block_size <= 64 << 10)
        .ok_or_else(|| Error::unsupported(format_args!("a disk with blocks of {block_size} bytes")))?;
    let mut buffer = vec![0; block_size as usize];
    let fail = |error: gpt_disk_io::DiskError<Error>| Error::damaged(format_args!("the GPT: {error}"));
    let mut blocks = Disk::new(Blocks { disk, size }).map_err(fail)?;
    let valid = |header: &GptHeader| {
        header.is_signature_valid() && header.header_crc32 == header.calculate_header_crc32()
    };
    let primary = blocks.read_primary_gpt_header(&mut buffer).map_err(fail)?;
    let header = if valid(&primary) {
        primary
    } else {
        let secondary = blocks.read_secondary_gpt_header(&mut buffer).map_err(fail)?;
        Some(secondary)
            .filter(valid)
            .ok_or_else(|| Error::damaged(format_args!("neither header of the GPT is in order")))?
    };
    let layout = header
        .get_partition_entry_array_layout()
        .map_err(|error| Error::damaged(format_args!("the GPT: {error}")))?;
    let entries = blocks
        .gpt_partition_entry_array_iter(layout, &mut buffer)
        .map_err(fail)?;
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.take(MAX_ENTRIES)) {
        let entry = entry.map_err(fail)?;
        if !entry.is_used() {
            continue;
        }
        let range = entry
            .lba_range()
            .and_then(|range| range.to_byte_range(size))
            .ok_or_else(|| {
                Error::damaged(format_args!(
                    "partition {number} of the GPT ends before it begins"
                ))
            })?;
        let kind = { entry.partition_type_guid };
        partitions.push(Partition {
            number,
            start: *range.start(),
            len: (range.end() - range.start()).saturating_add(1),
            purpose: match kind {
                GptPartitionType::EFI_SYSTEM => Purpose::Esp,
                other if other.to_string().eq_ignore_ascii_case(XBOOTLDR) => Purpose::Xbootldr,
                _ => Purpose::Other,
            },
            uuid: { entry.unique_partition_guid }.to_string().to_ascii_lowercase(),
            table: "gpt",
        });
    }
    Ok(partitions)
}

const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// An entry of an MBR's table.
struct Record {
    status: u8,
    kind: u8,
    start: u64,
    blocks: u64,
}

fn records(sector: &[u8]) -> Result<Vec<Record>> {
    let record = |i: usize| {
        let bytes = Bytes(sector).from(446 + 16 * i)?;
        Ok(Record {
            status: bytes.u8(0)?,
            kind: bytes.u8(4)?,
            start: bytes.u32(8)?.into(),
            blocks: bytes.u32(12)?.into(),
        })
    };
    (0..4).map(record).collect()
}

fn mbr_partitions(disk: &Source, mbr: &[u8], records: &[Record], block: u64) -> Result<Vec<Partition>> {
    let signature = Bytes(mbr).u32(440)?;
    let partition = |number: u32, start: u64, record: &Record| Partition {
        number,
        start: start.saturating_mul(block),
        len: record.blocks * block,
        purpose: match record.kind {
            0xef => Purpose::Esp,
            0xea => Purpose::Xbootldr,
            _ => Purpose::Other,
        },
        uuid: format!("{signature:08x}-{number:02x}"),
        table: "msdos",
    };
    let (mut partitions, mut inside) = (Vec::new(), Vec::new());
    for (number, record) in (1..).zip(records) {
        if EXTENDED.contains(&record.kind) {
            logical(disk, record.start, block, |number, start, record| {
                inside.push(partition(number, start, record));
            })?;
        } else if record.kind != 0 && record.blocks != 0 {
            partitions.push(partition(number, record.start, record));
        }
    }
    partitions.append(&mut inside);
    partitions.retain(|partition| partition.start < disk.len());
    Ok(partitions)
}

/// Calls `see` for each logical partition: in each a table of its own, with the partition and where the next table is.
fn logical(disk: &Source, extended: u64, block: u64, mut see: impl FnMut(u32, u64, &Record)) -> Result<()> {
    let mut table = extended;
    for number in 5..5 + MAX_LOGICAL {
        let sector = disk.bytes(table.saturating_mul(block), 512)?;
        let records = records(&sector)?;
        let (Some(this), Some(next)) = (records.first(), records.get(1)) else {
            break;
        };
        if !sector.ends_with(&[0x55, 0xaa]) || this.kind == 0 {
            break;
        }
        see(number, table + this.start, this);
        if next.kind == 0 {
            break;
        }
        table = extended + next.start;
    }
    Ok(())
}

/// The part of `disk` that `partition` is; what a truncated image lacks is not in it.
///
/// # Errors
/// When it begins beyond the end of the disk.
pub fn open(disk: &Source, partition: &Partition) -> Result<Source> {
    let len = partition.len.min(disk.len().saturating_sub(partition.start));
    Ok(Rc::new(crate::io::Part::new(disk, partition.start, len)?))
}

#[cfg(test)]
#[path = "partitions/tests.rs"]
mod tests;
