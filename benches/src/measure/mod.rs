//! What is measured. Each measure is one file: which machine, what the guest does, what is read of it.

mod blk;
mod boot;
mod density;
mod exits;
mod memory;
mod migrate;
mod net;
mod restore;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::peer::{Found, Machine, Peer};
use crate::record::Reading;

/// Names of the measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// From the start of the program to the guest's init, in spans
    Boot,
    /// What the monitor takes beside the guest's memory, idle, before and after I/O
    Memory,
    /// Disks: latency, operations a second, the monitor's processor time
    Blk,
    /// The network between host and guest: round trip, streams, packets a second
    Net,
    /// What an exit to kernel and monitor costs, and how many there were
    Exits,
    /// How many guests, how fast, and what one more takes
    Density,
    /// A guest that moves to another process over a link, idle and writing
    Migrate,
    /// A guest of 1 GiB that goes on from its snapshot
    Restore,
}

impl Kind {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Boot => "boot",
            Kind::Memory => "memory",
            Kind::Blk => "blk",
            Kind::Net => "net",
            Kind::Exits => "exits",
            Kind::Density => "density",
            Kind::Migrate => "migrate",
            Kind::Restore => "restore",
        }
    }

    /// Prepares what all runs share.
    ///
    /// # Errors
    /// When the host lacks something.
    pub fn prepare(self, bench: &Bench, notes: &mut Vec<String>) -> Result<Box<dyn Measure>> {
        Ok(match self {
            Kind::Boot => Box::new(boot::Boot),
            Kind::Memory => Box::new(memory::Memory::prepare(bench)?),
            Kind::Blk => Box::new(blk::Blk::prepare(bench, notes)?),
            Kind::Net => Box::new(net::Net::prepare()?),
            Kind::Exits => Box::new(exits::Exits::prepare(notes)),
            Kind::Density => Box::new(density::Density),
            Kind::Migrate => Box::new(migrate::Migrate::prepare(bench)?),
            Kind::Restore => Box::new(restore::Restore::prepare()),
        })
    }

    /// Why it is not done with this monitor at all.
    pub fn refuses(self, peer: &Peer) -> Option<&'static str> {
        match self {
            Kind::Migrate if peer.moves.is_none() => {
                Some("it cannot move a running machine to another process")
            }
            Kind::Restore if peer.saves.is_none() => Some("it has no snapshots"),
            _ => None,
        }
    }

    /// How often it is done at least: one density fills the machine, so more say little.
    pub fn runs(self, wanted: u32) -> u32 {
        if self == Kind::Density { 1 } else { wanted.max(1) }
    }

    /// Runs that are thrown away first, of every monitor.
    pub fn warm_up(self, wanted: u32) -> u32 {
        if self == Kind::Density { 0 } else { wanted }
    }
}

/// Takes one measurement on one monitor.
pub trait Measure {
    /// Does so.
    ///
    /// # Errors
    /// When monitor or guest fail, or time is up.
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>>;
}

/// Which files disks are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiskKind {
    /// A raw file in memory
    Tmpfs,
    /// A raw file on disk, past the page cache
    Disk,
    /// A qcow2 file in memory
    Qcow2,
}

/// What all measures go by.
#[derive(Debug)]
pub struct Bench {
    /// The guest.
    pub guest: Guest,
    /// Its memory in MiB.
    pub memory: u32,
    /// Operations of a phase.
    pub operations: u32,
    /// Seconds after which a phase ends with fewer.
    pub phase_limit: u32,
    /// Mbit/s of the link of `migrate`.
    pub link: u32,
    /// Percent of that which its guest writes, a move each.
    pub loads: Vec<u32>,
    /// Most guests of `density`.
    pub count: u32,
    /// Disks of `blk` that were asked for; none: all that can be.
    pub disks: Vec<DiskKind>,
    /// This is the lab, which has no disk.
    pub in_lab: bool,
    /// A directory on a disk.
    pub disk_dir: PathBuf,
    /// A directory in memory.
    pub memory_dir: PathBuf,
    /// How long one run may take.
    pub limit: Duration,
    /// When a measure begins no further run.
    pub measure_limit: Duration,
}

impl Bench {
    /// A machine whose guest does `tasks`, and the directory of its run, which goes when it is dropped.
    ///
    /// # Errors
    /// When the directory cannot be made.
    fn machine(&self, tasks: &str) -> Result<(Machine, TempDir)> {
        let directory = tempfile::Builder::new()
            .prefix("nacelle-bench-")
            .tempdir_in(&self.memory_dir)
            .map_err(Error::io(format!(
                "make a directory in {}",
                self.memory_dir.display()
            )))?;
        let machine = Machine {
            kernel: self.guest.kernel.clone(),
            initrd: self.guest.initrd.clone(),
            cmdline: Guest::cmdline(tasks),
            memory: self.memory,
            disks: Vec::new(),
            tap: None,
            directory: directory.path().to_owned(),
            leaves: false,
            certificates: None,
        };
        Ok((machine, directory))
    }

    /// The same as a time.
    fn budget(&self) -> Duration {
        Duration::from_secs(self.phase_limit.into())
    }

    /// What the guest is told to measure its disks.
    fn blk_task(&self) -> String {
        format!("blk:{}:{}", self.operations, self.phase_limit)
    }

    /// The guest's memory in bytes.
    fn memory_bytes(&self) -> u64 {
        u64::from(self.memory) << 20
    }
}
