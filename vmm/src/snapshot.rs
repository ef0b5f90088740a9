//! Snapshots: a machine in a directory, to go on from there, once or many times.
//!
//! ```text
//!   state     magic, checksum, length, then a CBOR map: the machine's state, and which pages `memory` has
//!   memory    guest memory, a range after the other; holes are zero. With a parent: only the pages it names
//! ```
//! The guest runs while its memory is written and stands still only for what it wrote meanwhile. Memory is
//! mapped privately from the file on restore: the guest runs before it is read, and the file must stay as it
//! is while any machine runs from it. Disks are not part of a snapshot.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nacelle_devices::memory::Memory;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::config::{MemoryConfig, PageSize};
use crate::memory::dirty::{DirtyLog, PAGE, Pages, Run};
use crate::memory::{self, ranges};
use crate::migrate::pages::is_zero;
use crate::migrate::{Cancel, MigrationPort, Owner, wire};
use crate::{Error, Result, VmState};

const STATE: &str = "state";
const MEMORY: &str = "memory";
const MAGIC: [u8; 8] = *b"NACELLE\x01";
/// The largest state that is read.
const MOST: u64 = 64 << 20;
/// Most snapshots on top of each other.
const MOST_PARENTS: usize = 64;
/// Pages that are copied at a time.
const STEP: u64 = 256;
/// The guest is stopped when so little is left, or after so many rounds.
const LITTLE: u64 = 16 << 20;
const ROUNDS: u32 = 6;

/// What identifies a snapshot, so that one on top of it knows it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id(u64);

/// All of a snapshot but its memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Header {
    id: Id,
    /// The version of the program that made it, for people.
    build: String,
    /// Bytes of guest memory.
    memory: u64,
    state: VmState,
    /// What the pages are on top of.
    parent: Option<Parent>,
    /// The pages, where it has a parent: address and number.
    pages: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Parent {
    id: Id,
    directory: PathBuf,
}

/// Keeps account of what a guest writes after a snapshot, so that the next one has to hold nothing else.
pub struct Tracking {
    id: Id,
    directory: PathBuf,
    log: DirtyLog,
}

/// What is wanted of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Hold only what was written since the last one, which tracked it.
    pub incremental: bool,
    /// Keep account of what is written from now on.
    pub track: bool,
    /// The guest stays paused.
    pub pause: bool,
}

/// How a snapshot went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How long it took.
    pub total: Duration,
    /// How long the guest stood still.
    pub downtime: Duration,
    /// Bytes of guest memory that were written.
    pub written: u64,
}

/// Writes a snapshot of a running machine to `directory`, which must not be there or be empty. What `tracking`
/// knows is lost when this fails.
///
/// # Errors
/// When the directory cannot be written or the machine not be stopped; it goes on then, and what was written
/// is no snapshot.
pub fn save(
    port: &MigrationPort,
    owner: &mut dyn Owner,
    directory: &Path,
    options: Options,
    tracking: Option<Tracking>,
    cancel: &Cancel,
) -> Result<(Report, Option<Tracking>)> {
    let begun = Instant::now();
    let mut paused = None;
    let saved = write(port, owner, directory, options, tracking, cancel, &mut paused);
    if let Some(paused) = paused
        && (saved.is_err() || !options.pause)
    {
        owner.go_on()?;
        let downtime = Instant::now() - paused;
        return saved.map(|(written, tracking)| (report(begun, downtime, written), tracking));
    }
    let downtime = paused.map_or(Duration::ZERO, |paused: Instant| paused.elapsed());
    saved.map(|(written, tracking)| (report(begun, downtime, written), tracking))
}

fn report(begun: Instant, downtime: Duration, written: u64) -> Report {
    Report {
        total: begun.elapsed(),
        downtime,
        written,
    }
}

fn write(
    port: &MigrationPort,
    owner: &mut dyn Owner,
    directory: &Path,
    options: Options,
    tracking: Option<Tracking>,
    cancel: &Cancel,
    paused: &mut Option<Instant>,
) -> Result<(u64, Option<Tracking>)> {
    let memory = port.memory.memory().into_inner();
    let directory = std::path::absolute(directory).map_err(Error::io("find the snapshot's directory"))?;
    let (log, parent, mut next) = match (options.incremental, tracking) {
        (false, tracking) => {
            // Its end would end the log that begins.
            drop(tracking);
            let log = DirtyLog::begin(port)?;
            (log, None, Pages::all(&memory))
        }
        (true, Some(tracking)) => {
            let next = tracking.log.take()?;
            let (id, directory) = (tracking.id, tracking.directory);
            (tracking.log, Some(Parent { id, directory }), next)
        }
        (true, None) => {
            return Err(Error::Cannot(
                "there is no snapshot of this machine that kept account of what was written since".into(),
            ));
        }
    };
    let file = create(&directory)?;
    file.set_len(memory::size(&memory))
        .map_err(unwritten(&directory))?;
    let mut all = next.clone();
    let mut written = 0;
    let mut fresh = true;
    let mut copy = |pages: &Pages| -> Result<()> {
        for run in pages.runs(STEP) {
            cancel.check()?;
            written += put(&memory, run, &file, fresh).map_err(unwritten(&directory))?;
        }
        fresh = false;
        Ok(())
    };
    for _ in 0..ROUNDS {
        copy(&next)?;
        next = log.take()?;
        all.add(&next);
        if next.bytes() <= LITTLE {
            break;
        }
    }
    // Before the guest stands still: most of it is on its way then.
    file.sync_data().map_err(unwritten(&directory))?;
    *paused = Some(Instant::now());
    let state = owner.pause()?;
    // Saving may have written, too.
    next.add(&log.take()?);
    all.add(&next);
    copy(&next)?;
    let id = Id(random());
    let header = Header {
        id,
        build: env!("CARGO_PKG_VERSION").into(),
        memory: memory::size(&memory),
        state,
        pages: match parent {
            Some(_) => all
                .runs(u64::MAX)
                .iter()
                .map(|run| (run.address, run.pages))
                .collect(),
            None => Vec::new(),
        },
        parent,
    };
    file.sync_data().map_err(unwritten(&directory))?;
    write_state(&directory, &header)?;
    let tracking = options.track.then_some(Tracking { id, directory, log });
    Ok((written, tracking))
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

fn unwritten(directory: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let directory = directory.to_owned();
    move |source| Error::Snapshot {
        what: "write",
        directory,
        source,
    }
}

fn unread(directory: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let directory = directory.to_owned();
    move |source| Error::Snapshot {
        what: "read",
        directory,
        source,
    }
}

/// The file for memory, in a directory that has nothing else.
fn create(directory: &Path) -> Result<File> {
    fs::create_dir_all(directory).map_err(unwritten(directory))?;
    let mut options = OpenOptions::new();
    // What a guest has in memory is for nobody else to read.
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(directory.join(MEMORY)).map_err(unwritten(directory))
}

/// Copies a run to its place in the file; zero pages stay holes, which a fresh file has everywhere.
fn put(memory: &Memory, run: Run, file: &File, fresh: bool) -> io::Result<u64> {
    let mut plain = vec![0; run.len() as usize];
    memory
        .read_slice(&mut plain, GuestAddress(run.address))
        .map_err(io::Error::other)?;
    let size = memory::size(memory);
    let mut offset = offset_of(size, run.address).ok_or(io::ErrorKind::InvalidInput)?;
    let mut written = 0;
    let (pages, _) = plain.as_chunks::<{ PAGE as usize }>();
    for same in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let bytes = same.as_flattened();
        if same.first().is_some_and(is_zero) {
            if !fresh {
                clear(file, offset, bytes)?;
            }
        } else {
            file.write_all_at(bytes, offset)?;
            written += bytes.len() as u64;
        }
        offset += bytes.len() as u64;
    }
    Ok(written)
}

/// Writes `zeroes` only where something else is.
fn clear(file: &File, offset: u64, zeroes: &[u8]) -> io::Result<()> {
    let mut there = vec![0; zeroes.len()];
    file.read_exact_at(&mut there, offset)?;
    match there == zeroes {
        true => Ok(()),
        false => file.write_all_at(zeroes, offset),
    }
}

/// Where guest memory at `address` is in the file.
fn offset_of(size: u64, address: u64) -> Option<u64> {
    let mut before = 0;
    for (base, len) in ranges(size) {
        if let Some(offset) = address.checked_sub(base).filter(|offset| *offset < len) {
            return Some(before + offset);
        }
        before += len;
    }
    None
}

/// Last, and as a whole: a directory without it is no snapshot.
fn write_state(directory: &Path, header: &Header) -> Result<()> {
    let body = wire::encode(header)?;
    let name = directory.join(format!(".{STATE}"));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&name)?;
        file.write_all(&MAGIC)?;
        file.write_all(&crc32fast::hash(&body).to_le_bytes())?;
        file.write_all(&(body.len() as u64).to_le_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&name, directory.join(STATE))?;
        File::open(directory)?.sync_all()
    };
    write().map_err(unwritten(directory))
}

fn read_state(directory: &Path) -> Result<Header> {
    let read = || {
        let mut file = File::open(directory.join(STATE))?;
        let mut start = [0; 20];
        file.read_exact(&mut start)?;
        let mut body = Vec::new();
        file.take(MOST + 1).read_to_end(&mut body)?;
        Ok((start, body))
    };
    let (start, body) = read().map_err(unread(directory))?;
    let odd = |reason: &str| Error::Restore(format!("{}: {reason}", directory.join(STATE).display()));
    let Some(rest) = start.strip_prefix(&MAGIC) else {
        return Err(odd("it is no snapshot of this version's"));
    };
    let whole = [
        &crc32fast::hash(&body).to_le_bytes()[..],
        &(body.len() as u64).to_le_bytes(),
    ]
    .concat();
    if rest != whole || body.len() as u64 > MOST {
        return Err(odd("it is damaged"));
    }
    wire::decode(&body).map_err(|error| odd(&error.to_string()))
}

/// A snapshot, opened.
pub struct Snapshot {
    header: Header,
    /// Its memory and that of what it is on top of, the lowest first, with the pages of each.
    layers: Vec<(PathBuf, Vec<(u64, u64)>)>,
}

impl Snapshot {
    /// Opens the snapshot in `directory`.
    ///
    /// # Errors
    /// When there is none, or it is damaged, or one that it is on top of is not there any more.
    pub fn open(directory: &Path) -> Result<Snapshot> {
        let header = read_state(directory)?;
        let mut layers = vec![(directory.to_owned(), header.pages.clone())];
        let mut below = header.parent.clone();
        while let Some(parent) = below {
            if layers.len() > MOST_PARENTS {
                return Err(Error::Restore(format!(
                    "more than {MOST_PARENTS} snapshots on top of each other"
                )));
            }
            let next = read_state(&parent.directory)?;
            if next.id != parent.id || next.memory != header.memory {
                let place = parent.directory.display();
                return Err(Error::Restore(format!(
                    "{place} is another snapshot than this one is on top of"
                )));
            }
            layers.push((parent.directory, next.pages));
            below = next.parent;
        }
        layers.reverse();
        Ok(Snapshot { header, layers })
    }

    /// All of the machine but its memory.
    pub fn state(&self) -> VmState {
        self.header.state.clone()
    }

    /// Its memory for a machine of `config`: mapped, where the configuration allows that.
    ///
    /// # Errors
    /// When it is another machine's, or cannot be had.
    pub fn memory(&self, config: &MemoryConfig) -> Result<Memory> {
        if self.header.memory != config.size {
            let (there, here) = (self.header.memory, config.size);
            return Err(Error::Restore(format!(
                "{there} bytes of memory instead of {here}"
            )));
        }
        let mut layers = self.layers.iter();
        let Some((lowest, _)) = layers.next() else {
            return Err(Error::Restore("a snapshot without memory".into()));
        };
        let file = open_memory(lowest, config.size)?;
        let memory = if config.shared || config.pages != PageSize::Ordinary || config.prefault {
            let memory = memory::create(config)?;
            let all = Pages::all(&memory).runs(STEP);
            all.iter()
                .try_for_each(|run| take(&memory, *run, &file))
                .map_err(unread(lowest))?;
            memory
        } else {
            memory::from_file(config, file)?
        };
        for (directory, pages) in layers {
            let file = open_memory(directory, config.size)?;
            for &(address, pages) in pages {
                let end = pages.checked_mul(PAGE).and_then(|len| address.checked_add(len));
                let end = end.ok_or_else(|| Error::Restore("pages outside memory".into()))?;
                for address in (address..end).step_by((STEP * PAGE) as usize) {
                    let run = Run {
                        address,
                        pages: STEP.min((end - address) / PAGE),
                    };
                    take(&memory, run, &file).map_err(unread(directory))?;
                }
            }
        }
        Ok(memory)
    }
}

fn open_memory(directory: &Path, size: u64) -> Result<File> {
    let file = File::open(directory.join(MEMORY)).map_err(unread(directory))?;
    let len = file.metadata().map_err(unread(directory))?.len();
    match len == size {
        true => Ok(file),
        false => Err(Error::Restore(format!(
            "{} is cut off",
            directory.join(MEMORY).display()
        ))),
    }
}

/// Copies a run from its place in the file.
fn take(memory: &Memory, run: Run, file: &File) -> io::Result<()> {
    let mut plain = vec![0; run.len() as usize];
    let offset = offset_of(memory::size(memory), run.address).ok_or(io::ErrorKind::InvalidData)?;
    file.read_exact_at(&mut plain, offset)?;
    memory
        .write_slice(&plain, GuestAddress(run.address))
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_above_the_devices_follows_that_below_them_in_the_file() {
        const GIB: u64 = 1 << 30;
        assert_eq!(offset_of(8 * GIB, GIB), Some(GIB));
        assert_eq!(offset_of(8 * GIB, 3 * GIB), None);
        assert_eq!(offset_of(8 * GIB, 4 * GIB), Some(3 * GIB));
        assert_eq!(offset_of(8 * GIB, 9 * GIB), None);
        assert_eq!(offset_of(GIB, GIB), None);
    }

    #[test]
    fn one_wrong_byte_of_the_state_is_noticed() {
        let home = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let header = Header {
            memory: 1 << 20,
            ..Header::default()
        };
        write_state(home.as_path(), &header).unwrap();
        assert_eq!(read_state(home.as_path()).unwrap().memory, 1 << 20);
        let path = home.as_path().join(STATE);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(read_state(home.as_path()).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(read_state(home.as_path()).is_err(), "cut at {at}");
        }
    }
}
