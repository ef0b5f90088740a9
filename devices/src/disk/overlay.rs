//! A copy-on-write layer: what the guest writes goes to a sparse file of its own, the base stays as it is.
//!
//! Own code rather than a qcow2 layer: no tables are walked and none cached, one bit says for each 4 KiB
//! where it is (32 KiB of memory for a disk of 1 GiB, touched as it is used), and what a guest writes is
//! hardly ever less than that, so that nothing need be copied.
//!
//! ```text
//!   file:  0        4 KiB       512 MiB       1 GiB
//!          │ header │ bitmap …  │             │ the disk, each byte at its offset
//! ```
//! A bit goes to the file only when its data are there and synced, on a flush; it is never taken back. So
//! after a crash the file holds all that was flushed. A temporary overlay has no name and cannot be found
//! after a crash: for it a flush has nothing to do.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::backend::{Backend, whole_sectors};
use super::raw::Raw;
use super::{DiskOp, Lock, Topology};
use crate::memory::GuestBuffer;
use crate::{Error, Result};

/// What one bit stands for.
const GRANULE: u64 = 4096;
const PAGE: u64 = 4096;
const BITMAP: u64 = PAGE;
const DATA: u64 = 1 << 30;
/// What the bitmap's room is enough for.
const MAX_SIZE: u64 = ((512 << 20) - BITMAP) * 8 * GRANULE;
/// First bytes of the header: name and version of the format.
const MAGIC: [u8; 8] = *b"nclovl\0\x01";

/// An open overlay over its base.
pub(super) struct Overlay {
    base: Arc<dyn Backend>,
    upper: Raw,
    /// Nobody can find the file again.
    temporary: bool,
    size: AtomicU64,
    map: RwLock<Map>,
    /// Held while a granule that is written in part is copied from the base: done twice, the second copy
    /// would undo a write between them.
    copying: Mutex<()>,
    /// Held while bits go to the file.
    flushing: Mutex<()>,
    /// It is another process's until it is locked: the bits are read anew then.
    later: AtomicBool,
}

impl Overlay {
    /// A layer in `file` over `base`; an empty file begins one, another must hold one of this base's length.
    pub(super) fn new(
        base: Arc<dyn Backend>,
        name: String,
        file: File,
        temporary: bool,
        direct: bool,
        lock: Lock,
        later: bool,
    ) -> Result<Self> {
        let failed = |what| Error::disk(&name, what);
        let refused = |reason: String| Error::DiskRefused {
            disk: name.clone(),
            reason,
        };
        let base_size = base.size();
        let upper = Raw::new(name.clone(), file, false, direct, lock, false)?;
        let (size, map) = if upper.size() == 0 {
            if base_size > MAX_SIZE {
                return Err(refused(format!("an overlay holds no disk of {base_size} bytes")));
            }
            let map = Map::new(base_size);
            upper.resize(Some(DATA + base_size.next_multiple_of(GRANULE)))?;
            write_header(&upper, base_size, base_size)
                .and_then(|()| upper.sync())
                .map_err(failed("begin overlay"))?;
            (base_size, map)
        } else {
            let (made_for, size) = read_header(&upper)
                .map_err(failed("read overlay"))?
                .ok_or_else(|| refused("not an overlay of ours".into()))?;
            if made_for != base_size || size < base_size || size > MAX_SIZE {
                return Err(refused(format!(
                    "an overlay of {made_for} bytes, the base has {base_size}"
                )));
            }
            (size, Map::read(&upper, size).map_err(failed("read overlay"))?)
        };
        Ok(Overlay {
            base,
            upper,
            temporary,
            size: AtomicU64::new(size),
            map: RwLock::new(map),
            copying: Mutex::new(()),
            flushing: Mutex::new(()),
            later: AtomicBool::new(later),
        })
    }

    fn map<T>(&self, look: impl FnOnce(&Map) -> T) -> T {
        look(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_map<T>(&self, change: impl FnOnce(&mut Map) -> T) -> T {
        change(&mut self.map.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self, offset: u64, buffer: &GuestBuffer) -> io::Result<u32> {
        let len = buffer.len() as u64;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (above, run) = self.map(|map| map.run(at, len - done));
            let (from, run) = match (above, self.base.size().checked_sub(at)) {
                (true, _) => (Some(&self.upper as &dyn Backend), run),
                (false, Some(left)) if left > 0 => (Some(&*self.base), run.min(left)),
                // Grown beyond its base.
                (false, _) => (None, run),
            };
            let part;
            let target = if run == len {
                buffer
            } else {
                part = buffer
                    .part(done as usize, run as usize)
                    .map_err(super::backend::gone)?;
                &part
            };
            let offset = if above { DATA + at } else { at };
            match from {
                Some(layer) => {
                    let moved = layer.execute(DiskOp::Read { offset }, target)?;
                    if u64::from(moved) != run {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                None => target.fill(0).map_err(super::backend::gone)?,
            }
            done += run;
        }
        Ok(len as u32)
    }

    /// Does `change` to `len` bytes from `offset` in the upper file, which then has those granules.
    fn change(&self, offset: u64, len: u64, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let end = offset + len;
        for edge in [offset, end] {
            if !edge.is_multiple_of(GRANULE) {
                self.bring_up(edge / GRANULE)?;
            }
        }
        change()?;
        // Only now: until its data are there, a granule is the base's.
        self.change_map(|map| map.set(offset / GRANULE, end.div_ceil(GRANULE)));
        Ok(())
    }

    /// Copies a granule that is still the base's.
    fn bring_up(&self, granule: u64) -> io::Result<()> {
        let _one = lock(&self.copying);
        if self.map(|map| map.has(granule)) {
            return Ok(());
        }
        let at = granule * GRANULE;
        let mut data = [0; GRANULE as usize];
        let there = self.base.size().saturating_sub(at).min(GRANULE) as usize;
        if let Some(data) = data.get_mut(..there).filter(|data| !data.is_empty()) {
            self.base.read_bytes(at, data)?;
        }
        self.upper.write_bytes(DATA + at, &data)?;
        self.change_map(|map| map.set(granule, granule + 1));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.temporary {
            return Ok(());
        }
        self.store_bits(|| self.upper.sync())
    }

    /// Puts the bits that are not in the file there; `settle` is done before, and after where there were any.
    fn store_bits(&self, settle: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let _one = lock(&self.flushing);
        // The bits as they are now stand for data that are written; they wait until those are settled.
        let pages = self.change_map(Map::take_dirty);
        let stored = settle().and_then(|()| {
            for (page, bytes) in &pages {
                self.upper.write_bytes(BITMAP + page * PAGE, bytes)?;
            }
            match pages.is_empty() {
                true => Ok(()),
                false => settle(),
            }
        });
        if stored.is_err() {
            self.change_map(|map| map.make_dirty(pages.iter().map(|(page, _)| *page)));
        }
        stored
    }

    fn flush_if(&self, durable: bool) -> io::Result<()> {
        if durable { self.flush() } else { Ok(()) }
    }
}

impl Backend for Overlay {
    fn name(&self) -> &str {
        self.base.name()
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn topology(&self) -> Topology {
        Topology {
            physical: GRANULE as u32,
            alignment: 0,
            minimum: 0,
            optimal: 0,
        }
    }

    fn execute(&self, op: DiskOp, buffer: &GuestBuffer) -> io::Result<u32> {
        match op {
            DiskOp::Read { offset } => self.read(offset, buffer),
            DiskOp::Write { offset, durable } => {
                let len = buffer.len() as u64;
                let write = DiskOp::Write {
                    offset: DATA + offset,
                    durable: false,
                };
                self.change(offset, len, || match self.upper.execute(write, buffer)? {
                    moved if u64::from(moved) == len => Ok(()),
                    _ => Err(io::ErrorKind::WriteZero.into()),
                })?;
                self.flush_if(durable)?;
                Ok(len as u32)
            }
            DiskOp::Flush => self.flush().map(|()| 0),
            // What is in the base stays visible, what was written is given back and reads as zeroes.
            DiskOp::Discard { offset, len } => {
                let discard = DiskOp::Discard {
                    offset: DATA + offset,
                    len,
                };
                self.upper.execute(discard, buffer)
            }
            DiskOp::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            } => {
                let zeroes = DiskOp::WriteZeroes {
                    offset: DATA + offset,
                    len,
                    unmap,
                    durable: false,
                };
                self.change(offset, len, || self.upper.execute(zeroes, buffer).map(drop))?;
                self.flush_if(durable)?;
                Ok(0)
            }
        }
    }

    fn read_bytes(&self, _offset: u64, _data: &mut [u8]) -> io::Result<()> {
        // Nothing is laid over an overlay.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn resize(&self, len: Option<u64>) -> Result<u64> {
        let now = self.size();
        let Some(len) = len.map(|len| whole_sectors(self.name(), len)) else {
            return Ok(now);
        };
        if len < now || len > MAX_SIZE {
            return Err(Error::DiskRefused {
                disk: self.name().into(),
                reason: format!("an overlay of {now} bytes cannot have {len}"),
            });
        }
        self.upper.resize(Some(DATA + len.next_multiple_of(GRANULE)))?;
        write_header(&self.upper, self.base.size(), len).map_err(Error::disk(self.upper.name(), "resize"))?;
        self.change_map(|map| map.grow(len));
        self.size.store(len, Ordering::Release);
        Ok(len)
    }

    fn lock(&self) -> Result<()> {
        self.base.lock()?;
        self.upper.lock()?;
        if self.later.swap(false, Ordering::AcqRel) {
            let map = Map::read(&self.upper, self.size())
                .map_err(Error::disk(self.upper.name(), "read overlay"))?;
            self.change_map(|old| *old = map);
        }
        Ok(())
    }

    fn unlock(&self) -> Result<()> {
        self.flush().map_err(Error::disk(self.upper.name(), "flush"))?;
        self.upper.unlock()?;
        self.base.unlock()
    }

    fn files(&self) -> Result<Vec<File>> {
        let mut files = self.base.files()?;
        files.extend(self.upper.files()?);
        Ok(files)
    }

    fn hand_over(&self) -> Result<()> {
        // Both processes see one page cache.
        self.store_bits(|| Ok(()))
            .map_err(Error::disk(self.upper.name(), "write the bits of"))?;
        self.upper.hand_over()?;
        self.base.hand_over()
    }
}

/// What it guards is in the file: there is nothing in memory that a panic could leave half done.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_header(upper: &Raw, base: u64, size: u64) -> io::Result<()> {
    let mut header = MAGIC.to_vec();
    header.extend(base.to_le_bytes());
    header.extend(size.to_le_bytes());
    header.resize(PAGE as usize, 0);
    upper.write_bytes(0, &header)
}

/// Size of the base and of the disk, or `None` where it is no header.
fn read_header(upper: &Raw) -> io::Result<Option<(u64, u64)>> {
    let mut header = [0; PAGE as usize];
    if upper.size() < PAGE {
        return Ok(None);
    }
    upper.read_bytes(0, &mut header)?;
    let number = |at| {
        let bytes = header.iter().skip(at).take(8).rev();
        bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    Ok(header.starts_with(&MAGIC).then(|| (number(8), number(16))))
}

/// Which granules are in the upper file. In words, little-endian in the file.
struct Map {
    words: Vec<u64>,
    /// Pages of the bitmap that the file does not have yet, one flag each.
    dirty: Vec<bool>,
}

const WORDS_PER_PAGE: usize = PAGE as usize / 8;

impl Map {
    fn new(size: u64) -> Map {
        let mut map = Map {
            words: Vec::new(),
            dirty: Vec::new(),
        };
        map.grow(size);
        map
    }

    fn grow(&mut self, size: u64) {
        let words = size.div_ceil(GRANULE).div_ceil(64) as usize;
        if self.words.is_empty() {
            // Zeroed by the kernel, page by page as they are used.
            self.words = vec![0; words];
        } else {
            self.words.resize(words, 0);
        }
        self.dirty.resize(words.div_ceil(WORDS_PER_PAGE), false);
    }

    fn read(upper: &Raw, size: u64) -> io::Result<Map> {
        let mut map = Map::new(size);
        for (page, words) in map.words.chunks_mut(WORDS_PER_PAGE).enumerate() {
            let at = BITMAP + page as u64 * PAGE;
            if at + PAGE > upper.size() {
                break;
            }
            let mut bytes = [0; PAGE as usize];
            upper.read_bytes(at, &mut bytes)?;
            for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                let value = bytes
                    .iter()
                    .rev()
                    .fold(0, |value, &byte| value << 8 | u64::from(byte));
                if value != 0 {
                    *word = value;
                }
            }
        }
        Ok(map)
    }

    fn has(&self, granule: u64) -> bool {
        let word = self.words.get((granule / 64) as usize).copied().unwrap_or(0);
        word >> (granule % 64) & 1 != 0
    }

    /// Whether the granule at `offset` is above, and how many of the next `len` bytes are where it is.
    fn run(&self, offset: u64, len: u64) -> (bool, u64) {
        let first = offset / GRANULE;
        let above = self.has(first);
        let end = (offset + len).div_ceil(GRANULE);
        let other = (first + 1..end).find(|&granule| self.has(granule) != above);
        (above, other.map_or(len, |granule| granule * GRANULE - offset))
    }

    /// Sets the bits from `first` up to before `end`.
    fn set(&mut self, first: u64, end: u64) {
        let mut granule = first;
        while granule < end {
            let index = (granule / 64) as usize;
            let from = granule % 64;
            let count = (64 - from).min(end - granule);
            let bits = (u64::MAX >> (64 - count)) << from;
            if let Some(word) = self.words.get_mut(index)
                && *word & bits != bits
            {
                *word |= bits;
                self.make_dirty([(index / WORDS_PER_PAGE) as u64]);
            }
            granule += count;
        }
    }

    fn make_dirty(&mut self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            if let Some(dirty) = self.dirty.get_mut(page as usize) {
                *dirty = true;
            }
        }
    }

    /// The pages that the file does not have yet, as bytes; they count as written from now on.
    fn take_dirty(&mut self) -> Vec<(u64, Vec<u8>)> {
        let mut pages = Vec::new();
        for (page, (dirty, words)) in self
            .dirty
            .iter_mut()
            .zip(self.words.chunks(WORDS_PER_PAGE))
            .enumerate()
        {
            if std::mem::take(dirty) {
                let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                bytes.resize(PAGE as usize, 0);
                pages.push((page as u64, bytes));
            }
        }
        pages
    }
}

#[cfg(test)]
mod tests;
