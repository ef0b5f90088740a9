//! A guest that moves from process to process over a link: idle, and writing memory as fast as some part of that link.
//! One boot serves all: each process that it comes to is where it leaves from next.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Bench, Measure};
use crate::error::{Error, Result};
use crate::link::{Answer, Link, Pinger, TAPS};
use crate::peer::{Found, Moves};
use crate::process::Running;
use crate::record::{Reading, Unit, reading};
use crate::{guest, host};

/// Of the guest's memory, it writes to this part.
const PART: u32 = 4;
/// How long it is watched before and after; in the lab, where each second is a thousand million instructions.
const SETTLE: Duration = Duration::from_secs(2);
const SETTLE_IN_LAB: Duration = Duration::from_millis(500);
/// Where targets listen; the network is the run's own.
const PORT: u16 = 4000;

pub(super) struct Migrate {
    link: Link,
    certificates: TempDir,
    /// Of the processor's counter, in a millisecond.
    ticks: u64,
    settle: Duration,
}

impl Migrate {
    pub fn prepare(bench: &Bench) -> Result<Migrate> {
        Ok(Migrate {
            link: Link::make(bench.link)?,
            certificates: certificates(&bench.memory_dir)?,
            ticks: guest::ticks(),
            settle: if bench.in_lab { SETTLE_IN_LAB } else { SETTLE },
        })
    }

    /// Moves the guest once, to a process that listens at `port` and has the other tap.
    fn hop(
        &self,
        bench: &Bench,
        found: &Found,
        moves: &Moves,
        here: &mut Place,
        port: u16,
    ) -> Result<(Place, Move)> {
        let mut there = self.machine(bench, here.tap ^ 1)?;
        let launch = (moves.receive)(&there.machine, port);
        let mut target = Running::launch(found, &launch, &there.machine, bench.limit)?;
        let told = |error: Error, target: &Running| Error::Other(format!("{error}{}", target.last_words()));
        self.link
            .listens(port, bench.limit)
            .map_err(|error| told(error, &target))?;
        std::thread::sleep(self.settle);

        let carried = self.link.carried()?;
        let begun = Instant::now();
        let still =
            (moves.send)(found, &here.machine, port, bench.limit).map_err(|error| told(error, &target))?;
        let ended = Instant::now();
        let sent = self.link.carried()? - carried;
        let mut ticks = here.running()?.ticks();
        ticks.push(target.tick()?);
        std::thread::sleep(self.settle);
        ticks.extend(target.ticks());
        ticks.sort_unstable();
        there.run = Some(target);
        let moved = Move {
            begun,
            ended,
            settle: self.settle,
            still,
            sent,
            ticks,
        };
        Ok((there, moved))
    }

    fn machine(&self, bench: &Bench, tap: usize) -> Result<Place> {
        let (mut machine, directory) =
            bench.machine(&format!("move:{}:{}", bench.memory / PART, self.ticks))?;
        machine.cmdline += guest::KVM_CLOCK;
        machine.tap = TAPS.get(tap).map(|tap| (*tap).to_owned());
        machine.leaves = true;
        machine.certificates = Some(self.certificates.path().to_owned());
        Ok(Place {
            run: None,
            tap,
            machine,
            _directory: directory,
        })
    }
}

/// Where the guest runs.
struct Place {
    // Ended before its directory goes.
    run: Option<Running>,
    tap: usize,
    machine: crate::peer::Machine,
    _directory: TempDir,
}

impl Place {
    fn running(&mut self) -> Result<&mut Running> {
        self.run
            .as_mut()
            .ok_or_else(|| Error::Other("nothing runs here".into()))
    }
}

/// How a move went.
struct Move {
    begun: Instant,
    ended: Instant,
    settle: Duration,
    /// By the monitor's own account.
    still: Duration,
    sent: u64,
    /// When the guest was seen to run, from a while before it to a while after.
    ticks: Vec<Instant>,
}

impl Measure for Migrate {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let moves = found
            .peer
            .moves
            .ok_or_else(|| Error::Other("it cannot move a machine".into()))?;
        let mut here = self.machine(bench, 0)?;
        here.run = Some(Running::start(found, &here.machine, bench.limit)?);
        let (_, said) = here.running()?.said("moving")?;
        let used = bench.memory_bytes() as f64 - said.number("free")?;
        let least = used / self.link.rate as f64 * 1e9;
        let mut readings = vec![
            reading("memory in use", Unit::Bytes, used),
            reading("… ÷ link", Unit::Nanoseconds, least),
        ];
        let slow = !bench.in_lab && !host::has_hardware_kvm();
        // There, a datagram takes the guest some milliseconds.
        let pinger = Pinger::start(Duration::from_millis(if slow { 20 } else { 1 }))?;
        for (port, percent) in (PORT..).zip(&bench.loads) {
            let load = match percent {
                0 => "idle".to_owned(),
                percent => format!("asked to write {percent} % of the link"),
            };
            pinger.write(self.link.rate * u64::from(*percent) / 100);
            let moved = self.hop(bench, found, moves, &mut here, port);
            let (there, moved) = moved.map_err(|error| Error::Other(format!("{load}: {error}")))?;
            here = there;
            readings.extend(moved.readings(&load, *percent > 0, &pinger.questions(), &pinger.answers())?);
        }
        Ok(readings)
    }
}

impl Move {
    fn readings(
        &self,
        load: &str,
        writes: bool,
        questions: &[Instant],
        answers: &[Answer],
    ) -> Result<Vec<Reading>> {
        let before = (self.begun - self.settle, self.begun);
        let during = (self.begun, self.ended + self.settle / 2);
        let times: Vec<Instant> = answers.iter().map(|answer| answer.at).collect();
        let mut readings = Vec::new();
        let mut time = |name: &str, time: Duration| {
            readings.push(reading(
                format!("{load}: {name}"),
                Unit::Nanoseconds,
                time.as_nanos() as f64,
            ));
        };
        let gap = |times: &[Instant], window: (Instant, Instant), who: &str| {
            largest_gap(times, window).ok_or_else(|| {
                let (seen, of) = (times.iter().filter(|at| within(**at, window)).count(), times.len());
                let window = window.1 - window.0;
                Error::Other(format!(
                    "{load}: {who} saw too little of the guest: {seen} signs of it ({of} in all) within {window:?}"
                ))
            })
        };
        time("in all", self.ended - self.begun);
        time(
            "still, by the guest's stamps",
            gap(&self.ticks, during, "the serial line")?,
        );
        time(
            "… the stamps' longest gap before",
            gap(&self.ticks, before, "the serial line")?,
        );
        time("still, by a pinger", gap(&times, during, "the pinger")?);
        time(
            "… the pinger's longest gap before",
            gap(&times, before, "the pinger")?,
        );
        time(
            "… the pinger's longest gap between two questions",
            gap(questions, during, "the pinger itself")?,
        );
        time("still, as the monitor says", self.still);
        let own = answers
            .iter()
            .filter(|answer| within(answer.at, during))
            .map(|answer| answer.longest);
        time("longest step of the guest's clock", own.max().unwrap_or_default());
        readings.push(reading(format!("{load}: sent"), Unit::Bytes, self.sent as f64));
        if writes {
            for (name, window) in [
                ("wrote before", before),
                ("wrote meanwhile", (self.begun, self.ended)),
            ] {
                let rate = written(answers, window)
                    .ok_or_else(|| Error::Other(format!("{load}: the guest did not answer")))?;
                readings.push(reading(format!("{load}: {name}"), Unit::BytesPerSecond, rate));
            }
        }
        Ok(readings)
    }
}

fn within(at: Instant, (from, to): (Instant, Instant)) -> bool {
    from <= at && at <= to
}

/// The longest time between two of these that touches the window.
fn largest_gap(times: &[Instant], (from, to): (Instant, Instant)) -> Option<Duration> {
    let pairs = times.iter().zip(times.iter().skip(1));
    pairs
        .filter(|(first, second)| **second >= from && **first <= to)
        .map(|(first, second)| *second - *first)
        .max()
}

/// Bytes a second that the guest wrote between its first and its last answer in the window.
fn written(answers: &[Answer], window: (Instant, Instant)) -> Option<f64> {
    let mut seen = answers.iter().filter(|answer| within(answer.at, window));
    let first = seen.next()?;
    let last = seen.next_back()?;
    let time = (last.at - first.at).as_secs_f64();
    (time > 0.0).then(|| last.written.saturating_sub(first.written) as f64 / time)
}

/// An authority and a certificate for this host, as people make them.
fn certificates(place: &Path) -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("nacelle-bench-")
        .tempdir_in(place)
        .map_err(Error::io(format!("make a directory in {}", place.display())))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration-certificates.sh");
    let output = Command::new("sh")
        .arg(&script)
        .arg("127.0.0.1")
        .current_dir(directory.path())
        .output()
        .map_err(Error::io("run sh"))?;
    match output.status.success() {
        true => Ok(directory),
        false => Err(Error::Tool {
            command: format!("{} (package openssl)", script.display()),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_where_it_touches_the_window() {
        let zero = Instant::now();
        let at = |milliseconds| zero + Duration::from_millis(milliseconds);
        let times = [0, 100, 101, 120, 121, 200].map(at);
        for (window, expected) in [
            ((100, 121), Some(100)),
            ((101, 120), Some(19)),
            ((102, 103), Some(19)),
            ((121, 300), Some(79)),
            ((201, 300), None),
        ] {
            let gap = largest_gap(&times, (at(window.0), at(window.1)));
            assert_eq!(gap, expected.map(Duration::from_millis), "{window:?}");
        }
        assert_eq!(largest_gap(&times[..1], (at(0), at(9))), None);
    }

    #[test]
    fn a_rate_is_that_of_the_answers_in_the_window() {
        let zero = Instant::now();
        let answer = |milliseconds, written| Answer {
            at: zero + Duration::from_millis(milliseconds),
            written,
            longest: Duration::ZERO,
        };
        let answers = [
            answer(0, 0),
            answer(100, 1000),
            answer(300, 5000),
            answer(900, 5000),
        ];
        let window = |from, to| {
            (
                zero + Duration::from_millis(from),
                zero + Duration::from_millis(to),
            )
        };
        assert_eq!(written(&answers, window(50, 400)), Some(20_000.0));
        assert_eq!(written(&answers, window(50, 200)), None);
    }
}
