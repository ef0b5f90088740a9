//! A guest of 1 GiB that goes on from its snapshot: from the start of the program until the guest, which stamps its serial
//! line all the time, is heard again.

use super::{Bench, Measure};
use crate::error::{Error, Result};
use crate::guest;
use crate::peer::Found;
use crate::process::Running;
use crate::record::{Reading, Unit, reading};

/// The guest's memory in MiB.
const MEMORY: u32 = 1024;
/// The snapshot, in the run's directory.
const SNAPSHOT: &str = "snapshot";

pub(super) struct Restore {
    /// Of the processor's counter, in a millisecond.
    ticks: u64,
}

impl Restore {
    pub fn prepare() -> Restore {
        Restore {
            ticks: guest::ticks(),
        }
    }
}

impl Measure for Restore {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let saves = found
            .peer
            .saves
            .ok_or_else(|| Error::Other("it has no snapshots".into()))?;
        let (mut machine, _directory) = bench.machine(&format!("tick:{}", self.ticks))?;
        machine.memory = MEMORY;
        machine.cmdline += guest::KVM_CLOCK;
        machine.leaves = true;
        let snapshot = machine.directory.join(SNAPSHOT);
        let mut first = Running::start(found, &machine, bench.limit)?;
        first.tick()?;
        (saves.save)(found, &machine, &snapshot, bench.limit)?;
        drop(first);

        let launch = (saves.restore)(&machine, &snapshot);
        let mut again = Running::launch(found, &launch, &machine, bench.limit)?;
        let on = again.tick()? - again.started();
        Ok(vec![reading(
            "start → the guest is heard",
            Unit::Nanoseconds,
            on.as_nanos() as f64,
        )])
    }
}
