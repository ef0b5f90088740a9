//! The volume that is filled: `disk.img` in a file system, or a block device. What is zero is not written.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;

use crate::error::io as doing;
use crate::{Error, Result};

/// What is looked at, and written, as one.
const PIECE: usize = 4096;
/// Zeros that are written at once where a device cannot be told to be zero.
const ZEROS: usize = 1 << 20;
/// Bytes at the end of a disk that a file system may keep for itself.
const SECTOR: u64 = 512;

/// A volume, all zero at first.
pub struct Target {
    file: File,
    room: u64,
    device: bool,
    preallocate: bool,
}

impl Target {
    /// Takes over what is at `path`: a block device, or a file, which is made, and which `wanted` bytes of its file system
    /// are for. What was there is gone.
    ///
    /// # Errors
    /// It cannot be opened, or made zero.
    pub fn open(path: &Path, wanted: u64, preallocate: bool) -> Result<Target> {
        let opened = || doing(format!("open {}", path.display()));
        let device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        if device {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map_err(opened())?;
            let room = file.seek(SeekFrom::End(0)).map_err(opened())?;
            zero(&file, room).map_err(doing(format!("make {} zero", path.display())))?;
            return Ok(Target {
                file,
                room,
                device,
                preallocate,
            });
        }
        // Truncated: what an attempt before this one left behind is not part of the disk.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o660)
            .open(path)
            .map_err(opened())?;
        let system = fstatvfs(&file).map_err(|error| opened()(error.into()))?;
        let available = system.f_bavail.saturating_mul(system.f_frsize);
        let room = wanted.min(available);
        Ok(Target {
            file,
            room: room - room % SECTOR,
            device,
            preallocate,
        })
    }

    /// Bytes that the disk may have.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Whether a disk of `size` bytes has room.
    ///
    /// # Errors
    /// It has not.
    pub fn must_hold(&self, size: u64) -> Result<()> {
        let room = self.room;
        if size > room {
            Err(Error::TooLarge { size, room })
        } else {
            Ok(())
        }
    }

    /// Writes what of `data` is not zero.
    ///
    /// # Errors
    /// It has no room, or the volume fails.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.must_hold(offset.saturating_add(data.len() as u64))?;
        let (mut at, mut run) = (offset, 0_u64);
        let mut rest = data;
        let mut pieces = data.chunks(PIECE);
        loop {
            let piece = pieces.next();
            match piece {
                Some(piece) if !is_zero(piece) => run += piece.len() as u64,
                other => {
                    let (whole, after) =
                        rest.split_at(usize::try_from(run).unwrap_or_default().min(rest.len()));
                    self.file
                        .write_all_at(whole, at)
                        .map_err(doing("write the volume"))?;
                    at += run;
                    run = 0;
                    let Some(hole) = other else { return Ok(()) };
                    rest = after.get(hole.len()..).unwrap_or_default();
                    at += hole.len() as u64;
                }
            }
        }
    }

    /// The disk, of `size` bytes, is complete: it takes all the room that there is, and is on stable storage.
    ///
    /// # Errors
    /// The volume fails.
    pub fn finish(&mut self, size: u64) -> Result<()> {
        self.must_hold(size)?;
        if !self.device {
            self.file.set_len(self.room).map_err(doing("size the volume"))?;
        }
        if self.preallocate {
            let allocated = fallocate(&self.file, FallocateFlags::empty(), 0, self.room);
            match allocated {
                // A device has its blocks.
                Err(Errno::NODEV | Errno::OPNOTSUPP) if self.device => {}
                other => other.map_err(|error| doing("allocate the volume")(error.into()))?,
            }
        }
        self.file.sync_all().map_err(doing("write the volume"))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (wide, rest) = bytes.as_chunks::<16>();
    wide.iter().all(|bytes| u128::from_ne_bytes(*bytes) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Makes a device zero: it is told so, or zeros are written.
fn zero(file: &File, len: u64) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, hole, 0, len) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; ZEROS];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(ZEROS as u64);
        let zeros = zeros
            .get(..usize::try_from(part).unwrap_or_default())
            .unwrap_or_default();
        file.write_all_at(zeros, at)?;
        at += part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn holes_are_kept_and_data_are_where_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let mut target = Target::open(&path, 1 << 20, false).unwrap();
        let mut data = vec![0; 300_001];
        for at in [0, 8191, 200_000, 300_000] {
            data[at] = 1;
        }
        target.write(4096, &data).unwrap();
        target.finish(1 << 20).unwrap();
        let there = std::fs::read(&path).unwrap();
        assert_eq!(there.len(), 1 << 20);
        assert_eq!(&there[4096..][..data.len()], data);
        assert!(there[4096 + data.len()..].iter().all(|byte| *byte == 0));
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 100_000);
    }

    #[test]
    fn what_has_no_room_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::open(&dir.path().join("disk.img"), 8192, false).unwrap();
        let error = target.write(4096, &[1; 8192]).unwrap_err().to_string();
        assert!(error.contains("A larger PVC is required"), "{error}");
    }
}
