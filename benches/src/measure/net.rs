//! The network between host and guest, over a tap, as the host's programs see it.

use std::time::Duration;

use super::{Bench, Measure};
use crate::error::{Error, Result};
use crate::network::{Network, TAP};
use crate::peer::Found;
use crate::process::Running;
use crate::record::{Reading, Unit, reading};
use crate::usage;

/// Bytes of a stream for each operation that was asked for.
const STREAM: u64 = 32 << 10;

pub(super) struct Net {
    network: Network,
}

impl Net {
    pub fn prepare() -> Result<Net> {
        let network = Network::make()?;
        Ok(Net { network })
    }
}

impl Measure for Net {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let (mut machine, _directory) = bench.machine("net")?;
        machine.tap = Some(TAP.into());
        let mut run = Running::start(found, &machine, bench.limit)?;
        run.said("listening")?;
        let (count, budget) = (bench.operations as usize, bench.budget());
        let echo = self.network.echo()?;
        // Addresses are resolved and caches warm.
        echo.round_trips(count.min(100), budget)?;

        let times = echo.round_trips(count, budget)?;
        let at = |thousandths: usize| {
            let place = (times.len() * thousandths / 1000).min(times.len().saturating_sub(1));
            times
                .get(place)
                .copied()
                .ok_or_else(|| Error::Other("no round trips were asked for".into()))
        };
        let mut readings = vec![
            reading("UDP round trip: p50", Unit::Nanoseconds, at(500)?),
            reading("UDP round trip: p99", Unit::Nanoseconds, at(990)?),
            reading(
                "UDP round trip: operations done",
                Unit::Sample,
                times.len() as f64,
            ),
        ];
        let before = usage::cpu(run.pid())?;
        let (sent, flood) = echo.flood(2 * count, budget)?;
        let spent = usage::cpu(run.pid())?;
        let packets = sent as f64;
        readings.push(reading(
            "UDP 1400 B to the guest, window 32",
            Unit::PerSecond,
            packets / flood.as_secs_f64(),
        ));
        readings.push(reading(
            "… monitor's CPU per 100 000",
            Unit::Nanoseconds,
            (spent.outside - before.outside) / packets * 100_000.0,
        ));
        readings.push(reading("… datagrams sent", Unit::Sample, packets));
        echo.end()?;

        let bytes = u64::from(bench.operations) * STREAM;
        let mut stream = |name: &str, (bytes, time): (u64, Duration)| {
            let rate = bytes as f64 / time.as_secs_f64();
            readings.push(reading(name, Unit::BytesPerSecond, rate));
            let pieces = bytes as f64 / STREAM as f64;
            readings.push(reading(
                format!("{name}: pieces of 32 KiB"),
                Unit::Sample,
                pieces.round(),
            ));
        };
        let sent = self.network.send_stream(bytes, budget)?;
        let (_, said) = run.said("swallowed")?;
        if said.number("bytes")? != sent.0 as f64 {
            return Err(Error::Misheard(format!(
                "of {} bytes sent to it, it had {}",
                sent.0,
                said.rest()
            )));
        }
        stream("TCP stream to the guest", sent);
        let received = self.network.receive_stream(bytes, budget)?;
        stream("TCP stream from the guest", received);
        run.said("task-done")?;
        Ok(readings)
    }
}
