//! FAT12, FAT16 and FAT32 with long names (Microsoft's FAT specification, version 1.03).

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use super::{FileSystem, MAX_NAMES};
use crate::bytes::Bytes;
use crate::io::{ReadAt, Source};
use crate::{Error, Result};

/// Attributes of an entry.
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
const ENTRY: usize = 32;
/// No directory is longer: 65536 entries.
const MAX_DIRECTORY: u64 = 2 << 20;

/// Whether the first bytes of a volume are of this kind.
pub fn is(head: &[u8]) -> bool {
    let has = |at: usize, text: &[u8]| head.get(at..at + text.len()) == Some(text);
    has(510, &[0x55, 0xaa]) && (has(54, b"FAT1") || has(82, b"FAT32")) && Geometry::read(head).is_ok()
}

/// How wide an entry of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Where things are, in bytes.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    width: Width,
    table: u64,
    /// The root directory of FAT12 and FAT16, and its length.
    root: (u64, u64),
    data: u64,
    cluster: u64,
    clusters: u32,
    root_cluster: u32,
}

impl Geometry {
    fn read(head: &[u8]) -> Result<Geometry> {
        let wrong = || Error::damaged(format_args!("the FAT's boot sector"));
        let head = Bytes(head);
        let sector = u64::from(head.u16(11)?);
        let per_cluster = u64::from(head.u8(13)?);
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) || !per_cluster.is_power_of_two() {
            return Err(wrong());
        }
        let or = |short: u16, long: u32| {
            if short == 0 {
                u64::from(long)
            } else {
                u64::from(short)
            }
        };
        let table = u64::from(head.u16(14)?);
        let table_len = or(head.u16(22)?, head.u32(36)?);
        let total = or(head.u16(19)?, head.u32(32)?);
        let root = table + u64::from(head.u8(16)?) * table_len;
        let root_len = u64::from(head.u16(17)?) * ENTRY as u64;
        let data = root + root_len.div_ceil(sector);
        let clusters = total.checked_sub(data).ok_or_else(wrong)? / per_cluster;
        let width = match clusters {
            ..4085 => Width::Fat12,
            4085..65525 => Width::Fat16,
            _ => Width::Fat32,
        };
        Ok(Geometry {
            width,
            table: table * sector,
            root: (root * sector, root_len),
            data: data * sector,
            cluster: per_cluster * sector,
            clusters: u32::try_from(clusters).map_err(|_| wrong())?,
            root_cluster: if width == Width::Fat32 { head.u32(44)? } else { 0 },
        })
    }
}

/// A FAT file system.
pub struct Fat {
    source: Source,
    geometry: Geometry,
    uuid: String,
    label: String,
}

impl Fat {
    /// Opens it.
    pub fn open(source: &Source) -> Result<Fat> {
        let head = source.bytes(0, 512)?;
        let geometry = Geometry::read(&head)?;
        let extended = if geometry.width == Width::Fat32 { 67 } else { 39 };
        let serial = Bytes(&head).u32(extended)?;
        let mut fat = Fat {
            source: Rc::clone(source),
            geometry,
            uuid: format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff),
            label: String::new(),
        };
        let entries = fat.entries(&fat.root()?)?;
        let label = entries.into_iter().find(|entry| entry.attributes & VOLUME != 0);
        fat.label = label.map(|entry| entry.short).unwrap_or_default();
        Ok(fat)
    }

    fn root(&self) -> Result<File> {
        let (start, len) = self.geometry.root;
        match self.geometry.width {
            Width::Fat32 => self.chain(self.geometry.root_cluster, MAX_DIRECTORY, true),
            _ => Ok(File {
                source: Rc::clone(&self.source),
                runs: alloc::vec![(start, len)],
                len,
            }),
        }
    }

    /// The entry of `cluster` in the table: the next one, `None` at the end of a chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let Geometry { width, table, .. } = self.geometry;
        let mut bytes = [0; 4];
        let (at, len) = match width {
            Width::Fat12 => (u64::from(cluster) * 3 / 2, 2),
            Width::Fat16 => (u64::from(cluster) * 2, 2),
            Width::Fat32 => (u64::from(cluster) * 4, 4),
        };
        let (used, _) = bytes.split_at_mut(len);
        self.source.read_at(table + at, used)?;
        let value = u32::from_le_bytes(bytes);
        let (value, last) = match width {
            Width::Fat12 if cluster.is_multiple_of(2) => (value & 0xfff, 0xff8),
            Width::Fat12 => (value >> 4, 0xff8),
            Width::Fat16 => (value, 0xfff8),
            Width::Fat32 => (value & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < last).then_some(value))
    }

    /// What the chain from `first` on holds: `len` bytes; of a directory all there is, up to `len`.
    fn chain(&self, first: u32, len: u64, directory: bool) -> Result<File> {
        let Geometry {
            data,
            cluster,
            clusters,
            ..
        } = self.geometry;
        let mut file = File {
            source: Rc::clone(&self.source),
            runs: Vec::new(),
            len,
        };
        let mut left = if len == 0 { None } else { Some(first) };
        let mut have = 0;
        while let Some(at) = left
            && have < len
        {
            let index = at.checked_sub(2).filter(|index| *index < clusters);
            let index = index.ok_or_else(|| Error::damaged(format_args!("the FAT names cluster {at}")))?;
            let start = data + u64::from(index) * cluster;
            match file.runs.last_mut() {
                Some((run, bytes)) if *run + *bytes == start => *bytes += cluster,
                _ => file.runs.push((start, cluster)),
            }
            have += cluster;
            left = self.next(at)?;
        }
        match directory {
            true => file.len = have,
            false if have < len => {
                return Err(Error::damaged(format_args!("a file of the FAT ends too early")));
            }
            false => {}
        }
        Ok(file)
    }

    fn entries(&self, directory: &File) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut long = LongName::default();
        let bytes = directory.bytes(0, directory.len.min(MAX_DIRECTORY) as usize)?;
        for raw in bytes.chunks_exact(ENTRY) {
            let raw = Bytes(raw);
            match (raw.u8(0)?, raw.u8(11)?) {
                (0, _) => break,
                (0xe5, _) => long = LongName::default(),
                (_, attributes) if attributes & 0x3f == LONG_NAME => long.add(raw)?,
                (_, attributes) => {
                    entries.push(Entry {
                        name: core::mem::take(&mut long).finish(raw)?,
                        short: raw.text(0, 11)?,
                        attributes,
                        cluster: u32::from(raw.u16(20)?) << 16 | u32::from(raw.u16(26)?),
                        len: raw.u32(28)?,
                    });
                }
            }
            if entries.len() > MAX_NAMES {
                return Err(Error::unsupported(format_args!(
                    "a directory with more than {MAX_NAMES} names"
                )));
            }
        }
        Ok(entries)
    }

    /// The file or directory at `path`.
    fn find(&self, path: &str) -> Result<(File, bool)> {
        let not_there = || Error::not_found(path);
        let mut here = (self.root()?, true);
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            match part {
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        for part in parts {
            if !here.1 {
                return Err(not_there());
            }
            let entries = self.entries(&here.0)?;
            let wanted =
                |entry: &&Entry| entry.attributes & VOLUME == 0 && entry.name.eq_ignore_ascii_case(part);
            let entry = entries.iter().find(wanted).ok_or_else(not_there)?;
            let mask = if self.geometry.width == Width::Fat32 {
                u32::MAX
            } else {
                0xffff
            };
            let directory = entry.attributes & DIRECTORY != 0;
            let len = if directory {
                MAX_DIRECTORY
            } else {
                entry.len.into()
            };
            here = (self.chain(entry.cluster & mask, len, directory)?, directory);
        }
        Ok(here)
    }
}

/// An entry of a directory.
struct Entry {
    name: String,
    short: String,
    attributes: u8,
    cluster: u32,
    len: u32,
}

/// A long name, its pieces in front of the entry that it is for, the last one first.
#[derive(Default)]
struct LongName {
    pieces: Vec<[u16; 13]>,
    sum: u8,
}

impl LongName {
    fn add(&mut self, raw: Bytes<'_>) -> Result<()> {
        let number = raw.u8(0)?;
        if number & 0x40 != 0 {
            self.pieces.clear();
            self.sum = raw.u8(13)?;
        }
        let mut piece = [0; 13];
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]);
        for (unit, at) in piece.iter_mut().zip(places) {
            *unit = raw.u16(at)?;
        }
        // A name has 255 units at most.
        if self.pieces.len() < 20 {
            self.pieces.insert(0, piece);
        }
        Ok(())
    }

    /// The name of the entry `raw`: the long one if it is this entry's, else the short one.
    fn finish(self, raw: Bytes<'_>) -> Result<String> {
        let short = raw.slice(0, 11)?;
        let sum = short
            .iter()
            .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if !self.pieces.is_empty() && sum == self.sum {
            let units = self
                .pieces
                .iter()
                .flatten()
                .copied()
                .take_while(|unit| *unit != 0);
            return Ok(char::decode_utf16(units)
                .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect());
        }
        // Bits 3 and 4 of this byte say that name or extension are of small letters.
        let case = raw.u8(12)?;
        let part = |at: usize, len: usize, small: bool| {
            let mut part = raw.text(at, len)?;
            if small {
                part.make_ascii_lowercase();
            }
            Ok(part)
        };
        let (name, extension) = (part(0, 8, case & 8 != 0)?, part(8, 3, case & 16 != 0)?);
        Ok(match extension.is_empty() {
            true => name,
            false => format!("{name}.{extension}"),
        })
    }
}

/// A file or directory: runs of bytes of the volume, one after the other.
struct File {
    source: Source,
    runs: Vec<(u64, u64)>,
    len: u64,
}

impl ReadAt for File {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, mut into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        let mut skip = at;
        for (start, len) in &self.runs {
            if skip >= *len {
                skip -= len;
                continue;
            }
            let here = (len - skip).min(into.len() as u64);
            let (now, rest) = into.split_at_mut(here as usize);
            self.source.read_at(start + skip, now)?;
            into = rest;
            skip = 0;
            if into.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

impl FileSystem for Fat {
    fn kind(&self) -> &'static str {
        "vfat"
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let (file, is_directory) = self.find(directory)?;
        if !is_directory {
            return Err(Error::not_found(directory));
        }
        let entries = self.entries(&file)?.into_iter();
        let named = entries.filter(|entry| entry.attributes & VOLUME == 0);
        let names = named.map(|entry| entry.name);
        Ok(names.filter(|name| name != "." && name != "..").collect())
    }

    fn open(&self, path: &str) -> Result<Source> {
        match self.find(path)? {
            (file, false) => Ok(Rc::new(file)),
            (_, true) => Err(Error::not_found(&format!(
                "the file {path} (there is a directory of this name)"
            ))),
        }
    }
}
