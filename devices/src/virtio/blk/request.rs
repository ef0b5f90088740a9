//! One request of the driver, parsed once into a checked value (virtio 1.2, §5.2.6).
//!
//! Nothing is assumed of how the driver cuts header, data and status into descriptors (§2.7.4). What is not
//! as the specification says is refused here, with the answer it gets; what comes out is safe to execute.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::disk::{DiskOp, SECTOR};
use crate::memory::Memory;

/// Length of `struct virtio_blk_req`'s fixed part and of one discard segment.
const HEADER: usize = 16;
/// The kernel moves no more at once; SIZE_MAX and SEG_MAX keep drivers below.
const MAX_DATA: u64 = 0x7fff_f000;
/// Answered where all is well.
pub const OK: u8 = VIRTIO_BLK_S_OK as u8;
/// Answered with the status of an I/O error.
pub const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
/// Answered where the device does not know the request.
pub const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A piece of guest memory.
pub type Range = (GuestAddress, usize);

/// What the device allows at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Length of the disk in sectors.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Writes complete on stable storage (write-through).
    pub durable: bool,
    /// Most descriptors in a chain (§2.7.5.3.1: the queue size).
    pub max_descriptors: usize,
    /// Most sectors of one discard.
    pub max_discard: u32,
    /// Most sectors of one write-zeroes.
    pub max_write_zeroes: u32,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// An operation on the disk.
    Disk(DiskOp),
    /// The device's serial number (§5.2.6, VIRTIO_BLK_T_GET_ID).
    Id,
    /// An empty range: nothing to do.
    Nothing,
}

/// A request that can be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub work: Work,
    /// The data; to be written by the device for a read and an id, to be read for a write, else empty.
    pub data: Vec<Range>,
    /// Length of the data in bytes.
    pub len: u32,
    /// Where the status byte goes.
    pub status: GuestAddress,
    /// Length of what the driver lets the device write before the status byte.
    pub writable: u32,
}

/// A request that cannot be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is answered with a status.
    Status {
        /// The status.
        code: u8,
        /// Where it goes.
        status: GuestAddress,
        /// What the device says to have written: one byte where the status byte is the first it may write.
        used: u32,
    },
    /// There is no status byte that could be written: used with length 0.
    Unanswerable,
}

/// Parses the chain; reads the header and a segment from guest memory once.
///
/// # Errors
/// A [`Refusal`], which says how to answer.
pub fn parse(
    memory: &Memory,
    chain: impl Iterator<Item = Descriptor>,
    rules: &Rules,
) -> Result<Request, Refusal> {
    let mut parts = split(memory, chain, rules.max_descriptors)?;
    let writable = total(&parts.to_write);
    let refuse = |code| Refusal::Status {
        code,
        status: parts.status,
        used: u32::from(writable == 0),
    };
    let malformed = || refuse(IOERR);
    if !parts.well_formed || total(&parts.to_read) > MAX_DATA || writable > MAX_DATA {
        return Err(malformed());
    }
    let header: [u8; HEADER] = take(memory, &mut parts.to_read).ok_or_else(malformed)?;
    let kind = u32_at(&header, 0);
    let sector = u64_at(&header, 8);
    let readable = total(&parts.to_read);
    let mut request = Request {
        work: Work::Nothing,
        data: Vec::new(),
        len: 0,
        status: parts.status,
        writable: writable as u32,
    };
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = span(sector, writable, rules).ok_or_else(malformed)?;
            if readable != 0 {
                return Err(malformed());
            }
            request.work = Work::Disk(DiskOp::Read { offset });
            request.data = parts.to_write;
            request.len = writable as u32;
        }
        VIRTIO_BLK_T_OUT => {
            let offset = span(sector, readable, rules).ok_or_else(malformed)?;
            if writable != 0 || rules.read_only {
                return Err(malformed());
            }
            request.work = Work::Disk(DiskOp::Write {
                offset,
                durable: rules.durable,
            });
            request.data = parts.to_read;
            request.len = readable as u32;
        }
        VIRTIO_BLK_T_FLUSH => request.work = Work::Disk(DiskOp::Flush),
        VIRTIO_BLK_T_GET_ID => {
            request.work = Work::Id;
            request.data = parts.to_write;
            request.len = writable as u32;
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !rules.read_only => {
            // One segment is what the configuration space allows.
            if readable != HEADER as u64 {
                return Err(malformed());
            }
            let segment: [u8; HEADER] = take(memory, &mut parts.to_read).ok_or_else(malformed)?;
            request.work = segment_work(kind, &segment, rules).map_err(refuse)?;
        }
        _ => return Err(refuse(UNSUPP)),
    }
    Ok(request)
}

/// `struct virtio_blk_discard_write_zeroes` as an operation, or the status that refuses it.
fn segment_work(kind: u32, segment: &[u8; HEADER], rules: &Rules) -> Result<Work, u8> {
    let (sector, count, flags) = (u64_at(segment, 0), u32_at(segment, 8), u32_at(segment, 12));
    let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    // §5.2.6.2: unknown flags, and unmap for a discard, are unsupported.
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || unmap && !zeroes {
        return Err(UNSUPP);
    }
    let most = if zeroes {
        rules.max_write_zeroes
    } else {
        rules.max_discard
    };
    let inside = sector
        .checked_add(u64::from(count))
        .is_some_and(|end| end <= rules.sectors);
    if count > most || !inside {
        return Err(IOERR);
    }
    let (offset, len) = (sector * SECTOR, u64::from(count) * SECTOR);
    Ok(match (count, zeroes) {
        (0, _) => Work::Nothing,
        (_, false) => Work::Disk(DiskOp::Discard { offset, len }),
        (_, true) => Work::Disk(DiskOp::WriteZeroes {
            offset,
            len,
            unmap,
            durable: rules.durable,
        }),
    })
}

/// Offset of `sector` when `len` bytes from there are whole sectors of the disk, at least one.
fn span(sector: u64, len: u64, rules: &Rules) -> Option<u64> {
    let whole = len != 0 && len.is_multiple_of(SECTOR);
    let end = sector.checked_add(len / SECTOR)?;
    (whole && end <= rules.sectors).then(|| sector * SECTOR)
}

/// A chain taken apart.
struct Parts {
    to_read: Vec<Range>,
    /// Without the status byte.
    to_write: Vec<Range>,
    status: GuestAddress,
    well_formed: bool,
}

fn split(
    memory: &Memory,
    chain: impl Iterator<Item = Descriptor>,
    max_descriptors: usize,
) -> Result<Parts, Refusal> {
    let (mut to_read, mut to_write): (Vec<Range>, Vec<Range>) = (Vec::new(), Vec::new());
    let (mut well_formed, mut ended, mut count) = (true, false, 0);
    for descriptor in chain.take(max_descriptors) {
        count += 1;
        ended = !descriptor.has_next();
        let list = if descriptor.is_write_only() {
            &mut to_write
        } else {
            // §2.7.4.2: what the device writes comes after all that it reads.
            well_formed &= to_write.is_empty();
            &mut to_read
        };
        if descriptor.len() > 0 {
            list.push((descriptor.addr(), descriptor.len() as usize));
        }
    }
    // A chain that breaks off (a loop, a table outside memory, too long) has no known last byte.
    if count == 0 || !ended {
        return Err(Refusal::Unanswerable);
    }
    let (address, len) = to_write.pop().ok_or(Refusal::Unanswerable)?;
    let before = len - 1;
    let status = address
        .0
        .checked_add(before as u64)
        .map(GuestAddress)
        .filter(|status| memory.address_in_range(*status))
        .ok_or(Refusal::Unanswerable)?;
    if before > 0 {
        to_write.push((address, before));
    }
    Ok(Parts {
        to_read,
        to_write,
        status,
        well_formed,
    })
}

/// Takes the first bytes off `ranges`, copied; `None` when there are too few or they are not in memory.
fn take(memory: &Memory, ranges: &mut Vec<Range>) -> Option<[u8; HEADER]> {
    let mut bytes = [0; HEADER];
    let mut filled = 0;
    let mut used = 0;
    for (address, len) in ranges.iter_mut() {
        let here = (*len).min(HEADER - filled);
        memory
            .read_slice(bytes.get_mut(filled..filled + here)?, *address)
            .ok()?;
        filled += here;
        *address = GuestAddress(address.0.checked_add(here as u64)?);
        *len -= here;
        if *len > 0 {
            break;
        }
        used += 1;
        if filled == HEADER {
            break;
        }
    }
    ranges.drain(..used);
    (filled == HEADER).then_some(bytes)
}

fn total(ranges: &[Range]) -> u64 {
    ranges.iter().map(|&(_, len)| len as u64).sum()
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u64_at(bytes, at) as u32
}

/// The little-endian number at `at`; zeroes beyond the end.
fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    bytes
        .iter()
        .skip(at)
        .take(8)
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests;
