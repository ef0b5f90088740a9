//! File systems, read only, as far as it takes to find kernels on them.

mod btrfs;
mod ext4;
mod fat;
mod tree;
mod xfs;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::Result;
use crate::io::{Source, text};

/// A file system. Paths are absolute, `/` separates their parts, symbolic links are followed.
pub trait FileSystem {
    /// Its name, as Linux has it: `ext4`, `vfat`, `xfs`, `btrfs`.
    fn kind(&self) -> &'static str;

    /// Its UUID, as `blkid` writes it.
    fn uuid(&self) -> &str;

    /// Its label.
    fn label(&self) -> &str;

    /// Names of what is in a directory, in no order.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    fn list(&self, directory: &str) -> Result<Vec<String>>;

    /// A file.
    ///
    /// # Errors
    /// When it is not there, is no file, or cannot be read.
    fn open(&self, path: &str) -> Result<Source>;

    /// All of a file of text.
    ///
    /// # Errors
    /// As for [`FileSystem::open`], or when it is longer than configurations are.
    fn text(&self, path: &str) -> Result<String> {
        text(&*self.open(path)?)
    }

    /// The same where it need not be there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    fn text_if_there(&self, path: &str) -> Result<Option<String>> {
        match self.text(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Most names that are listed of a directory.
const MAX_NAMES: usize = 10_000;

/// The file system on `source`; `None` where there is none that is known.
///
/// # Errors
/// When there is one that cannot be read.
pub fn open(source: &Source) -> Result<Option<Box<dyn FileSystem>>> {
    // The first bytes of each kind: the boot sector, ext4's and XFS's superblock; btrfs has its own at 64 KiB.
    let mut head = [0; 2048];
    if source.len() < head.len() as u64 {
        return Ok(None);
    }
    source.read_at(0, &mut head)?;
    Ok(if xfs::is(&head) {
        Some(Box::new(xfs::Xfs::open(source)?))
    } else if ext4::is(&head) {
        Some(Box::new(ext4::Ext4::open(source)?))
    } else if fat::is(&head) {
        Some(Box::new(fat::Fat::open(source)?))
    } else if btrfs::is(&**source)? {
        Some(Box::new(btrfs::Btrfs::open(source)?))
    } else {
        None
    })
}

#[cfg(test)]
mod tests;
