//! qcow2 images, through the library `imago`.
//!
//! An image may come from anybody: its header is checked here before the library acts on it, the names of
//! other files in it are followed only when the caller allows that, and never for writing.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File as ImagoFile;
use imago::format::PreallocateMode;
use imago::format::gate::ImplicitOpenGate;
use imago::io_buffers::{IoBuffer, IoVector, IoVectorMut};
use imago::qcow2::Qcow2 as Library;
use imago::storage::StorageOpenOptions;
use imago::{FormatAccess, FormatDriverBuilder};

use super::backend::{Backend, gone, whole_sectors};
use super::lock::{self, Held, Sharing};
use super::{DiskOp, Lock, Topology};
use crate::memory::GuestBuffer;
use crate::{Error, Result};

/// The first bytes of every qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Images behind images that are followed; a chain that bites its tail ends here.
const MAX_BACKING: u8 = 8;
/// Tables of one cluster each that the library keeps, and how much memory they may take.
const CACHED_TABLES: u64 = 128;
const MAX_CACHE: u64 = 64 << 20;
/// What O_DIRECT may want accesses aligned to.
const PAGE: u64 = 4096;

/// An open image.
pub(super) struct Qcow2 {
    size: AtomicU64,
    /// Shared for I/O; alone for what moves clusters that I/O may be using.
    image: RwLock<FormatAccess<ImagoFile>>,
    read_only: bool,
    /// It is another process's until it is locked, and is then opened anew.
    later: Mutex<Option<How>>,
    /// The last to go: nothing may be written after the lock.
    held: Held,
}

impl Qcow2 {
    /// Takes over `file`; `path` is where names in the image start from.
    pub(super) fn new(
        name: String,
        file: File,
        path: Option<PathBuf>,
        read_only: bool,
        direct: bool,
        lock: Lock,
        backing: bool,
    ) -> Result<Self> {
        let held = Held::new(name, file, lock, read_only)?;
        let how = How {
            path,
            direct,
            lock: lock != Lock::Never,
            backing,
        };
        // Who still writes it has its tables in memory: until it is ours only its size is of use.
        let later = lock == Lock::Later;
        let image = how.open(&held.name, held.duplicate()?, read_only || later)?;
        Ok(Qcow2 {
            size: AtomicU64::new(whole_sectors(&held.name, image.size())),
            image: RwLock::new(image),
            read_only,
            held,
            later: Mutex::new(later.then_some(how)),
        })
    }

    /// The library keeps its own state whole under errors; a panic in it was answered as one.
    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<ImagoFile>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<ImagoFile>> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn flush(image: &FormatAccess<ImagoFile>) -> io::Result<()> {
    image.flush()?;
    image.sync()
}

fn write_zeroes(image: &FormatAccess<ImagoFile>, offset: u64, len: u64) -> io::Result<()> {
    let zeroes = [0; 64 * 1024];
    let mut done = 0;
    while done < len {
        let piece = zeroes.get(..(len - done).min(zeroes.len() as u64) as usize);
        let piece = piece.unwrap_or_default();
        image.write(piece, offset + done)?;
        done += piece.len() as u64;
    }
    Ok(())
}

impl Backend for Qcow2 {
    fn name(&self) -> &str {
        &self.held.name
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn topology(&self) -> Topology {
        Topology {
            physical: 4096,
            alignment: 0,
            minimum: 0,
            optimal: 0,
        }
    }

    fn execute(&self, op: DiskOp, buffer: &GuestBuffer) -> io::Result<u32> {
        match op {
            DiskOp::Read { offset } => {
                let slices = buffer.slices().map_err(gone)?;
                let (vector, _mapped) = IoVectorMut::from_volatile_slice(slices.iter());
                self.shared().readv(vector, offset)?;
                Ok(buffer.len() as u32)
            }
            DiskOp::Write { offset, durable } => {
                let slices = buffer.slices().map_err(gone)?;
                let (vector, _mapped) = IoVector::from_volatile_slice(slices.iter());
                let image = self.shared();
                image.writev(vector, offset)?;
                if durable {
                    flush(&image)?;
                }
                Ok(buffer.len() as u32)
            }
            DiskOp::Flush => flush(&self.shared()).map(|()| 0),
            DiskOp::Discard { offset, len } => match self.alone().discard_to_any(offset, len) {
                // Only a hint.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(0),
                other => other.map(|()| 0),
            },
            DiskOp::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            } => {
                let done = match unmap {
                    true => self.alone().discard_to_zero(offset, len),
                    false => self.shared().write_zeroes(offset, len),
                };
                match done {
                    // Version 2 has no mark for zeroes: they are data like any other.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        write_zeroes(&self.shared(), offset, len)?;
                    }
                    other => other?,
                }
                if durable {
                    flush(&self.shared())?;
                }
                Ok(0)
            }
        }
    }

    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.shared().read(data, offset)
    }

    fn resize(&self, len: Option<u64>) -> Result<u64> {
        let image = self.alone();
        if let Some(len) = len {
            if len < image.size() {
                return Err(Error::DiskRefused {
                    disk: self.held.name.clone(),
                    reason: format!("{len} bytes would cut it off"),
                });
            }
            image
                .resize_grow(len, PreallocateMode::None)
                .and_then(|()| flush(&image))
                .map_err(self.held.failed("resize"))?;
        }
        let size = whole_sectors(&self.held.name, image.size());
        self.size.store(size, Ordering::Release);
        Ok(size)
    }

    fn lock(&self) -> Result<()> {
        self.held.lock()?;
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(how) = &*later {
            *self.alone() = how.open(&self.held.name, self.held.duplicate()?, self.read_only)?;
            *later = None;
        }
        Ok(())
    }

    fn unlock(&self) -> Result<()> {
        if !self.read_only {
            flush(&self.shared()).map_err(self.held.failed("flush"))?;
        }
        self.held.unlock()
    }

    fn files(&self) -> Result<Vec<File>> {
        self.held.files()
    }

    fn hand_over(&self) -> Result<()> {
        if !self.read_only {
            // The tables: what is written is in the page cache that both processes see.
            self.shared()
                .flush()
                .map_err(self.held.failed("write the tables of"))?;
        }
        self.held.give();
        Ok(())
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // Before the lock: what the library still holds back must not be written after it.
        let ours = !self.held.is_given() && self.later.get_mut().is_ok_and(|later| later.is_none());
        if let Err(error) = flush(self.image.get_mut().unwrap_or_else(PoisonError::into_inner))
            && !self.read_only
            && ours
        {
            log::error!("disk {}: the end of it is not written: {error}", self.held.name);
        }
    }
}

/// How an image is opened.
struct How {
    /// Where names in the image start from.
    path: Option<PathBuf>,
    direct: bool,
    lock: bool,
    backing: bool,
}

impl How {
    fn open(&self, name: &str, mut file: File, read_only: bool) -> Result<FormatAccess<ImagoFile>> {
        let failed = |what| Error::disk(name, what);
        let refused = |reason| Error::DiskRefused {
            disk: name.to_owned(),
            reason,
        };
        let header = read_at(&file, 0, HEADER).map_err(failed("read the header of"))?;
        check_header(&header, self.backing).map_err(refused)?;
        let len = file
            .seek(io::SeekFrom::End(0))
            .map_err(failed("see the length of"))?;
        let tables = check_tables(&header, len).map_err(refused)?;
        if !read_only {
            let checked = check_counts(&file, &tables).map_err(failed("read the reference counts of"))?;
            checked.map_err(refused)?;
        }
        let mut options = StorageOpenOptions::new().write(!read_only).direct(self.direct);
        if let Some(path) = self.path.clone() {
            options = options.filename(path);
        }
        let gate = Gate {
            left: if self.backing { MAX_BACKING } else { 0 },
            direct: self.direct,
            lock: self.lock,
        };
        let image = ImagoFile::from_open_file(file, options)
            .and_then(|storage| {
                Library::<ImagoFile>::builder(storage)
                    .write(!read_only)
                    .open(gate)
            })
            .map_err(failed("open qcow2"))?;
        Ok(FormatAccess::new(image))
    }
}

/// Opens the files that an image names: `left` more of them, each read-only and locked as such.
struct Gate {
    left: u8,
    direct: bool,
    lock: bool,
}

impl ImplicitOpenGate<ImagoFile> for Gate {
    fn open_format<F: FormatDriverBuilder<ImagoFile>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<ImagoFile>> {
        let next = Gate {
            left: self.left.saturating_sub(1),
            ..*self
        };
        builder.open(next).map(FormatAccess::new)
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<ImagoFile> {
        let denied = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
        let Some(path) = options.get_filename() else {
            return denied("the image names a file without a name");
        };
        if options.get_writable() {
            return denied("its data are in another file");
        }
        if self.left == 0 {
            return denied("it has a backing file, or too many behind each other");
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(if self.direct { libc::O_DIRECT } else { 0 })
            .open(path)?;
        if self.lock {
            lock::take(&file, &path.display().to_string(), Sharing::Shared).map_err(io::Error::other)?;
        }
        ImagoFile::from_open_file(file, options.direct(self.direct))
    }
}

/// The fixed part of a header (version 3 is 104 bytes, version 2 the first 72 of them).
const HEADER: usize = 104;

/// The bytes of `file` from `offset` on, `len` of them or as many as there are; read as O_DIRECT wants it.
fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let start = offset - offset % PAGE;
    let skip = (offset - start) as usize;
    let mut memory = IoBuffer::new((skip + len).next_multiple_of(PAGE as usize), PAGE as usize)?;
    let room = memory.as_mut().into_slice();
    let mut got = 0;
    while got < skip + len {
        let rest = room.get_mut(got..).unwrap_or_default();
        match file.read_at(rest, start + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(room.iter().take(got).skip(skip).take(len).copied().collect())
}

/// The big-endian number of `len` bytes at `at`.
fn number(header: &[u8], at: usize, len: usize) -> u64 {
    let bytes = header.iter().skip(at).take(len);
    bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Where the tables of an image lie, as a checked header says.
#[derive(Debug, PartialEq, Eq)]
struct Tables {
    /// Where the table of reference counts begins.
    counts: u64,
    /// Its entries that the file needs: one for each block of counters.
    blocks: u64,
}

/// Refuses tables that do not lie in a file of `len` bytes, and those that would make the library use memory
/// without bound.
fn check_tables(header: &[u8], len: u64) -> std::result::Result<Tables, String> {
    let number = |at, len| number(header, at, len);
    let cluster = 1u64 << number(20, 4);
    let (l1, l1_bytes) = (number(40, 8), number(36, 4) * 8);
    let (counts, counts_bytes) = (number(48, 8), number(56, 4) * cluster);
    for (what, offset, bytes) in [
        ("its table of tables", l1, l1_bytes),
        ("its table of reference counts", counts, counts_bytes),
    ] {
        if bytes > MAX_CACHE || offset.checked_add(bytes).is_none_or(|end| end > len) {
            return Err(format!("{what} of {bytes} bytes is too large or not in the file"));
        }
    }
    // Bits of a counter, as a power of two: version 2 has 16 bits.
    let order = if number(4, 4) == 2 { 4 } else { number(96, 4) };
    if order > 6 {
        return Err(format!("its reference counts have 2^{order} bits"));
    }
    let counters = (cluster * 8) >> order;
    let blocks = len.div_ceil(cluster).div_ceil(counters);
    if blocks > counts_bytes / 8 {
        return Err("its table of reference counts is too short".into());
    }
    Ok(Tables { counts, blocks })
}

/// Refuses to write an image whose reference counts leave parts of the file out: new data would be put where
/// there are data, its header even, and the library can lose its way in such an image.
fn check_counts(file: &File, tables: &Tables) -> io::Result<std::result::Result<(), String>> {
    let table = read_at(file, tables.counts, (tables.blocks * 8) as usize)?;
    let (entries, _) = table.as_chunks::<8>();
    let missing = entries.iter().filter(|entry| **entry == [0; 8]).count();
    Ok(match entries.len() as u64 == tables.blocks && missing == 0 {
        true => Ok(()),
        false => Err("parts of it have no reference counts; it can only be read".into()),
    })
}

/// Refuses what we do not serve, and what would make the library use memory without bound. Fields as in
/// QEMU's docs/interop/qcow2.txt, big-endian.
fn check_header(header: &[u8], backing: bool) -> std::result::Result<(), String> {
    let number = |at, len| number(header, at, len);
    if !header.starts_with(&MAGIC) || header.len() < 72 {
        return Err("not a qcow2 image".into());
    }
    let version = number(4, 4);
    if !matches!(version, 2 | 3) {
        return Err(format!("qcow2 version {version}, not 2 or 3"));
    }
    let cluster_bits = number(20, 4);
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!("clusters of 2^{cluster_bits} bytes"));
    }
    if number(32, 4) != 0 {
        return Err("it is encrypted".into());
    }
    if number(8, 8) != 0 && !backing {
        return Err("it has a backing file, which is not allowed here".into());
    }
    if version == 3 && number(72, 8) & 1 << 2 != 0 {
        return Err("its data are in another file, which is not allowed".into());
    }
    let cluster = 1u64 << cluster_bits;
    let size = number(24, 8);
    // An L2 table is a cluster of 8-byte entries, one a cluster.
    let tables = size.div_ceil(cluster).div_ceil(cluster / 8);
    if tables.min(CACHED_TABLES) * cluster > MAX_CACHE {
        return Err(format!(
            "{size} bytes in clusters of {cluster} need too much memory"
        ));
    }
    if number(36, 4) < tables {
        return Err("its table of tables is too short".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
