//! From the start of the program to init. The guest stamps its kernel's first instruction and its init's; where its
//! kernel's clock began is known by what that says in init.

use std::time::Instant;

use super::{Bench, Measure};
use crate::error::Result;
use crate::peer::Found;
use crate::process::Running;
use crate::record::{Reading, Unit, reading};
use crate::usage;

pub(super) struct Boot;

impl Measure for Boot {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let (machine, _directory) = bench.machine("")?;
        let mut run = Running::start(found, &machine, bench.limit)?;
        let kernel = run.kernel()?;
        let init = run.init()?;
        let cpu = usage::cpu(run.pid())?;
        let (_, said) = run.said("init")?;
        let uptime = said.number("uptime")?;
        let since = |from: Instant, to: Instant| to.duration_since(from).as_nanos() as f64;
        let total = since(run.started(), init);
        let entered = since(run.started(), kernel);
        let span = |name, value| reading(name, Unit::Nanoseconds, value);
        Ok(vec![
            span("start → kernel's first instruction", entered),
            span("kernel's first instruction → its clock", total - uptime - entered),
            span("kernel's clock → init", uptime),
            span("start → init", total),
            span("processor time until init", cpu.all),
            span("… outside the guest's processor", cpu.outside),
        ])
    }
}
