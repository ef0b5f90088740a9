//! What the monitor takes of the host beside the guest's memory, while the guest does nothing.

use std::thread::sleep;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::blk;
use super::{Bench, Measure};
use crate::error::Result;
use crate::peer::{Disk, Found};
use crate::process::Running;
use crate::record::{Reading, Unit, reading};
use crate::usage;

/// How long the guest has been idle when it is looked at; it is idle for longer.
const SETTLED: Duration = Duration::from_millis(1500);

pub(super) struct Memory {
    disk: NamedTempFile,
}

impl Memory {
    pub fn prepare(bench: &Bench) -> Result<Memory> {
        let disk = blk::filled(&bench.memory_dir)?;
        Ok(Memory { disk })
    }
}

impl Measure for Memory {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let (mut machine, _directory) = bench.machine(&format!("idle:4,{},idle:4", bench.blk_task()))?;
        machine.disks = vec![Disk {
            path: self.disk.path().to_owned(),
            qcow2: false,
            direct: false,
        }];
        let mut run = Running::start(found, &machine, bench.limit)?;
        run.said("init")?;
        sleep(SETTLED);
        let mut readings = look(run.pid(), bench, "idle")?;
        while run.said("task-done")?.1.rest() != "blk" {}
        sleep(SETTLED);
        readings.extend(look(run.pid(), bench, "after I/O")?);
        Ok(readings)
    }
}

fn look(pid: u32, bench: &Bench, when: &str) -> Result<Vec<Reading>> {
    let memory = usage::memory(pid, bench.memory_bytes())?;
    let (threads, files) = usage::threads_and_files(pid)?;
    let name = |what: &str| format!("{when}: {what}");
    Ok(vec![
        reading(name("private dirty"), Unit::Bytes, memory.private_dirty),
        reading(name("proportional (Pss)"), Unit::Bytes, memory.proportional),
        reading(name("resident (Rss)"), Unit::Bytes, memory.resident),
        reading(name("threads"), Unit::Count, threads),
        reading(name("open files"), Unit::Count, files),
    ])
}
