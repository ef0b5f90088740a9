//! btrfs (its on-disk format, btrfs.readthedocs.io): one device, or copies on each of several; compressed files too.

mod compress;
mod tree;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::tree::{Kind, Tree, find};
use super::{FileSystem, MAX_NAMES};
use crate::bytes::Bytes;
use crate::io::{ReadAt, Source};
use crate::{Error, Result};
use tree::{Key, Trees};

/// Types of items.
const INODE: u8 = 1;
const DIRECTORY_ITEM: u8 = 84;
const DIRECTORY_INDEX: u8 = 96;
const EXTENT_DATA: u8 = 108;
const ROOT: u8 = 132;
/// Well-known objects: the directory of subvolumes' roots, the subvolume of the top level, a subvolume's root directory.
const ROOT_DIRECTORY: u64 = 6;
const TOP_LEVEL: u64 = 5;
const FIRST_INODE: u64 = 256;
const MAX_LINK: usize = 4096;
const MAX_EXTENTS: usize = 1 << 16;

/// Whether a volume is of this kind.
pub fn is(source: &dyn ReadAt) -> Result<bool> {
    tree::is(source)
}

/// A btrfs file system.
#[derive(Clone)]
pub struct Btrfs {
    trees: Rc<Trees>,
    uuid: String,
    label: String,
    /// The subvolume that paths begin in.
    default: u64,
}

/// An inode of a subvolume.
pub struct Node {
    /// Root of the subvolume's tree.
    root: u64,
    number: u64,
    kind: Kind,
    len: u64,
}

impl Btrfs {
    /// Opens it.
    pub fn open(source: &Source) -> Result<Btrfs> {
        let (trees, uuid, label) = Trees::open(source)?;
        let mut btrfs = Btrfs {
            trees: Rc::new(trees),
            uuid,
            label,
            default: TOP_LEVEL,
        };
        // The name "default" in the directory of roots leads to the subvolume that is mounted by default.
        let roots = btrfs.trees.roots;
        let names = Key::all(ROOT_DIRECTORY, DIRECTORY_ITEM);
        let default = btrfs.trees.search(roots, names, |_, item| {
            Ok(directory_entry(item)?
                .filter(|(name, ..)| name == b"default")
                .map(|(_, key)| key.object))
        })?;
        btrfs.default = default.unwrap_or(TOP_LEVEL);
        Ok(btrfs)
    }

    /// The root of a subvolume's tree.
    fn subvolume(&self, id: u64) -> Result<u64> {
        let root = |_: Key, item: Bytes<'_>| item.u64(176).map(Some);
        let found = self.trees.search(self.trees.roots, Key::all(id, ROOT), root)?;
        found.ok_or_else(|| Error::damaged(format_args!("btrfs has no subvolume {id}")))
    }

    fn node(&self, root: u64, number: u64) -> Result<Node> {
        let inode = |_: Key, item: Bytes<'_>| {
            Ok(Some(Node {
                root,
                number,
                kind: Kind::of_mode(item.u32(52)? as u16),
                len: item.u64(16)?,
            }))
        };
        let found = self.trees.search(root, Key::all(number, INODE), inode)?;
        found.ok_or_else(|| Error::damaged(format_args!("btrfs has no inode {number}")))
    }

    /// The node at `path` of the default subvolume, or, as not all boot loaders begin there, of the top level.
    fn at(&self, path: &str) -> Result<Node> {
        match find(self, path) {
            Err(error) if error.is_not_found() && self.default != TOP_LEVEL => {
                let top = Btrfs {
                    default: TOP_LEVEL,
                    ..self.clone()
                };
                find(&top, path)
            }
            other => other,
        }
    }

    fn file(&self, node: &Node) -> Result<File> {
        let mut extents = Vec::new();
        self.trees
            .search(node.root, Key::all(node.number, EXTENT_DATA), |key, item| {
                extents.push(Extent::read(key.offset, item)?);
                match extents.len() > MAX_EXTENTS {
                    true => Err(Error::damaged(format_args!(
                        "btrfs has a file of too many extents"
                    ))),
                    false => Ok(None::<()>),
                }
            })?;
        Ok(File {
            trees: Rc::clone(&self.trees),
            extents,
            len: node.len,
        })
    }
}

/// Name of a directory's entry, and the key of what it leads to. (Entries whose names' hashes are the same are in one
/// item; the index has one for each.)
fn directory_entry(item: Bytes<'_>) -> Result<Option<(&[u8], Key)>> {
    let len = usize::from(item.u16(27)?);
    Ok(Some((item.slice(30, len)?, Key::read(item)?)))
}

impl Tree for Btrfs {
    type Node = Node;

    fn root(&self) -> Result<Node> {
        self.node(self.subvolume(self.default)?, FIRST_INODE)
    }

    fn kind(&self, node: &Node) -> Kind {
        node.kind
    }

    fn lookup(&self, directory: &Node, name: &str) -> Result<Option<Node>> {
        let names = Key::all(directory.number, DIRECTORY_INDEX);
        let found = self.trees.search(directory.root, names, |_, item| {
            Ok(directory_entry(item)?
                .filter(|(found, _)| *found == name.as_bytes())
                .map(|(_, key)| key))
        })?;
        match found {
            None => Ok(None),
            // A subvolume.
            Some(key) if key.kind == ROOT => self.node(self.subvolume(key.object)?, FIRST_INODE).map(Some),
            Some(key) => self.node(directory.root, key.object).map(Some),
        }
    }

    fn target(&self, link: &Node) -> Result<String> {
        let len = usize::try_from(link.len).unwrap_or(MAX_LINK).min(MAX_LINK);
        Bytes(&self.file(link)?.bytes(0, len)?).text(0, len)
    }
}

impl FileSystem for Btrfs {
    fn kind(&self) -> &'static str {
        "btrfs"
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let node = self.at(directory)?;
        if node.kind != Kind::Directory {
            return Err(Error::not_found(directory));
        }
        let mut names = Vec::new();
        self.trees
            .search(node.root, Key::all(node.number, DIRECTORY_INDEX), |_, item| {
                let name = directory_entry(item)?.map(|(name, _)| String::from_utf8_lossy(name).into_owned());
                names.extend(name);
                Ok((names.len() > MAX_NAMES).then_some(()))
            })?;
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<Source> {
        let node = self.at(path)?;
        match node.kind {
            Kind::File => Ok(Rc::new(self.file(&node)?)),
            _ => Err(Error::not_found(&format!("the file {path}"))),
        }
    }
}

/// A range of a file.
struct Extent {
    /// Its place in the file.
    at: u64,
    /// Its length in the file.
    len: u64,
    data: Data,
}

/// What it holds.
enum Data {
    Zeros,
    /// In the item itself.
    Inline {
        bytes: Vec<u8>,
        compression: u8,
        whole: u64,
    },
    /// At a logical address: all of it, and where in what it decompresses to this range begins.
    Plain {
        address: u64,
    },
    Compressed {
        address: u64,
        len: u64,
        compression: u8,
        whole: u64,
        skip: u64,
    },
}

impl Extent {
    fn read(at: u64, item: Bytes<'_>) -> Result<Extent> {
        let (whole, compression, kind) = (item.u64(8)?, item.u8(16)?, item.u8(20)?);
        if item.u8(17)? != 0 || item.u16(18)? != 0 {
            return Err(Error::unsupported(format_args!("btrfs with encryption")));
        }
        if kind == 0 {
            let bytes = item.from(21)?.0.to_vec();
            let data = Data::Inline {
                bytes,
                compression,
                whole,
            };
            return Ok(Extent { at, len: whole, data });
        }
        let (address, stored, skip, len) = (item.u64(21)?, item.u64(29)?, item.u64(37)?, item.u64(45)?);
        let data = match (kind, address, compression) {
            (2, ..) | (_, 0, _) => Data::Zeros,
            (_, _, 0) => Data::Plain {
                address: address.saturating_add(skip),
            },
            _ => Data::Compressed {
                address,
                len: stored,
                compression,
                whole,
                skip,
            },
        };
        Ok(Extent { at, len, data })
    }
}

struct File {
    trees: Rc<Trees>,
    extents: Vec<Extent>,
    len: u64,
}

impl File {
    /// Fills `into` with what is at `skip` of an extent.
    fn fill(&self, extent: &Extent, skip: u64, into: &mut [u8]) -> Result<()> {
        let whole = match &extent.data {
            Data::Zeros => {
                into.fill(0);
                return Ok(());
            }
            Data::Plain { address } => return self.trees.read(address.saturating_add(skip), into),
            Data::Inline {
                bytes,
                compression,
                whole,
            } => (compress::expand(*compression, bytes, *whole)?, skip),
            Data::Compressed {
                address,
                len,
                compression,
                whole,
                skip: first,
            } => {
                let mut stored = vec![0; compress::checked(*len)?];
                self.trees.read(*address, &mut stored)?;
                (
                    compress::expand(*compression, &stored, *whole)?,
                    skip.saturating_add(*first),
                )
            }
        };
        let (bytes, skip) = whole;
        let from = usize::try_from(skip)
            .ok()
            .and_then(|skip| bytes.get(skip..)?.get(..into.len()));
        into.copy_from_slice(
            from.ok_or_else(|| Error::damaged(format_args!("btrfs has an extent that ends too early")))?,
        );
        Ok(())
    }
}

impl ReadAt for File {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut at: u64, mut into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        while !into.is_empty() {
            // They are in the order of their places. Between them are holes.
            let next = self.extents.partition_point(|extent| extent.at <= at);
            let here = next.checked_sub(1).and_then(|index| self.extents.get(index));
            let here = here.filter(|extent| at - extent.at < extent.len);
            let end = match here {
                Some(extent) => extent.at.saturating_add(extent.len),
                None => self.extents.get(next).map_or(u64::MAX, |extent| extent.at),
            };
            let len = (end - at).min(into.len() as u64);
            let (now, rest) = into.split_at_mut(len as usize);
            match here {
                Some(extent) => self.fill(extent, at - extent.at, now)?,
                None => now.fill(0),
            }
            at += len;
            into = rest;
        }
        Ok(())
    }
}
