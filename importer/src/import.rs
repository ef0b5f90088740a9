//! From a stream to a disk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::error::io as doing;
use crate::image::{self, Format};
use crate::target::Target;
use crate::unpack::{Peeked, unpack};
use crate::{Error, Result};

/// Bytes that are read at once.
const READ: usize = 1 << 20;
/// Bytes of a footer that may follow a raw disk: that of a fixed VHD.
const FOOTER: usize = 512;

/// Fills the target from a stream. An image that is not raw goes to a file in `scratch` first.
///
/// # Errors
/// The stream fails or has no disk in it, the image is refused, or it has no room.
pub fn import(stream: &mut dyn Read, target: &mut Target, scratch: &Path) -> Result<()> {
    unpack(stream, &mut |image| match Format::of(image.head())? {
        Format::Raw => raw(image, target),
        format => {
            let file = aside(image, target.room(), scratch)?;
            let mut image = image::open(format, &file)?;
            image::copy(&mut *image, &file, target, &mut |_| ())
        }
    })
}

/// Fills the target with a disk as it is: what its guest wrote to the beginning of it is not looked at.
///
/// # Errors
/// The stream fails, or the disk has no room.
pub fn copy(stream: &mut dyn Read, target: &mut Target) -> Result<()> {
    let mut buffer = Vec::with_capacity(READ);
    let mut size = 0;
    loop {
        buffer.clear();
        let part = stream.take(READ as u64).read_to_end(&mut buffer);
        match part.map_err(doing("read the source"))? {
            0 => return target.finish(size),
            count => {
                target.write(size, &buffer)?;
                size += count as u64;
            }
        }
    }
}

/// Copies a raw image as it comes, but for a footer.
fn raw(mut image: Peeked<'_>, target: &mut Target) -> Result<()> {
    let mut buffer = Vec::with_capacity(READ + FOOTER);
    let mut size = 0;
    loop {
        // The last bytes are held back: they may be a footer.
        let room = (READ + FOOTER - buffer.len()) as u64;
        let got = (&mut image)
            .take(room)
            .read_to_end(&mut buffer)
            .map_err(doing("read the source"))?;
        if got == 0 {
            break;
        }
        let whole = buffer.len().saturating_sub(FOOTER);
        target.write(size, buffer.get(..whole).unwrap_or_default())?;
        size += whole as u64;
        buffer.drain(..whole);
    }
    if size > 0 && image::fixed_vhd(&buffer) == Some(size) {
        return target.finish(size);
    }
    target.write(size, &buffer)?;
    size += buffer.len() as u64;
    if size == 0 {
        return Err(Error::Image("it is empty".into()));
    }
    target.finish(size)
}

/// Puts an image into a file without a name. Its tables need room too, and so may snapshots in it, but not without bound.
fn aside(mut image: Peeked<'_>, room: u64, scratch: &Path) -> Result<File> {
    let limit = room.saturating_add(room / 8).saturating_add(64 << 20);
    let mut file = tempfile(scratch).map_err(doing(format!("make a file in {}", scratch.display())))?;
    let mut buffer = vec![0; READ];
    let mut size = 0_u64;
    loop {
        let count = match image.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(doing("read the source")(error)),
        };
        size += count as u64;
        if size > limit {
            return Err(Error::Image(format!(
                "its file is larger than {limit} bytes, far more than the disk that it is for"
            )));
        }
        let part = buffer.get(..count).unwrap_or_default();
        file.write_all(part).map_err(doing("write the scratch file"))?;
    }
}

/// A file that is gone when it is closed, however this process ends.
fn tempfile(directory: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR)?.into())
}
