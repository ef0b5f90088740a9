//! Writes a small ISO 9660 image (ECMA-119) whose names are kept by Rock Ridge (IEEE P1282) and Joliet.
//!
//! Layout, in sectors of 2048 bytes: 16 of nothing, primary and Joliet volume descriptor, terminator, for each of
//! the two trees its path tables (little and big endian) and directories, then the files, which both share.
//! Everything has the same fixed date, so that the same content gives the same image.

use std::io;

const SECTOR: usize = 2048;
/// Data begins after the system area.
const DESCRIPTORS: usize = 16;
/// The most that an image may hold; sizes in the format are 32 bits.
const MAX_CONTENT: usize = 64 << 20;
/// 1 January 2020, 00:00 UTC, as directory records have it.
const DATE: [u8; 7] = [120, 1, 1, 0, 0, 0, 0];
/// The same as volume descriptors have it.
const LONG_DATE: &[u8; 17] = b"2020010100000000\0";
const NO_DATE: &[u8; 17] = b"0000000000000000\0";
const IS_DIRECTORY: u8 = 2;

/// Which of the two trees, each with names of its own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tree {
    /// Short upper-case names, with Rock Ridge's after them.
    Primary,
    /// Names in UCS-2.
    Joliet,
}

/// A directory: its name, the directory that it is in, what is in it.
struct Directory<'a> {
    name: &'a str,
    /// Index of the parent; the root is its own.
    parent: usize,
    directories: Vec<usize>,
    files: Vec<usize>,
}

/// A file.
struct Named<'a> {
    name: &'a str,
    content: &'a [u8],
}

/// Where something lies in the image.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    /// First sector.
    sector: u32,
    /// Bytes.
    size: u32,
}

/// Where the parts of a tree lie.
struct TreePlaces {
    tree: Tree,
    /// The path tables, little and big endian.
    tables: [Extent; 2],
    directories: Vec<Extent>,
}

/// An image with volume label `label` that holds `files`, given by path. Directories are made as needed.
///
/// # Errors
/// When it would be larger than 64 MiB, or a name is too long or not ASCII.
pub fn image(label: &str, files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let total: usize = files.iter().map(|(_, content)| content.len()).sum();
    if total > MAX_CONTENT {
        return Err(wrong(format!("{total} bytes are too many for it")));
    }
    let content = Content::new(files)?;
    let mut next = DESCRIPTORS + 3;
    let mut place = |size: usize| {
        let sector = next as u32;
        next += size.div_ceil(SECTOR);
        Extent {
            sector,
            size: size as u32,
        }
    };
    // How long a directory is does not depend on where things are.
    let nowhere = (
        vec![Extent::default(); content.directories.len()],
        vec![Extent::default(); content.files.len()],
    );
    let trees = [Tree::Primary, Tree::Joliet].map(|tree| {
        let table = content.path_table(tree, &nowhere.0, false).len();
        TreePlaces {
            tree,
            tables: [place(table), place(table)],
            directories: (0..content.directories.len())
                .map(|index| place(content.directory(tree, index, &nowhere.0, &nowhere.1).len()))
                .collect(),
        }
    });
    let files: Vec<Extent> = content
        .files
        .iter()
        .map(|file| place(file.content.len()))
        .collect();

    let mut image = vec![0; next * SECTOR];
    let mut put = |sector: u32, bytes: &[u8]| {
        let start = sector as usize * SECTOR;
        if let Some(room) = image.get_mut(start..start + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    };
    for (sector, places) in (DESCRIPTORS as u32..).zip(&trees) {
        let root = places.directories.first().copied().unwrap_or_default();
        put(
            sector,
            &descriptor(
                places.tree,
                label,
                next as u32,
                &places.tables,
                &record(&[0], root, IS_DIRECTORY, &[]),
            ),
        );
        for (extent, big) in places.tables.iter().zip([false, true]) {
            put(
                extent.sector,
                &content.path_table(places.tree, &places.directories, big),
            );
        }
        for (index, extent) in places.directories.iter().enumerate() {
            put(
                extent.sector,
                &content.directory(places.tree, index, &places.directories, &files),
            );
        }
    }
    put(DESCRIPTORS as u32 + 2, b"\xffCD001\x01");
    for (file, extent) in content.files.iter().zip(&files) {
        put(extent.sector, file.content);
    }
    Ok(image)
}

fn wrong(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// A number in both byte orders, as most fields have it.
fn both(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    let (little, big) = bytes.split_at_mut(4);
    little.copy_from_slice(&value.to_le_bytes());
    big.copy_from_slice(&value.to_be_bytes());
    bytes
}

fn both16(value: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d]
}

/// Text in a field of fixed width, the rest spaces.
fn field(tree: Tree, text: &str, width: usize) -> Vec<u8> {
    let mut bytes = match tree {
        Tree::Primary => text.as_bytes().to_vec(),
        Tree::Joliet => ucs2(text),
    };
    bytes.truncate(width);
    while bytes.len() < width {
        match tree {
            Tree::Primary => bytes.push(b' '),
            Tree::Joliet => bytes.extend([0, b' '].iter().take(width - bytes.len())),
        }
    }
    bytes
}

fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A volume descriptor (ECMA-119 §8.4, §8.5).
fn descriptor(tree: Tree, label: &str, sectors: u32, tables: &[Extent; 2], root: &[u8]) -> Vec<u8> {
    let mut d = Vec::with_capacity(SECTOR);
    d.push(if tree == Tree::Primary { 1 } else { 2 });
    d.extend(b"CD001\x01\0");
    d.extend(field(tree, "", 32));
    d.extend(field(tree, label, 32));
    d.extend([0; 8]);
    d.extend(both(sectors));
    let mut escapes = [0; 32];
    if tree == Tree::Joliet {
        // UCS-2 level 3.
        for (byte, escape) in escapes.iter_mut().zip(b"%/E") {
            *byte = *escape;
        }
    }
    d.extend(escapes);
    d.extend(both16(1));
    d.extend(both16(1));
    d.extend(both16(SECTOR as u16));
    let [little, big] = tables;
    d.extend(both(little.size));
    d.extend(little.sector.to_le_bytes());
    d.extend([0; 4]);
    d.extend(big.sector.to_be_bytes());
    d.extend([0; 4]);
    d.extend(root);
    // Volume set, publisher, preparer, application.
    for _ in 0..4 {
        d.extend(field(tree, "", 128));
    }
    // Copyright, abstract, bibliography.
    for _ in 0..3 {
        d.extend(field(tree, "", 37));
    }
    for date in [LONG_DATE, LONG_DATE, NO_DATE, NO_DATE] {
        d.extend(date);
    }
    d.push(1);
    d
}

struct Content<'a> {
    /// The root first, then level by level: the order that path tables must have.
    directories: Vec<Directory<'a>>,
    files: Vec<Named<'a>>,
}

impl<'a> Content<'a> {
    fn new(files: &[(&'a str, &'a [u8])]) -> io::Result<Content<'a>> {
        let mut content = Content {
            directories: vec![Directory {
                name: "",
                parent: 0,
                directories: Vec::new(),
                files: Vec::new(),
            }],
            files: Vec::new(),
        };
        // Level by level, so that a parent's number is always smaller.
        let mut ordered: Vec<_> = files.to_vec();
        ordered.sort_by_key(|(path, _)| (path.matches('/').count(), *path));
        for (path, bytes) in ordered {
            let mut directory = 0;
            let mut steps = path.split('/').peekable();
            while let Some(step) = steps.next() {
                if step.is_empty() || step.len() > 64 || !step.is_ascii() {
                    return Err(wrong(format!("{path} is no name for a file in it")));
                }
                if steps.peek().is_some() {
                    directory = content.enter(directory, step);
                } else {
                    let index = content.files.len();
                    content.files.push(Named {
                        name: step,
                        content: bytes,
                    });
                    if let Some(directory) = content.directories.get_mut(directory) {
                        directory.files.push(index);
                    }
                }
            }
        }
        Ok(content)
    }

    /// The directory `name` in `parent`, made when it is not there.
    fn enter(&mut self, parent: usize, name: &'a str) -> usize {
        let known = (self.directories.iter().enumerate().skip(1))
            .find(|(_, directory)| directory.parent == parent && directory.name == name);
        if let Some((index, _)) = known {
            return index;
        }
        let index = self.directories.len();
        self.directories.push(Directory {
            name,
            parent,
            directories: Vec::new(),
            files: Vec::new(),
        });
        if let Some(parent) = self.directories.get_mut(parent) {
            parent.directories.push(index);
        }
        index
    }

    /// A path table (ECMA-119 §9.4): every directory with its place and its parent's number.
    fn path_table(&self, tree: Tree, directories: &[Extent], big: bool) -> Vec<u8> {
        let mut table = Vec::new();
        for (index, (directory, extent)) in self.directories.iter().zip(directories).enumerate() {
            let name = match index {
                0 => vec![0],
                _ => identifier(tree, directory.name, index, true),
            };
            let parent = directory.parent as u16 + 1;
            table.extend([name.len() as u8, 0]);
            if big {
                table.extend(extent.sector.to_be_bytes());
                table.extend(parent.to_be_bytes());
            } else {
                table.extend(extent.sector.to_le_bytes());
                table.extend(parent.to_le_bytes());
            }
            table.extend(&name);
            if name.len() % 2 == 1 {
                table.push(0);
            }
        }
        table
    }

    /// The records of a directory (ECMA-119 §9.1), sorted by name; none crosses a sector.
    fn directory(&self, tree: Tree, index: usize, directories: &[Extent], files: &[Extent]) -> Vec<u8> {
        let Some(here) = self.directories.get(index) else {
            return Vec::new();
        };
        let extent = |list: &[Extent], index: usize| list.get(index).copied().unwrap_or_default();
        let mut named = Vec::new();
        for &child in &here.directories {
            if let Some(directory) = self.directories.get(child) {
                let name = identifier(tree, directory.name, child, true);
                let system = rock_ridge(tree, Some(directory.name), true);
                let record = record(&name, extent(directories, child), IS_DIRECTORY, &system);
                named.push((name, record));
            }
        }
        for &child in &here.files {
            if let Some(file) = self.files.get(child) {
                let name = identifier(tree, file.name, child, false);
                let system = rock_ridge(tree, Some(file.name), false);
                let record = record(&name, extent(files, child), 0, &system);
                named.push((name, record));
            }
        }
        named.sort();
        let mut system = Vec::new();
        if tree == Tree::Primary && index == 0 {
            // SP: the fields after a name are in use (SUSP §5.3). ER: for Rock Ridge (SUSP §5.5).
            system.extend(b"SP\x07\x01\xbe\xef\0");
            system.extend(b"ER\x12\x01\x0a\0\0\x01RRIP_1991A");
        }
        system.extend(rock_ridge(tree, None, true));
        let itself = record(&[0], extent(directories, index), IS_DIRECTORY, &system);
        let above = rock_ridge(tree, None, true);
        let above = record(&[1], extent(directories, here.parent), IS_DIRECTORY, &above);

        let mut sectors: Vec<u8> = Vec::new();
        for record in [itself, above]
            .into_iter()
            .chain(named.into_iter().map(|(_, record)| record))
        {
            if sectors.len() % SECTOR + record.len() > SECTOR {
                sectors.resize(sectors.len().next_multiple_of(SECTOR), 0);
            }
            sectors.extend(record);
        }
        sectors.resize(sectors.len().next_multiple_of(SECTOR), 0);
        sectors
    }
}

/// The name of a file or directory in a tree. In the primary one it only has to be unique and of eight letters
/// and digits: the real one is Rock Ridge's.
fn identifier(tree: Tree, name: &str, index: usize, is_directory: bool) -> Vec<u8> {
    match tree {
        Tree::Joliet => ucs2(name),
        Tree::Primary => {
            let letters = name.chars().filter(char::is_ascii_alphanumeric).take(5);
            let short: String = letters.map(|letter| letter.to_ascii_uppercase()).collect();
            let end = if is_directory { "" } else { ".;1" };
            format!("{short}{index:03}{end}").into_bytes()
        }
    }
}

/// Rock Ridge's fields: owner root, readable by all (PX, IEEE P1282 §4.1.1) and the real name (NM, §4.1.4).
fn rock_ridge(tree: Tree, name: Option<&str>, is_directory: bool) -> Vec<u8> {
    if tree == Tree::Joliet {
        return Vec::new();
    }
    let mode = if is_directory { 0o040_555 } else { 0o100_444 };
    let mut fields = b"PX\x24\x01".to_vec();
    for value in [mode, 1, 0, 0] {
        fields.extend(both(value));
    }
    if let Some(name) = name {
        fields.extend(b"NM");
        fields.extend([5 + name.len() as u8, 1, 0]);
        fields.extend(name.as_bytes());
    }
    fields
}

/// A directory record (ECMA-119 §9.1).
fn record(name: &[u8], extent: Extent, flags: u8, system: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both(extent.sector));
    record.extend(both(extent.size));
    record.extend(DATE);
    record.extend([flags, 0, 0]);
    record.extend(both16(1));
    record.push(name.len() as u8);
    record.extend(name);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record.extend(system);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    // Names have at most 64 letters, so that a record always fits its length.
    let length = record.len() as u8;
    if let Some(first) = record.first_mut() {
        *first = length;
    }
    record
}

#[cfg(test)]
mod tests;
