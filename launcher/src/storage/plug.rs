//! What is behind a disk that comes to a machine which runs.

use std::fs::File;
use std::path::PathBuf;

use nacelle_vmm::config::{CacheMode, DiskFormat};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::{block_size, cache, claim, refuse};
use crate::cli::VolumeMapping;
use crate::convert::Disk;
use crate::driver::Plug;
use crate::upgrade::Behind;
use crate::{Error, Result};

/// Where its bytes are.
#[derive(Debug)]
pub enum From {
    /// In a file, a block device, or the `disk.img` of a directory.
    Path(PathBuf, DiskFormat),
    /// In what somebody else opened, byte by byte.
    Opened(File),
}

/// The disk with what is behind it, for [`crate::driver::Driver::attach`].
///
/// # Errors
/// When that is not there, or cannot be used as the disk says.
pub fn plug(disk: &Disk, from: From) -> Result<Plug> {
    let (path, format, cache, file) = match from {
        From::Path(path, format) => {
            let name = disk.name.clone();
            let path = claim(&disk.name, &VolumeMapping { name, path, format })?;
            let cache = cache(disk, &path);
            (path, format, cache, None)
        }
        From::Opened(file) => {
            let cache = opened(disk, &file)?;
            (PathBuf::from(&disk.name), DiskFormat::Raw, cache, Some(file))
        }
    };
    let block_size = block_size(disk, || match &file {
        Some(file) => file.try_clone().map_err(Error::io("use the file of a volume")),
        None => File::open(&path).map_err(Error::file("open", &path)),
    })?;
    let behind = Behind {
        path,
        format,
        ephemeral: false,
        cache,
        block_size,
    };
    Ok(Plug {
        name: disk.name.clone(),
        config: super::disk(disk, behind),
        files: file.into_iter().collect(),
    })
}

/// The cache of a disk of an open file, which is put past the page cache where that is wanted: what is said, else as for
/// all that lasts.
fn opened(disk: &Disk, file: &File) -> Result<CacheMode> {
    if let Some(said @ (CacheMode::WriteThrough | CacheMode::WriteBack)) = disk.cache {
        return Ok(said);
    }
    let direct = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT));
    match direct {
        Ok(()) => Ok(CacheMode::None),
        Err(Errno::INVAL) if disk.cache.is_none() => {
            log::info!(
                "disk {}: its file system has no O_DIRECT; its cache is writethrough",
                disk.name
            );
            Ok(CacheMode::WriteThrough)
        }
        Err(Errno::INVAL) => Err(refuse(
            &disk.name,
            "its file system has no I/O past the page cache (O_DIRECT); use another cache mode",
        )),
        Err(error) => Err(Error::io("use the file of a volume")(error.into())),
    }
}
