//! Directories that end with this process, also when it is interrupted.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::{Error, Result};

/// Held from a signal to the end that follows.
static ENDING: Mutex<()> = Mutex::new(());

/// Does not return once a signal has come: what monitors do when they are ended is no result.
pub fn settle() {
    drop(ENDING.lock());
}

/// A directory in memory and one on disk.
pub struct Scratch {
    memory: TempDir,
    disk: TempDir,
}

impl Scratch {
    /// Makes them, and has SIGINT, SIGTERM and SIGHUP remove them. To be called before there are other threads.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn make(memory: &Path, disk: &Path) -> Result<Scratch> {
        let make = |place: &Path| {
            tempfile::Builder::new()
                .prefix("nacelle-bench-")
                .tempdir_in(place)
                .map_err(Error::io(format!("make a directory in {}", place.display())))
        };
        let scratch = Scratch {
            memory: make(memory)?,
            disk: make(disk)?,
        };
        let directories = [scratch.memory.path().to_owned(), scratch.disk.path().to_owned()];
        // SAFETY: the set is there to be written and read. Threads made later have the signals blocked, too; programs
        // that are started have not: the standard library sees to that.
        let signals = unsafe {
            let mut signals = std::mem::zeroed();
            libc::sigemptyset(&mut signals);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&mut signals, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
            signals
        };
        std::thread::spawn(move || {
            let mut signal = 0;
            // SAFETY: both are there to be read and written.
            unsafe { libc::sigwait(&signals, &mut signal) };
            let _ending = ENDING.lock();
            end_children();
            for directory in directories {
                let _ = fs::remove_dir_all(directory);
            }
            std::process::exit(128 + signal);
        });
        Ok(scratch)
    }

    /// The one in memory.
    pub fn memory(&self) -> &Path {
        self.memory.path()
    }

    /// The one on disk.
    pub fn disk(&self) -> &Path {
        self.disk.path()
    }
}

/// Ends the monitors that run, or the lab, each with all that it started: it leads a process group. They may first
/// clean up themselves.
fn end_children() {
    let mut children = Vec::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(
            text.split_whitespace()
                .filter_map(|child| child.parse::<i32>().ok()),
        );
    }
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        for child in &children {
            // SAFETY: it takes numbers only; a child that leads no group is a helper that ends by itself, and there is
            // no such group.
            unsafe { libc::kill(-child, signal) };
        }
        if signal == libc::SIGTERM && !children.is_empty() {
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}
