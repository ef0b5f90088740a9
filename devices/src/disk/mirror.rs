//! A disk that is copied elsewhere while a guest writes it: what changes is noted, to be copied again.
//!
//! A part counts as changed when the operation that changed it has ended, whether it succeeded or not: who takes the
//! changes and then reads sees each of them, or hears of it again.
#![expect(unsafe_code, reason = "an eventfd of another library is borrowed")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Completion, Disk, DiskOp, DiskQueue, Topology};
use crate::memory::{GuestBuffer, Memory};
use crate::{Error, Result};

/// What one bit of the changes stands for, in bytes.
pub const PART: u64 = 64 << 10;
/// Most bytes that are copied at once.
pub const PIECE: u64 = 1 << 20;

/// What was changed on a disk, while that is noted.
#[derive(Clone, Default)]
pub struct Changes(Arc<Mutex<Option<Vec<u64>>>>);

impl Changes {
    fn held(&self) -> MutexGuard<'_, Option<Vec<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes changes of a disk of `len` bytes from now on.
    pub fn begin(&self, len: u64) {
        *self.held() = Some(vec![0; len.div_ceil(PART).div_ceil(64) as usize]);
    }

    /// Notes none any more.
    pub fn end(&self) {
        *self.held() = None;
    }

    /// Notes that this part is to be copied, as it was changed, or was taken and not copied.
    pub fn mark(&self, offset: u64, len: u64) {
        if let Some(words) = &mut *self.held() {
            for part in offset / PART..(offset + len).div_ceil(PART) {
                if let Some(word) = words.get_mut((part / 64) as usize) {
                    *word |= 1 << (part % 64);
                }
            }
        }
    }

    /// Bytes that were changed since they were last taken.
    pub fn bytes(&self) -> u64 {
        let held = self.held();
        let words = held.iter().flatten();
        words.map(|word| u64::from(word.count_ones()) * PART).sum()
    }

    /// What was changed since the last time, in pieces: offset and length on a disk of `len` bytes.
    pub fn take(&self, len: u64) -> Vec<(u64, u64)> {
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for (index, word) in self.held().iter_mut().flatten().enumerate() {
            let bits = std::mem::take(word);
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                let at = (index as u64 * 64 + bit) * PART;
                let here = PART.min(len.saturating_sub(at));
                match pieces.last_mut() {
                    Some((offset, so_far)) if *offset + *so_far == at && *so_far + here <= PIECE => {
                        *so_far += here
                    }
                    _ => pieces.push((at, here)),
                }
            }
        }
        pieces
    }
}

/// A disk whose changes can be noted.
pub struct Mirror {
    disk: Arc<dyn Disk>,
    changes: Changes,
}

impl Mirror {
    /// `disk`, and what tells of its changes.
    pub fn over(disk: Arc<dyn Disk>) -> (Arc<dyn Disk>, Changes) {
        let changes = Changes::default();
        let mirror = Mirror {
            disk,
            changes: changes.clone(),
        };
        (Arc::new(mirror), changes)
    }
}

impl Disk for Mirror {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn topology(&self) -> Topology {
        self.disk.topology()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>> {
        Ok(Box::new(MirrorQueue {
            queue: self.disk.open_queue(depth)?,
            changes: self.changes.clone(),
            changing: vec![None; usize::from(depth)],
        }))
    }

    fn resize(&self, len: Option<u64>) -> Result<u64> {
        self.disk.resize(len)
    }

    fn lock(&self) -> Result<()> {
        self.disk.lock()
    }

    fn unlock(&self) -> Result<()> {
        self.disk.unlock()
    }

    fn files(&self) -> Result<Vec<std::fs::File>> {
        self.disk.files()
    }

    fn hand_over(&self) -> Result<()> {
        self.disk.hand_over()
    }
}

struct MirrorQueue {
    queue: Box<dyn DiskQueue>,
    changes: Changes,
    /// By tag: offset and length of what an operation in flight changes.
    changing: Vec<Option<(u64, u64)>>,
}

impl DiskQueue for MirrorQueue {
    fn submit(&mut self, tag: u16, op: DiskOp, buffer: GuestBuffer) -> io::Result<()> {
        let changes = match op {
            DiskOp::Write { offset, .. } => Some((offset, buffer.len() as u64)),
            DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. } => Some((offset, len)),
            DiskOp::Read { .. } | DiskOp::Flush => None,
        };
        self.queue.submit(tag, op, buffer)?;
        if let Some(changing) = self.changing.get_mut(usize::from(tag)) {
            *changing = changes;
        }
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        self.queue.commit()
    }

    fn reap(&mut self) -> Option<Completion> {
        let completion = self.queue.reap()?;
        let changing = self.changing.get_mut(usize::from(completion.tag));
        if let Some((offset, len)) = changing.and_then(Option::take) {
            self.changes.mark(offset, len);
        }
        Some(completion)
    }

    fn completion(&self) -> &EventFd {
        self.queue.completion()
    }
}

/// Reads and writes a disk, one piece after the other, for who copies it.
pub struct Copier {
    name: String,
    len: u64,
    queue: Box<dyn DiskQueue>,
    /// What the pieces go through.
    memory: Arc<Memory>,
}

impl Copier {
    /// For `disk`.
    ///
    /// # Errors
    /// When it has no queue left, or the host no memory.
    pub fn new(disk: &dyn Disk) -> Result<Copier> {
        let memory = Memory::from_ranges(&[(GuestAddress(0), PIECE as usize)]).map_err(io::Error::other);
        Ok(Copier {
            name: disk.name().into(),
            len: disk.len(),
            queue: disk.open_queue(1)?,
            memory: Arc::new(memory.map_err(Error::disk(disk.name(), "copy"))?),
        })
    }

    /// The content from `offset` on.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.work(DiskOp::Read { offset }, offset, data.len())?;
        let read = self.memory.read_slice(data, GuestAddress(0));
        read.map_err(io::Error::other).map_err(self.failed())
    }

    /// Makes `data` the content from `offset` on; `None` is `len` bytes of zeroes, which take no space.
    ///
    /// # Errors
    /// When that is outside the disk, or the storage fails.
    pub fn write(&mut self, offset: u64, len: u64, data: Option<&[u8]>) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len)
            || data.is_some_and(|data| data.len() as u64 != len)
        {
            return Err(self.failed()(io::ErrorKind::InvalidInput.into()));
        }
        let (unmap, durable) = (true, false);
        let Some(data) = data else {
            let zeroes = DiskOp::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            };
            return self.work(zeroes, offset, 0);
        };
        let written = self.memory.write_slice(data, GuestAddress(0));
        written.map_err(io::Error::other).map_err(self.failed())?;
        self.work(DiskOp::Write { offset, durable }, offset, data.len())
    }

    /// Brings what was written to stable storage.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn flush(&mut self) -> Result<()> {
        self.work(DiskOp::Flush, 0, 0)
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::disk(&self.name, "copy")
    }

    /// Does `op`, whose data are the first `len` bytes of memory.
    fn work(&mut self, op: DiskOp, offset: u64, len: usize) -> Result<()> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(self.failed()(io::ErrorKind::InvalidInput.into()));
        }
        let ranges = Vec::from_iter((len > 0).then_some((GuestAddress(0), len)));
        let buffer = GuestBuffer::new(Arc::clone(&self.memory), ranges);
        let buffer = buffer.map_err(io::Error::other).map_err(self.failed())?;
        let submitted = self
            .queue
            .submit(0, op, buffer)
            .and_then(|()| self.queue.commit());
        submitted.map_err(self.failed())?;
        loop {
            if let Some(completion) = self.queue.reap() {
                let whole = completion.result.and_then(|moved| match moved as usize == len {
                    true => Ok(()),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                });
                return whole.map_err(self.failed());
            }
            wait(self.queue.completion()).map_err(self.failed())?;
        }
    }
}

/// Waits until something has ended; what ended before is told at once.
fn wait(completion: &EventFd) -> io::Result<()> {
    // SAFETY: the descriptor is open while `completion` is borrowed.
    let borrowed = unsafe { BorrowedFd::borrow_raw(completion.as_raw_fd()) };
    let mut event = [PollFd::new(borrowed, PollFlags::POLLIN)];
    match poll(&mut event, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    completion.read().map(drop).or_else(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskOptions, open};

    #[test]
    fn what_changes_while_a_disk_is_copied_is_told_in_pieces() {
        let changes = Changes::default();
        changes.mark(0, 100);
        assert!(changes.take(10 << 20).is_empty());
        let len = (10 << 20) + 512;
        changes.begin(len);
        for (offset, bytes) in [(0, 1), (PART - 1, 2), (5 * PART, PIECE + PART), (len - 1, 1)] {
            changes.mark(offset, bytes);
        }
        assert_eq!(changes.bytes(), 20 * PART);
        assert_eq!(
            changes.take(len),
            [
                (0, 2 * PART),
                (5 * PART, PIECE),
                (5 * PART + PIECE, PART),
                (10 << 20, 512)
            ]
        );
        assert!(changes.take(len).is_empty());
        changes.end();
        changes.mark(0, 1);
        assert_eq!(changes.bytes(), 0);
    }

    #[test]
    fn a_copy_has_what_was_written_and_what_was_changed_since() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let file = |len| {
            let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
            file.as_file().set_len(len).unwrap();
            file
        };
        let (from, to) = (file(4 << 20), file(4 << 20));
        from.as_file().write_all_at(&[7; 4096], 1 << 20).unwrap();
        let (disk, changes) = Mirror::over(open(DiskOptions::raw(from.as_path())).unwrap());
        let target = open(DiskOptions::raw(to.as_path())).unwrap();
        changes.begin(disk.len());
        let (mut source, mut target) = (Copier::new(&*disk).unwrap(), Copier::new(&*target).unwrap());
        // The guest, while it is copied.
        source.write(2 << 20, 8192, Some(&[9; 8192])).unwrap();
        source.write(1 << 20, 512, None).unwrap();
        let mut bytes = vec![0; PIECE as usize];
        source.read(1 << 20, &mut bytes).unwrap();
        target.write(1 << 20, PIECE, Some(&bytes)).unwrap();
        for (offset, len) in changes.take(disk.len()) {
            let part = &mut bytes[..len as usize];
            source.read(offset, part).unwrap();
            target.write(offset, len, Some(part)).unwrap();
        }
        target.write(3 << 20, PIECE, None).unwrap();
        target.flush().unwrap();
        assert_eq!(
            std::fs::read(from.as_path()).unwrap(),
            std::fs::read(to.as_path()).unwrap()
        );
        assert!(to.as_file().metadata().unwrap().blocks() * 512 < 3 << 20);
        assert!(target.write((4 << 20) - 512, 1024, None).is_err());
        assert!(source.read(u64::MAX, &mut bytes).is_err());
    }
}
