//! ext2, ext3 and ext4, by `ext4-view`, which also minds what only the journal has.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;

use ext4_view::{Ext4Error, Ext4Read, File};

use super::{FileSystem, MAX_NAMES};
use crate::bytes::Bytes;
use crate::io::{ReadAt, Source};
use crate::{Error, Result};

/// The superblock's place, and its magic number's in it.
const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;

/// Whether the first 2 KiB of a volume are of this kind.
pub fn is(head: &[u8]) -> bool {
    Bytes(head).u16(SUPERBLOCK + 56) == Ok(MAGIC)
}

/// An ext4 file system.
pub struct Ext4 {
    fs: ext4_view::Ext4,
    uuid: String,
    label: String,
}

struct Reader(Source);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        at: u64,
        into: &mut [u8],
    ) -> core::result::Result<(), Box<dyn core::error::Error + Send + Sync + 'static>> {
        self.0.read_at(at, into).map_err(|error| Box::new(error).into())
    }
}

impl Ext4 {
    /// Opens it.
    pub fn open(source: &Source) -> Result<Ext4> {
        let fs =
            ext4_view::Ext4::load(Box::new(Reader(Rc::clone(source)))).map_err(|error| wrong("/", error))?;
        Ok(Ext4 {
            uuid: fs.uuid().to_string(),
            label: fs.label().to_str().unwrap_or_default().into(),
            fs,
        })
    }
}

fn wrong(path: &str, error: Ext4Error) -> Error {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => Error::not_found(path),
        Ext4Error::Io(error) => Error::damaged(format_args!("ext4: {path}: {error}")),
        Ext4Error::Incompatible(what) => Error::unsupported(format_args!("ext4: {what}")),
        // Its words for all that may be wrong in a file system are many, and the firmware is small.
        Ext4Error::Corrupt(_) => Error::damaged(format_args!("ext4: {path}; e2fsck says what is wrong")),
        Ext4Error::Encrypted => Error::unsupported(format_args!("ext4: {path}, which is encrypted,")),
        _ => Error::unsupported(format_args!(
            "ext4: {path}, which is no file or has too long a path,"
        )),
    }
}

impl FileSystem for Ext4 {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self
            .fs
            .read_dir(directory)
            .map_err(|error| wrong(directory, error))?
        {
            let entry = entry.map_err(|error| wrong(directory, error))?;
            let name = String::from_utf8_lossy(entry.file_name().as_ref()).into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
            if names.len() > MAX_NAMES {
                return Err(Error::unsupported(format_args!(
                    "{directory} with more than {MAX_NAMES} names"
                )));
            }
        }
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<Source> {
        let file = self.fs.open(path).map_err(|error| wrong(path, error))?;
        Ok(Rc::new(OpenFile {
            path: path.into(),
            len: file.metadata().len(),
            file: RefCell::new(file),
        }))
    }
}

struct OpenFile {
    path: String,
    len: u64,
    file: RefCell<File>,
}

impl ReadAt for OpenFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, mut into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        let mut file = self.file.borrow_mut();
        if file.position() != at {
            file.seek_to(at).map_err(|error| wrong(&self.path, error))?;
        }
        while !into.is_empty() {
            let read = file.read_bytes(into).map_err(|error| wrong(&self.path, error))?;
            if read == 0 {
                return Err(Error::damaged(format_args!("{} ends too early", self.path)));
            }
            into = into.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }
}
