//! Locks that keep two virtual machines off one image.
//!
//! Open file description locks (fcntl(2), F_OFD_SETLK) over the whole file: they belong to the opened file,
//! not to the process, so two disks in one process exclude each other as well, and they end when the file is
//! closed, however the process ends. The kernel does not tell who holds one.
#![expect(unsafe_code, reason = "fcntl")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Lock;
use crate::{Error, Result};

/// An opened image, the lock on it, and whose both are.
pub(super) struct Held {
    /// What the image is called.
    pub name: String,
    /// The opened file, which owns the lock.
    pub file: File,
    sharing: Option<Sharing>,
    /// Another process has the same opened file, and its lock.
    given: AtomicBool,
}

impl Held {
    /// Takes over `file`, and its lock if that is to be had now; one that others may have, too, where it is `shared`.
    pub fn new(name: String, file: File, lock: Lock, shared: bool) -> Result<Held> {
        let sharing = Sharing::of(lock, shared);
        if let Some(sharing) = sharing.filter(|_| lock == Lock::Now) {
            take(&file, &name, sharing)?;
        }
        Ok(Held {
            name,
            file,
            sharing,
            given: AtomicBool::new(false),
        })
    }

    /// See [`super::Disk::lock`].
    pub fn lock(&self) -> Result<()> {
        self.given.store(false, Ordering::Release);
        self.sharing
            .map_or(Ok(()), |sharing| take(&self.file, &self.name, sharing))
    }

    /// Lets others have the lock; releasing none is no error.
    pub fn unlock(&self) -> Result<()> {
        match self.sharing {
            Some(_) => set(&self.file, libc::F_UNLCK).map_err(self.failed("unlock")),
            None => Ok(()),
        }
    }

    /// See [`super::Disk::files`].
    pub fn files(&self) -> Result<Vec<File>> {
        Ok(vec![self.duplicate()?])
    }

    /// The same opened file once more.
    pub fn duplicate(&self) -> Result<File> {
        self.file.try_clone().map_err(self.failed("duplicate"))
    }

    /// The process that has [`Held::files`] has the lock, too: it stays when this goes.
    pub fn give(&self) {
        self.given.store(true, Ordering::Release);
    }

    /// Whether that is so.
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// An [`Error::Disk`] of this image, for use with `map_err`.
    pub fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::disk(&self.name, what)
    }
}

impl Drop for Held {
    /// Releases the lock. Closing alone is not enough: a process that was forked at that moment has the same opened
    /// file, until it executes another program.
    fn drop(&mut self) {
        if self.sharing.is_some()
            && !self.is_given()
            && let Err(error) = set(&self.file, libc::F_UNLCK)
        {
            log::warn!("disk {}: its lock may outlive it: {error}", self.name);
        }
    }
}

/// How many may hold the lock at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// One: who writes.
    Exclusive,
    /// Any number: who reads, and who shares what is written.
    Shared,
}

impl Sharing {
    /// What a disk takes that is locked at all.
    fn of(lock: Lock, shared: bool) -> Option<Sharing> {
        match (lock, shared) {
            (Lock::Never, _) => None,
            (_, true) => Some(Sharing::Shared),
            (_, false) => Some(Sharing::Exclusive),
        }
    }
}

/// Takes the lock on `file`, called `name`, or fails at once.
pub(super) fn take(file: &File, name: &str, sharing: Sharing) -> Result<()> {
    let kind = match sharing {
        Sharing::Exclusive => libc::F_WRLCK,
        Sharing::Shared => libc::F_RDLCK,
    };
    match set(file, kind) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Err(Error::DiskLocked { disk: name.into() })
        }
        Err(source) => Err(Error::disk(name, "lock")(source)),
    }
}

fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one flock, which lives as long as the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
