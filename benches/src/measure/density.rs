//! Guests one after the other, all left running, until there are enough or the host has no room for one more.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Bench, Measure};
use crate::error::{Error, Result};
use crate::peer::Found;
use crate::process::Running;
use crate::record::{Reading, Unit, reading};
use crate::usage;

/// Left to the host, so that it does not start to kill.
const RESERVE: f64 = (1u64 << 30) as f64;

pub(super) struct Density;

impl Measure for Density {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let free = usage::available()?;
        let begun = Instant::now();
        let mut guests: Vec<(Running, tempfile::TempDir)> = Vec::new();
        let mut readings = Vec::new();
        while guests.len() < bench.count as usize && begun.elapsed() < bench.limit {
            if usage::available()? < RESERVE + bench.memory_bytes() as f64 {
                break;
            }
            let (machine, directory) = bench.machine("")?;
            let mut run = Running::start(found, &machine, bench.limit)?;
            let init = run.init()?;
            let took = init.duration_since(run.started()).as_nanos() as f64;
            guests.push((run, directory));
            if guests.len().is_power_of_two() {
                readings.push(reading(
                    format!("start → init of guest {}", guests.len()),
                    Unit::Nanoseconds,
                    took,
                ));
            }
        }
        let count = guests.len() as f64;
        if guests.is_empty() {
            return Err(Error::Other(format!(
                "there is no room for a guest: the host has {} available, and keeps 1 GiB",
                Unit::Bytes.show(free)
            )));
        }
        sleep(Duration::from_secs(1));
        let taken = (free - usage::available()?) / count;
        let mut beside = 0.0;
        for (run, _) in &guests {
            beside += usage::memory(run.pid(), bench.memory_bytes())?.proportional;
        }
        readings.extend([
            reading("guests running", Unit::Count, count),
            reading("taken of the host by each", Unit::Bytes, taken),
            reading("… of it the monitor's (Pss)", Unit::Bytes, beside / count),
        ]);
        Ok(readings)
    }
}
