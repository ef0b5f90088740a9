//! Exits: their cost as the guest sees it, their number as the kernel's debugfs says it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Bench, Measure};
use crate::error::Result;
use crate::peer::Found;
use crate::process::Running;
use crate::record::{Reading, Unit, reading};

/// A directory for each machine, named by its process.
const STATISTICS: &str = "/sys/kernel/debug/kvm";
/// Counters that are told, where there are any.
const COUNTERS: [&str; 6] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_exits",
    "irq_injections",
];

pub(super) struct Exits;

impl Exits {
    pub fn prepare(notes: &mut Vec<String>) -> Exits {
        if !Path::new(STATISTICS).is_dir() {
            notes.push(format!(
                "exits: their number is not told, as {STATISTICS} is not there (debugfs is not mounted, or KVM has none)"
            ));
        }
        Exits
    }
}

impl Measure for Exits {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let (machine, _directory) = bench.machine(&format!("exits:{}", bench.operations.div_ceil(20)))?;
        let mut run = Running::start(found, &machine, bench.limit)?;
        run.said("begin")?;
        let booted = statistics(run.pid());
        let mut readings = Vec::new();
        loop {
            let (_, said) = run.said_any(&["exit", "task-done"])?;
            if said.name() == "task-done" {
                break;
            }
            let name = match said.text("name")? {
                "cpuid" => "to the kernel and back (CPUID)",
                "port-write" => "to the monitor, which has nothing there (port write)",
                "port-read" => "to the monitor's serial line (port read)",
                other => other,
            };
            readings.push(reading(
                name,
                Unit::Nanoseconds,
                said.number("median_ps")? / 1000.0,
            ));
        }
        for counter in COUNTERS {
            if let Some(count) = booted.get(counter) {
                readings.push(reading(format!("{counter} until init"), Unit::Count, *count));
            }
        }
        Ok(readings)
    }
}

/// The counters of a process's machine; none where the kernel does not show them.
fn statistics(pid: u32) -> BTreeMap<String, f64> {
    let mine = format!("{pid}-");
    let machines = fs::read_dir(STATISTICS).into_iter().flatten().flatten();
    let machine = machines.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(&mine)
    });
    let mut counters = BTreeMap::new();
    for entry in machine
        .and_then(|path| fs::read_dir(path).ok())
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Some(value) = fs::read_to_string(entry.path())
            .ok()
            .and_then(|text| text.trim().parse().ok())
        {
            counters.insert(entry.file_name().to_string_lossy().into_owned(), value);
        }
    }
    counters
}
