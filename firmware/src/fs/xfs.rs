//! XFS, versions 4 and 5 (xfs_filesystem_structure, "XFS Algorithms & Data Structures"). What only the log has is
//! not seen, as by other boot loaders.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;

use super::tree::{self, Kind, Tree};
use super::{FileSystem, MAX_NAMES};
use crate::bytes::Bytes;
use crate::io::{ReadAt, Source};
use crate::{Error, Result};

/// Incompatible features that change nothing of what is read here, or are minded: names with their types, sparse
/// inodes, a UUID of the metadata's own, large times, many extents, exchanged ranges, parent pointers.
const KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80;
const NAMES_HAVE_TYPES: u32 = 0x1;
const VERSION2_NAMES_HAVE_TYPES: u32 = 0x200;
/// A flag of an inode: its number of extents is 64 bits long.
const MANY_EXTENTS: u64 = 0x10;
/// Directories have their names below this place of their file; above it are hashes of names.
const NAMES_END: u64 = 32 << 30;
/// What is read of one inode's tree of extents at most.
const MAX_EXTENTS: usize = 1 << 16;
const MAX_DEPTH: u16 = 8;
/// Blocks of such trees that are read in all.
const MAX_BLOCKS: u32 = 1 << 16;
const MAX_LINK: u64 = 1024;

/// Whether the first bytes of a volume are of this kind.
pub fn is(head: &[u8]) -> bool {
    head.starts_with(b"XFSB")
}

/// An XFS file system.
#[derive(Clone)]
pub struct Xfs(Rc<Inner>);

struct Inner {
    source: Source,
    uuid: String,
    label: String,
    block: u64,
    directory_block: u64,
    inode: u64,
    root: u64,
    group_blocks: u64,
    group_blocks_log: u8,
    inodes_per_block_log: u8,
    version5: bool,
    typed_names: bool,
    blocks_left: Cell<u32>,
}

impl Xfs {
    /// Opens it.
    pub fn open(source: &Source) -> Result<Xfs> {
        let head = source.bytes(0, 512)?;
        let head = Bytes(&head);
        let version = head.be16(100)? & 0xf;
        let incompatible = if version == 5 { head.be32(216)? } else { 0 };
        if !(4..=5).contains(&version) {
            return Err(Error::unsupported(format_args!("XFS version {version}")));
        }
        if incompatible & !KNOWN != 0 {
            let features = incompatible & !KNOWN;
            return Err(Error::unsupported(format_args!(
                "XFS with the features {features:#x}"
            )));
        }
        let block = u64::from(head.be32(4)?);
        let inode = u64::from(head.be16(104)?);
        let [directory_log, group_blocks_log, inodes_per_block_log] =
            [head.u8(192)?, head.u8(124)?, head.u8(123)?];
        let sizes = block.is_power_of_two() && (512..=65536).contains(&block);
        let inodes = inode.is_power_of_two() && (256..=2048).contains(&inode);
        if !sizes || !inodes || directory_log > 7 || group_blocks_log > 31 || inodes_per_block_log > 8 {
            return Err(Error::damaged(format_args!("XFS's superblock")));
        }
        let types_of_4 = head.be32(200)? & VERSION2_NAMES_HAVE_TYPES != 0;
        Ok(Xfs(Rc::new(Inner {
            source: Rc::clone(source),
            uuid: head.uuid(32)?,
            label: head.text(108, 12)?,
            block,
            directory_block: block << directory_log,
            inode,
            root: head.be64(56)?,
            group_blocks: head.be32(84)?.into(),
            group_blocks_log,
            inodes_per_block_log,
            version5: version == 5,
            typed_names: incompatible & NAMES_HAVE_TYPES != 0 || types_of_4,
            blocks_left: Cell::new(MAX_BLOCKS),
        })))
    }

    /// Place of a block that is named by its group and its number in it.
    fn place(&self, number: u64) -> Result<u64> {
        let fs = &self.0;
        let group = number >> fs.group_blocks_log;
        let block = number & ((1 << fs.group_blocks_log) - 1);
        let whole = group
            .checked_mul(fs.group_blocks)
            .and_then(|first| first.checked_add(block));
        let place = whole.and_then(|block| block.checked_mul(fs.block));
        place.ok_or_else(|| Error::damaged(format_args!("XFS names block {number:#x}")))
    }

    fn node(&self, number: u64) -> Result<Node> {
        let fs = &self.0;
        let in_block = number & ((1 << fs.inodes_per_block_log) - 1);
        let place = self.place(number >> fs.inodes_per_block_log)? + in_block * fs.inode;
        let bytes = fs.source.bytes(place, fs.inode as usize)?;
        let raw = Bytes(&bytes);
        let wrong = || Error::damaged(format_args!("XFS's inode {number}"));
        if raw.be16(0)? != u16::from_be_bytes(*b"IN") {
            return Err(wrong());
        }
        let version = raw.u8(4)?;
        let core = if version == 3 { 176 } else { 100 };
        let fork = match raw.u8(82)? {
            0 => fs.inode as usize - core,
            offset => usize::from(offset) * 8,
        };
        let many = version == 3 && raw.be64(120)? & MANY_EXTENTS != 0;
        let extents = if many { raw.be64(24)? } else { raw.be32(76)?.into() };
        Ok(Node {
            kind: Kind::of_mode(raw.be16(2)?),
            format: raw.u8(5)?,
            len: raw.be64(56)?,
            extents: usize::try_from(extents).map_err(|_| wrong())?,
            fork: raw.slice(core, fork)?.to_vec(),
        })
    }

    /// Where the bytes of an inode lie.
    fn extents(&self, node: &Node) -> Result<Vec<Extent>> {
        let fork = Bytes(&node.fork);
        let mut extents = Vec::new();
        match node.format {
            2 => self.records(fork, node.extents, &mut extents)?,
            3 => {
                let (level, count) = (fork.be16(0)?, usize::from(fork.be16(2)?));
                let room = (node.fork.len() - 4) / 16;
                for i in 0..count {
                    let child = fork.be64(4 + room * 8 + i * 8)?;
                    self.below(child, level, &mut extents)?;
                }
            }
            other => return Err(Error::unsupported(format_args!("XFS's inode format {other}"))),
        }
        Ok(extents)
    }

    /// The extents below a block of the tree, whose parent has `level`.
    fn below(&self, number: u64, level: u16, extents: &mut Vec<Extent>) -> Result<()> {
        // A tree whose blocks name each other in circles would have no end.
        let blocks = self.0.blocks_left.get();
        let left = blocks.checked_sub(1);
        self.0
            .blocks_left
            .set(left.ok_or_else(|| Error::damaged(format_args!("XFS's tree of extents")))?);
        let bytes = self.0.source.bytes(self.place(number)?, self.0.block as usize)?;
        let block = Bytes(&bytes);
        let (magic, header): (&[u8; 4], usize) = if self.0.version5 {
            (b"BMA3", 72)
        } else {
            (b"BMAP", 24)
        };
        let mine = block.be16(4)?;
        if block.slice(0, 4)? != magic || level > MAX_DEPTH || mine.checked_add(1) != Some(level) {
            return Err(Error::damaged(format_args!("XFS's tree of extents")));
        }
        let count = usize::from(block.be16(6)?);
        if mine == 0 {
            return self.records(block.from(header)?, count, extents);
        }
        let room = (bytes.len() - header) / 16;
        for i in 0..count {
            self.below(block.be64(header + room * 8 + i * 8)?, mine, extents)?;
        }
        Ok(())
    }

    fn records(&self, bytes: Bytes<'_>, count: usize, extents: &mut Vec<Extent>) -> Result<()> {
        for i in 0..count {
            let (high, low) = (bytes.be64(16 * i)?, bytes.be64(16 * i + 8)?);
            let block = self.0.block;
            let number = (high & 0x1ff) << 43 | low >> 21;
            extents.push(Extent {
                at: ((high & (u64::MAX >> 1)) >> 9).saturating_mul(block),
                len: (low & 0x1f_ffff) * block,
                place: self.place(number)?,
                unwritten: high >> 63 != 0,
            });
            if extents.len() > MAX_EXTENTS {
                return Err(Error::damaged(format_args!("XFS has a file of too many extents")));
            }
        }
        Ok(())
    }

    /// Calls `see` for each name in a directory, with its inode, until it gives something.
    fn each<T>(&self, node: &Node, mut see: impl FnMut(&[u8], u64) -> Option<T>) -> Result<Option<T>> {
        if node.format == 1 {
            return self.each_inline(Bytes(&node.fork), &mut see);
        }
        let size = self.0.directory_block;
        let file = File {
            fs: self.clone(),
            extents: self.extents(node)?,
            len: u64::MAX,
        };
        for extent in file.extents.iter().filter(|extent| extent.at < NAMES_END) {
            let mut at = extent.at.next_multiple_of(size);
            while at < extent.at.saturating_add(extent.len) {
                let mut block = alloc::vec![0; size as usize];
                file.read_at(at, &mut block)?;
                if let Some(found) = self.each_in_block(Bytes(&block), &mut see)? {
                    return Ok(Some(found));
                }
                at += size;
            }
        }
        Ok(None)
    }

    /// A directory so small that it is in its inode.
    fn each_inline<T>(
        &self,
        fork: Bytes<'_>,
        see: &mut impl FnMut(&[u8], u64) -> Option<T>,
    ) -> Result<Option<T>> {
        let wide = fork.u8(1)? != 0;
        let count = if wide { fork.u8(1)? } else { fork.u8(0)? };
        let number = |at| {
            if wide {
                fork.be64(at)
            } else {
                fork.be32(at).map(u64::from)
            }
        };
        let width = if wide { 8 } else { 4 };
        let mut at = 2 + width;
        for _ in 0..count {
            let len = usize::from(fork.u8(at)?);
            let name = fork.slice(at + 3, len)?;
            at += 3 + len + usize::from(self.0.typed_names);
            if let Some(found) = see(name, number(at)?) {
                return Ok(Some(found));
            }
            at += width;
        }
        Ok(None)
    }

    fn each_in_block<T>(
        &self,
        block: Bytes<'_>,
        see: &mut impl FnMut(&[u8], u64) -> Option<T>,
    ) -> Result<Option<T>> {
        let size = self.0.directory_block as usize;
        let (mut at, end) = match block.slice(0, 4)? {
            b"XD2D" => (16, size),
            b"XDD3" => (64, size),
            // A block with everything: hashes of the names are at its end.
            magic @ (b"XD2B" | b"XDB3") => {
                let hashes = block.be32(size - 8)? as usize;
                let end = hashes.checked_mul(8).and_then(|len| (size - 8).checked_sub(len));
                let start = if magic == b"XDB3" { 64 } else { 16 };
                (
                    start,
                    end.ok_or_else(|| Error::damaged(format_args!("a directory of XFS")))?,
                )
            }
            _ => return Err(Error::damaged(format_args!("a directory of XFS"))),
        };
        while at < end {
            if block.be16(at)? == 0xffff {
                at += usize::from(block.be16(at + 2)?).max(8);
                continue;
            }
            let len = usize::from(block.u8(at + 8)?);
            if let Some(found) = see(block.slice(at + 9, len)?, block.be64(at)?) {
                return Ok(Some(found));
            }
            // Inode, length, name, type, and its own place; on 8 bytes.
            at += (8 + 1 + len + usize::from(self.0.typed_names) + 2).next_multiple_of(8);
        }
        Ok(None)
    }
}

/// An inode.
pub struct Node {
    kind: Kind,
    format: u8,
    len: u64,
    extents: usize,
    fork: Vec<u8>,
}

/// A range of a file, and where it lies.
struct Extent {
    at: u64,
    len: u64,
    place: u64,
    unwritten: bool,
}

struct File {
    fs: Xfs,
    extents: Vec<Extent>,
    len: u64,
}

impl ReadAt for File {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut at: u64, mut into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        while !into.is_empty() {
            let holds = |extent: &&Extent| (extent.at..extent.at.saturating_add(extent.len)).contains(&at);
            let here = self.extents.iter().find(holds);
            // Up to the end of what holds this place, or of the hole.
            let end = match here {
                Some(extent) => extent.at.saturating_add(extent.len),
                None => {
                    let later = self
                        .extents
                        .iter()
                        .map(|extent| extent.at)
                        .filter(|start| *start > at);
                    later.min().unwrap_or(u64::MAX)
                }
            };
            let len = (end - at).min(into.len() as u64);
            let (now, rest) = into.split_at_mut(len as usize);
            match here {
                Some(extent) if !extent.unwritten => {
                    let place = extent.place.saturating_add(at - extent.at);
                    self.fs.0.source.read_at(place, now)?;
                }
                _ => now.fill(0),
            }
            at += len;
            into = rest;
        }
        Ok(())
    }
}

impl Tree for Xfs {
    type Node = Node;

    fn root(&self) -> Result<Node> {
        self.node(self.0.root)
    }

    fn kind(&self, node: &Node) -> Kind {
        node.kind
    }

    fn lookup(&self, directory: &Node, name: &str) -> Result<Option<Node>> {
        let number = self.each(directory, |found, number| {
            (found == name.as_bytes()).then_some(number)
        })?;
        number.map(|number| self.node(number)).transpose()
    }

    fn target(&self, link: &Node) -> Result<String> {
        let len = link.len.min(MAX_LINK) as usize;
        if link.format == 1 {
            return Bytes(&link.fork).text(0, len);
        }
        let file = File {
            fs: self.clone(),
            extents: self.extents(link)?,
            len: u64::MAX,
        };
        // In version 5 there is a header in front.
        let skip = if self.0.version5 { 56 } else { 0 };
        Bytes(&file.bytes(skip, len)?).text(0, len)
    }
}

impl FileSystem for Xfs {
    fn kind(&self) -> &'static str {
        "xfs"
    }

    fn uuid(&self) -> &str {
        &self.0.uuid
    }

    fn label(&self) -> &str {
        &self.0.label
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let node = tree::find(self, directory)?;
        if node.kind != Kind::Directory {
            return Err(Error::not_found(directory));
        }
        let mut names = Vec::new();
        self.each(&node, |name, _| -> Option<()> {
            if name != b"." && name != b".." {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
            (names.len() > MAX_NAMES).then_some(())
        })?;
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<Source> {
        let node = tree::find(self, path)?;
        match node.kind {
            Kind::File => Ok(Rc::new(File {
                fs: self.clone(),
                extents: self.extents(&node)?,
                len: node.len,
            })),
            _ => Err(Error::not_found(&format!("the file {path}"))),
        }
    }
}
