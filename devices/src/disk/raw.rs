//! Raw images: the guest's sectors as they are, in a file or on a block device.
//!
//! With O_DIRECT the kernel asks for aligned memory, offsets and lengths; a guest may send any sectors. What
//! does not fit goes through an aligned buffer, a write that covers part of a block reads the block first.
#![expect(unsafe_code, reason = "preadv, pwritev2, fallocate and BLKDISCARD")]

use std::ffi::{c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use imago::io_buffers::IoBuffer;

use super::backend::{Backend, gone, whole_sectors};
use super::limits::{self, Alignment, check, size};
use super::lock::Held;
use super::{DiskOp, Lock, Topology};
use crate::memory::GuestBuffer;
use crate::{Error, Result};

/// What goes through an aligned buffer at once.
const BOUNCE: usize = 256 * 1024;
/// Of linux/fs.h.
const BLKDISCARD: c_ulong = 0x1277;

/// A file or block device that is a disk as it stands.
pub(super) struct Raw {
    held: Held,
    len: AtomicU64,
    read_only: bool,
    /// `None` for I/O through the page cache, which takes everything.
    alignment: Option<Alignment>,
    /// Logical block size where it is a block device.
    device_block: Option<u64>,
    topology: Topology,
    /// Held while part of a block is written: two such writes to one block must not lose each other's part.
    partial: Mutex<()>,
}

impl Raw {
    /// Takes over `file`, which must be open for writing unless `read_only`; locks it if told to, against those who do not
    /// share it where it is `shared`.
    pub(super) fn new(
        name: String,
        file: File,
        read_only: bool,
        direct: bool,
        lock: Lock,
        shared: bool,
    ) -> Result<Self> {
        let metadata = file.metadata().map_err(Error::disk(&name, "examine"))?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.file_type().is_file() {
            return Err(Error::DiskRefused {
                disk: name,
                reason: "neither a file nor a block device".into(),
            });
        }
        let held = Held::new(name, file, lock, read_only || shared)?;
        let file = &held.file;
        let len = whole_sectors(&held.name, size(file).map_err(held.failed("measure"))?);
        let (device_block, topology) = if is_device {
            let block = limits::logical_block(file);
            (Some(u64::from(block)), limits::device_topology(file, block))
        } else {
            (None, limits::file_topology(metadata.blksize()))
        };
        let alignment = direct.then(|| limits::direct_alignment(file, device_block, BOUNCE as u64));
        Ok(Raw {
            held,
            len: AtomicU64::new(len),
            read_only,
            alignment,
            device_block,
            topology,
            partial: Mutex::new(()),
        })
    }

    /// The file, for a ring.
    pub(super) fn fd(&self) -> RawFd {
        self.held.file.as_raw_fd()
    }

    /// Whether it is in memory alone.
    pub(super) fn is_in_memory(&self) -> bool {
        limits::is_in_memory(&self.held.file)
    }

    /// Whether the kernel takes the operation as it is.
    pub(super) fn is_aligned(&self, offset: u64, buffer: &GuestBuffer) -> bool {
        let Some(alignment) = self.alignment else {
            return true;
        };
        offset.is_multiple_of(alignment.offset)
            && (buffer.len() as u64).is_multiple_of(alignment.offset)
            && buffer.iovecs().iter().all(|v| {
                (v.iov_base as usize).is_multiple_of(alignment.memory)
                    && v.iov_len.is_multiple_of(alignment.memory)
            })
    }

    fn read_vectored(&self, offset: u64, buffer: &GuestBuffer) -> io::Result<u32> {
        let iovecs = buffer.iovecs();
        let count = c_int::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `buffer` keeps the guest memory that its iovecs point to mapped during the call; nothing
        // in this process holds references into it.
        moved(|| unsafe { libc::preadv(self.fd(), iovecs.as_ptr(), count, offset as libc::off_t) })
    }

    fn write_vectored(&self, offset: u64, buffer: &GuestBuffer, durable: bool) -> io::Result<u32> {
        let iovecs = buffer.iovecs();
        let count = c_int::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        // SAFETY: as in `read_vectored`; the kernel only reads the memory.
        moved(|| unsafe { libc::pwritev2(self.fd(), iovecs.as_ptr(), count, offset as libc::off_t, flags) })
    }

    /// Reads `len` bytes through an aligned buffer; `take` gets each piece and its offset in the range.
    fn read_bounced(
        &self,
        alignment: Alignment,
        offset: u64,
        len: u64,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut memory = IoBuffer::new(BOUNCE, alignment.memory.max(alignment.offset as usize))?;
        let bounce = memory.as_mut().into_slice();
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (start, skip) = split_down(at, alignment.offset);
            let here = (len - done).min(BOUNCE as u64 - skip);
            let want = (skip + here).next_multiple_of(alignment.offset);
            let piece = cut(bounce, 0, want)?;
            let got = read_until(&self.held.file, piece, start, skip + here)?;
            if (got as u64) < skip + here {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(done, cut(bounce, skip, here)?)?;
            done += here;
        }
        Ok(())
    }

    /// Writes `len` bytes through an aligned buffer; `fill` gives each piece by its offset in the range.
    fn write_bounced(
        &self,
        alignment: Alignment,
        offset: u64,
        len: u64,
        fill: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut memory = IoBuffer::new(BOUNCE, alignment.memory.max(alignment.offset as usize))?;
        let bounce = memory.as_mut().into_slice();
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (start, skip) = split_down(at, alignment.offset);
            let here = (len - done).min(BOUNCE as u64 - skip);
            let end = skip + here;
            let whole = end.next_multiple_of(alignment.offset);
            let partial = skip != 0 || whole != end;
            let _guard = partial.then(|| self.partial.lock().unwrap_or_else(PoisonError::into_inner));
            if partial {
                // Beyond the end of a file the rest of its last block is zero.
                let old = cut(bounce, 0, whole)?;
                old.fill(0);
                read_until(&self.held.file, old, start, whole)?;
            }
            fill(done, cut(bounce, skip, here)?)?;
            self.held.file.write_all_at(cut(bounce, 0, whole)?, start)?;
            done += here;
        }
        Ok(())
    }

    fn write_pieces(
        &self,
        offset: u64,
        len: u64,
        fill: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let byte = Alignment { memory: 1, offset: 1 };
        self.write_bounced(self.alignment.unwrap_or(byte), offset, len, fill)
    }

    /// Writes `data` at `offset`, for a layer above.
    pub(super) fn write_bytes(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_pieces(offset, data.len() as u64, &mut |done, piece| {
            let from = data.get(done as usize..).unwrap_or_default();
            for (to, byte) in piece.iter_mut().zip(from) {
                *to = *byte;
            }
            Ok(())
        })
    }

    /// Brings what was written to stable storage.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.held.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = match self.device_block {
            Some(block) => {
                // The device forgets whole blocks; those that the range only touches stay.
                let (start, end) = (offset.next_multiple_of(block), (offset + len) / block * block);
                if start >= end {
                    return Ok(());
                }
                let range = [start, end - start];
                // SAFETY: BLKDISCARD reads two u64, which live as long as the call.
                check(unsafe { libc::ioctl(self.fd(), BLKDISCARD, range.as_ptr()) })
            }
            None => self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len),
        };
        match done {
            // Only a hint: storage that cannot forget still has done what was asked.
            Err(error) if unsupported(&error) => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        let fits = self
            .device_block
            .is_none_or(|block| offset.is_multiple_of(block) && len.is_multiple_of(block));
        if fits {
            match self.fallocate(mode, offset, len) {
                Err(error) if unsupported(&error) => {}
                other => return other,
            }
        }
        self.write_pieces(offset, len, &mut |_, piece| {
            piece.fill(0);
            Ok(())
        })
    }

    fn fallocate(&self, mode: c_int, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: fallocate touches no memory of ours.
        check(unsafe {
            libc::fallocate(
                self.fd(),
                mode | libc::FALLOC_FL_KEEP_SIZE,
                offset as libc::off_t,
                len as libc::off_t,
            )
        })
    }
}

impl Backend for Raw {
    fn name(&self) -> &str {
        &self.held.name
    }

    fn size(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn topology(&self) -> Topology {
        self.topology
    }

    fn execute(&self, op: DiskOp, buffer: &GuestBuffer) -> io::Result<u32> {
        match op {
            DiskOp::Read { offset } => match self.alignment {
                Some(alignment) if !self.is_aligned(offset, buffer) => {
                    let len = buffer.len();
                    self.read_bounced(alignment, offset, len as u64, |done, piece| {
                        let part = buffer.part(done as usize, piece.len()).map_err(gone)?;
                        part.write(piece).map(drop).map_err(gone)
                    })?;
                    Ok(len as u32)
                }
                _ => self.read_vectored(offset, buffer),
            },
            DiskOp::Write { offset, durable } => match self.alignment {
                Some(alignment) if !self.is_aligned(offset, buffer) => {
                    let len = buffer.len();
                    self.write_bounced(alignment, offset, len as u64, &mut |done, piece| {
                        let part = buffer.part(done as usize, piece.len()).map_err(gone)?;
                        part.read(piece).map(drop).map_err(gone)
                    })?;
                    if durable {
                        self.sync()?;
                    }
                    Ok(len as u32)
                }
                _ => self.write_vectored(offset, buffer, durable),
            },
            DiskOp::Flush => self.sync().map(|()| 0),
            DiskOp::Discard { offset, len } => self.discard(offset, len).map(|()| 0),
            DiskOp::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            } => {
                self.write_zeroes(offset, len, unmap)?;
                if durable {
                    self.sync()?;
                }
                Ok(0)
            }
        }
    }

    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let Some(alignment) = self.alignment else {
            return self.held.file.read_exact_at(data, offset);
        };
        let len = data.len() as u64;
        self.read_bounced(alignment, offset, len, |done, piece| {
            cut(data, done, piece.len() as u64)?.copy_from_slice(piece);
            Ok(())
        })
    }

    fn resize(&self, len: Option<u64>) -> Result<u64> {
        let failed = || self.held.failed("resize");
        let refused = |reason: String| Error::DiskRefused {
            disk: self.held.name.clone(),
            reason,
        };
        let mut now = size(&self.held.file).map_err(failed())?;
        if let Some(len) = len {
            if len < self.size() {
                return Err(refused(format!("{len} bytes would cut it off")));
            }
            if len > now && self.device_block.is_some() {
                return Err(refused(format!("the device has {now} bytes, not {len}")));
            }
            if len > now {
                self.held.file.set_len(len).map_err(failed())?;
            }
            now = len;
        }
        let len = whole_sectors(&self.held.name, now);
        if len < self.size() {
            return Err(refused(format!("it has shrunk to {now} bytes")));
        }
        self.len.store(len, Ordering::Release);
        Ok(len)
    }

    fn lock(&self) -> Result<()> {
        self.held.lock()
    }

    fn unlock(&self) -> Result<()> {
        if !self.read_only {
            self.sync().map_err(self.held.failed("flush"))?;
        }
        self.held.unlock()
    }

    fn files(&self) -> Result<Vec<File>> {
        self.held.files()
    }

    fn hand_over(&self) -> Result<()> {
        self.held.give();
        Ok(())
    }
}

/// A system call that moves bytes, again when a signal came first.
fn moved(mut call: impl FnMut() -> isize) -> io::Result<u32> {
    loop {
        match call() {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            // The kernel moves less than 2 GiB at once.
            count => return Ok(count as u32),
        }
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS)
    )
}

/// `at` as the start of its block and the offset in it.
fn split_down(at: u64, block: u64) -> (u64, u64) {
    (at - at % block, at % block)
}

/// `len` bytes of `data` from `start`.
fn cut(data: &mut [u8], start: u64, len: u64) -> io::Result<&mut [u8]> {
    data.get_mut(start as usize..(start + len) as usize)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Reads from `offset` until `enough` bytes are there or the file ends.
fn read_until(file: &File, data: &mut [u8], offset: u64, enough: u64) -> io::Result<usize> {
    let mut got = 0;
    while (got as u64) < enough {
        let Some(rest) = data.get_mut(got..) else { break };
        match file.read_at(rest, offset + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // With O_DIRECT the kernel refuses to go on at the misaligned end of a file.
            Err(error) if got > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
