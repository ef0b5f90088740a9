//! The trees of btrfs: keys, nodes, and where logical addresses lie on the device.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use crate::bytes::Bytes;
use crate::io::{ReadAt, Source};
use crate::{Error, Result};

const SUPERBLOCK: u64 = 64 << 10;
const MAGIC: &[u8; 8] = b"_BHRfS_M";
const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;
const CHUNK: u8 = 228;
const MAX_LEVEL: u8 = 8;
/// Nodes that are read in all, so that trees whose nodes name each other in circles have an end.
const MAX_NODES: u32 = 1 << 18;
/// Bits of a chunk's type for what is not read: striped over devices, or with parity (RAID0, 10, 5, 6).
const STRIPED: u64 = 0x8 | 0x40 | 0x80 | 0x100;
/// Incompatible features that are known: mixed references, default subvolumes, mixed groups, compression by LZO and
/// zstd, big metadata, extended references, skinny metadata, no holes, a metadata UUID, copies on 3 and 4 devices.
const KNOWN: u64 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x800;

/// Whether a volume is of this kind.
pub fn is(source: &dyn ReadAt) -> Result<bool> {
    if source.len() < SUPERBLOCK + 4096 {
        return Ok(false);
    }
    let mut magic = [0; 8];
    source.read_at(SUPERBLOCK + 64, &mut magic)?;
    Ok(&magic == MAGIC)
}

/// What items are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The object that the item belongs to.
    pub object: u64,
    /// The item's type.
    pub kind: u8,
    /// Depends on the type: a place in a file, for example.
    pub offset: u64,
}

impl Key {
    /// Reads one.
    pub fn read(bytes: Bytes<'_>) -> Result<Key> {
        Ok(Key {
            object: bytes.u64(0)?,
            kind: bytes.u8(8)?,
            offset: bytes.u64(9)?,
        })
    }

    /// First and last key of all items of a type that an object has.
    pub fn all(object: u64, kind: u8) -> (Key, Key) {
        let key = |offset| Key { object, kind, offset };
        (key(0), key(u64::MAX))
    }
}

/// A range of logical addresses, and where it lies.
struct Chunk {
    start: u64,
    len: u64,
    place: u64,
}

/// The trees of a file system.
pub struct Trees {
    source: Source,
    node: usize,
    chunks: Vec<Chunk>,
    /// Root of the tree of roots.
    pub roots: u64,
    nodes_left: Cell<u32>,
}

impl Trees {
    /// Reads the superblock and the map of addresses; gives UUID and label, too.
    pub fn open(source: &Source) -> Result<(Trees, String, String)> {
        let bytes = source.bytes(SUPERBLOCK, 4096)?;
        let head = Bytes(&bytes);
        let features = head.u64(188)? & !KNOWN;
        if features != 0 {
            return Err(Error::unsupported(format_args!(
                "btrfs with the features {features:#x}"
            )));
        }
        let node = head.u32(148)?;
        if !node.is_power_of_two() || !(4096..=65536).contains(&node) {
            return Err(Error::damaged(format_args!("btrfs's superblock")));
        }
        let mut trees = Trees {
            source: Rc::clone(source),
            node: node as usize,
            chunks: Vec::new(),
            roots: head.u64(80)?,
            nodes_left: Cell::new(MAX_NODES),
        };
        let device = head.u64(201)?;
        // The superblock has the chunks that the tree of chunks itself lies in.
        let len = (head.u32(160)? as usize).min(2048);
        let array = Bytes(head.slice(811, len)?);
        let mut at = 0;
        while at < len {
            let key = Key::read(array.from(at)?)?;
            let item = array.from(at + 17)?;
            trees.add(key, item, device)?;
            at += 17 + 48 + 32 * usize::from(item.u16(44)?);
        }
        let all = Key::all(256, CHUNK);
        let mut found = Vec::new();
        trees.search(head.u64(88)?, all, |key, item| {
            found.push((key, item.0.to_vec()));
            Ok((found.len() > 1 << 16).then_some(()))
        })?;
        trees.chunks.clear();
        for (key, item) in found {
            trees.add(key, Bytes(&item), device)?;
        }
        Ok((trees, head.uuid(32)?, head.text(299, 256)?))
    }

    /// Adds a chunk, of which the copy on this device is read.
    fn add(&mut self, key: Key, item: Bytes<'_>, device: u64) -> Result<()> {
        let (len, kind, stripes) = (item.u64(0)?, item.u64(24)?, item.u16(44)?);
        if kind & STRIPED != 0 && stripes > 1 {
            return Err(Error::unsupported(format_args!(
                "btrfs striped over several devices"
            )));
        }
        for stripe in 0..usize::from(stripes) {
            let stripe = item.from(48 + 32 * stripe)?;
            if stripe.u64(0)? == device {
                let (start, place) = (key.offset, stripe.u64(8)?);
                self.chunks.push(Chunk { start, len, place });
                break;
            }
        }
        Ok(())
    }

    /// Reads at a logical address.
    pub fn read(&self, mut address: u64, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            let holds = |chunk: &&Chunk| {
                address
                    .checked_sub(chunk.start)
                    .is_some_and(|skip| skip < chunk.len)
            };
            let chunk = self.chunks.iter().find(holds);
            let chunk =
                chunk.ok_or_else(|| Error::damaged(format_args!("btrfs has nothing at {address:#x}")))?;
            let skip = address - chunk.start;
            let len = (chunk.len - skip).min(into.len() as u64);
            let (now, rest) = into.split_at_mut(len as usize);
            self.source.read_at(chunk.place.saturating_add(skip), now)?;
            address = address.saturating_add(len);
            into = rest;
        }
        Ok(())
    }

    /// Calls `see` for the items of the tree at `root` from the first to the last key, until it gives something.
    pub fn search<T>(
        &self,
        root: u64,
        (first, last): (Key, Key),
        mut see: impl FnMut(Key, Bytes<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut found = None;
        self.search_below(root, MAX_LEVEL, first, last, &mut |key, item| {
            found = see(key, item)?;
            Ok(found.is_some())
        })?;
        Ok(found)
    }

    /// Gives whether `see` has found what it looks for. It is behind a pointer so that this is in the firmware once.
    fn search_below(
        &self,
        address: u64,
        above: u8,
        first: Key,
        last: Key,
        see: &mut dyn FnMut(Key, Bytes<'_>) -> Result<bool>,
    ) -> Result<bool> {
        let wrong = || Error::damaged(format_args!("btrfs's node at {address:#x}"));
        let left = self.nodes_left.get().checked_sub(1);
        self.nodes_left.set(left.ok_or_else(wrong)?);
        let mut bytes = vec![0; self.node];
        self.read(address, &mut bytes)?;
        let node = Bytes(&bytes);
        let (count, level) = (node.u32(96)? as usize, node.u8(100)?);
        if node.u64(48)? != address || level >= above {
            return Err(wrong());
        }
        let body = node.from(HEADER)?;
        for i in 0..count {
            let at = i
                .checked_mul(if level == 0 { ITEM } else { POINTER })
                .ok_or_else(wrong)?;
            let entry = body.from(at)?;
            let key = Key::read(entry)?;
            if key > last {
                break;
            }
            let found = if level == 0 {
                if key < first {
                    continue;
                }
                let item = body.slice(entry.u32(17)? as usize, entry.u32(21)? as usize)?;
                see(key, Bytes(item))?
            } else {
                // What is below ends where the next one begins.
                let next = if i + 1 < count {
                    Some(Key::read(body.from(at + POINTER)?)?)
                } else {
                    None
                };
                if next.is_some_and(|next| next <= first) {
                    continue;
                }
                self.search_below(entry.u64(17)?, level, first, last, see)?
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
