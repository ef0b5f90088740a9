//! The source's side.

use std::io;
use std::time::{Duration, Instant};

use nacelle_devices::memory::Memory;
use vm_memory::GuestAddressSpace;

use super::connection::{Cancel, Connection, Stream};
use super::converge::{self, Decision, OnTimeout, Round, decide};
use super::disks::Sending;
use super::lazy::send_missing;
use super::message::{Hello, MOST_STREAMS};
use super::packing::Packing;
use super::pages::{self, Pace, Sender};
use super::serve::Following;
use super::wire::Kind;
use super::{MigrationPort, Options, Owner, Phase, Progress, Watch};
use crate::memory::dirty::{DirtyLog, Pages};
use crate::{Error, Result, VmState};

/// How a migration went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// From its begin to the guest's going on at the target.
    pub total: Duration,
    /// How long the guest stood still.
    pub downtime: Duration,
    /// Rounds, the last one among them.
    pub rounds: u32,
    /// Bytes that went over all streams.
    pub wire: u64,
    /// Bytes of guest memory that were sent and not zero.
    pub pages: u64,
    /// Percent of their time that the guest's processors were held still at last.
    pub throttle: u8,
}

/// What is left to send when the guest is stopped.
struct Left {
    log: Option<DirtyLog>,
    pages: Pages,
    /// It follows when the guest runs there.
    follows: bool,
}

/// What the source's parts share.
struct Source<'a> {
    port: MigrationPort,
    owner: &'a mut dyn Owner,
    options: &'a Options,
    cancel: &'a Cancel,
    watch: &'a mut dyn Watch,
    streams: Vec<Sender>,
    begun: Instant,
    /// When it takes too long.
    until: Option<Instant>,
    /// Bytes a second that the streams move, as measured so far.
    rate: Option<u64>,
    paused: Option<Instant>,
    report: Report,
    session: u64,
    /// Disks that go along.
    disks: Vec<Sending>,
    /// The one that the target asks for pages over.
    asked: Option<Sender>,
    /// What follows when the guest runs there.
    following: Option<Following>,
}

/// Sends a running machine to where `connect` leads: it is asked for a stream for each number from 0 on. When
/// this returns, the guest runs there; on an error it runs here, as before, but for [`Error::Unconfirmed`].
///
/// # Errors
/// Whatever kept it from moving.
pub fn send(
    port: MigrationPort,
    owner: &mut dyn Owner,
    connect: &mut dyn FnMut(u16) -> io::Result<Box<dyn Stream>>,
    options: &Options,
    cancel: &Cancel,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let begun = Instant::now();
    let mut source = Source {
        port,
        owner,
        options,
        cancel,
        watch,
        streams: Vec::new(),
        begun,
        until: begun.checked_add(options.limits.timeout),
        rate: None,
        paused: None,
        report: Report::default(),
        session: 0,
        disks: Vec::new(),
        asked: None,
        following: None,
    };
    let prepared = source.prepare(connect);
    let moved = prepared.and_then(|()| {
        let rest = match source.port.description.in_place {
            true => None,
            false => Some(source.precopy()?),
        };
        source.switch(rest)
    });
    match moved {
        Ok(()) => source.hand_over(connect),
        Err(error) => Err(source.stay(error)),
    }
}

impl Source<'_> {
    fn enter(&mut self, phase: Phase) -> Result<()> {
        self.watch.phase(phase);
        self.cancel.check()
    }

    fn open(
        &mut self,
        connect: &mut dyn FnMut(u16) -> io::Result<Box<dyn Stream>>,
        hello: &Hello,
    ) -> Result<()> {
        let stream = connect(hello.stream).map_err(Error::io("connect to where the machine should go"))?;
        let mut connection = Connection::new(stream, self.cancel.clone(), self.options.patience);
        connection.send(Kind::Hello, hello)?;
        let packing = Packing::new(self.options.compression);
        self.streams.push(Sender::new(connection, packing));
        Ok(())
    }

    fn first(&mut self) -> Result<&mut Connection> {
        let first = self.streams.first_mut().ok_or_else(super::connection::closed)?;
        Ok(&mut first.connection)
    }

    /// Finds out whether the target takes the machine, and opens all streams.
    fn prepare(&mut self, connect: &mut dyn FnMut(u16) -> io::Result<Box<dyn Stream>>) -> Result<()> {
        self.enter(Phase::Hello)?;
        let session = std::hash::Hasher::finish(&std::hash::BuildHasher::build_hasher(
            &std::collections::hash_map::RandomState::new(),
        ));
        self.session = session;
        self.open(connect, &Hello::new(session, 0))?;
        let theirs: Hello = self.first()?.expect(Kind::Hello)?;
        theirs.version()?;
        self.enter(Phase::Configure)?;
        let streams = self.options.streams.clamp(1, MOST_STREAMS);
        self.port.description.streams = streams;
        self.port.description.verify = self.options.verify && !self.options.post_copy;
        let wanted = self.options.post_copy || self.options.limits.on_timeout == OnTimeout::PostCopy;
        self.port.description.post_copy = wanted && !self.port.description.in_place;
        let description = self.port.description.clone();
        self.first()?.send(Kind::Config, &description)?;
        let () = self.first()?.expect(Kind::Accept)?;
        let streams = streams + u16::from(description.post_copy);
        (1..streams).try_for_each(|number| self.open(connect, &Hello::new(session, number)))?;
        if description.post_copy {
            self.asked = self.streams.pop();
        }
        Ok(())
    }

    /// Sends memory while the guest runs, until the rest of it fits or time is over.
    fn precopy(&mut self) -> Result<Left> {
        self.send_disks()?;
        if self.options.post_copy {
            let pages = Pages::all(&self.port.memory.memory());
            return Ok(Left {
                log: None,
                pages,
                follows: true,
            });
        }
        let log = DirtyLog::begin(&self.port)?;
        let memory = self.port.memory.memory().into_inner();
        let pace = Pace::new(self.options.bandwidth).until(self.until);
        let mut next = Pages::all(&memory);
        self.enter(Phase::Copy)?;
        let follows = loop {
            let number = self.report.rounds;
            let begun = Instant::now();
            let disks = self.send_changes(&pace)?;
            let (of, watch) = (next.bytes(), &mut *self.watch);
            let mut tell = |done| watch.sending(done, of);
            let mut sent = pages::send(&mut self.streams, &memory, &next, number, &pace, &mut tell)?;
            sent.bytes += disks;
            let took = begun.elapsed();
            self.report.rounds += 1;
            self.report.pages += sent.bytes;
            let written = log.take()?;
            next = match sent.left {
                Some(address) => next.above(address),
                None => Pages::none(&memory),
            };
            next.add(&written);
            let round = Round {
                number,
                sent: sent.bytes,
                took,
                dirty: next.bytes() + self.disks.iter().map(Sending::due).sum::<u64>(),
                rate: self.measure(sent.bytes, took),
                throttle: self.port.throttle.get(),
            };
            self.tell(&round);
            let decision = decide(&round, &self.options.limits, self.begun.elapsed());
            log::debug!("{round:?}: {decision:?}");
            match decision {
                Decision::Again => {}
                Decision::Throttle(percent) => self.port.throttle.set(percent),
                Decision::Switch => break false,
                Decision::PostCopy => {
                    // Disks cannot follow: what was changed on them goes while the guest still runs.
                    self.report.pages += self.send_changes(&Pace::new(self.options.bandwidth))?;
                    break true;
                }
                Decision::GiveUp => return Err(self.endless(round.dirty)),
            }
            if number == 0 {
                self.enter(Phase::Converge)?;
            }
        };
        self.report.throttle = self.port.throttle.get();
        Ok(Left {
            log: Some(log),
            pages: next,
            follows,
        })
    }

    /// That it has no end in time: so many bytes are left.
    fn endless(&self, left: u64) -> Error {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Error::NotConverging {
            seconds: self.begun.elapsed().as_secs(),
            downtime: milliseconds(converge::downtime(left, self.rate.unwrap_or(0))),
            limit: milliseconds(self.options.limits.downtime),
        }
    }

    /// Sends all of the disks that go along. When time is over, the guest is stopped for the rest of them, or all is
    /// given up; they cannot follow it, so that before a post-copy all of them is sent.
    fn send_disks(&mut self) -> Result<()> {
        self.enter(Phase::Disks)?;
        self.disks = Sending::begin(&self.port.disks)?;
        let end = self.options.limits.on_timeout;
        let until = self.until.filter(|_| end != OnTimeout::PostCopy);
        let pace = Pace::new(self.options.bandwidth).until(until);
        let (begun, mut sent) = (Instant::now(), 0);
        let of = self.port.description.disks.iter().map(|disk| disk.len).sum();
        let mut before = 0;
        let first = self.streams.first_mut().ok_or_else(super::connection::closed)?;
        for (disk, described) in self.disks.iter_mut().zip(&self.port.description.disks) {
            let watch = &mut *self.watch;
            let mut tell = |done| watch.sending(before + done, of);
            sent += disk.send_all(&mut first.connection, &pace, &mut tell)?;
            before += described.len;
        }
        self.report.pages += sent;
        if sent > 0 {
            self.measure(sent, begun.elapsed());
        }
        match self.disks.iter().map(Sending::left).sum::<u64>() {
            left @ 1.. if end == OnTimeout::Cancel => Err(self.endless(left + self.port.description.memory)),
            _ => Ok(()),
        }
    }

    /// Sends what was changed on them, while there is time.
    fn send_changes(&mut self, pace: &Pace) -> Result<u64> {
        let first = self.streams.first_mut().ok_or_else(super::connection::closed)?;
        let disks = self.disks.iter_mut();
        disks
            .map(|disk| disk.send_changes(&mut first.connection, pace))
            .sum()
    }

    /// Sends what is left of them, and what was changed.
    fn send_rest(&mut self) -> Result<()> {
        let pace = Pace::new(None);
        let first = self.streams.first_mut().ok_or_else(super::connection::closed)?;
        for disk in &mut self.disks {
            self.report.pages += disk.send_all(&mut first.connection, &pace, &mut |_| {})?;
            self.report.pages += disk.send_changes(&mut first.connection, &pace)?;
        }
        Ok(())
    }

    /// Stops the guest and sends what is left; the target is ready then.
    fn switch(&mut self, left: Option<Left>) -> Result<()> {
        self.enter(Phase::Pause)?;
        self.paused = Some(Instant::now());
        let state = self.owner.pause()?;
        self.port.throttle.set(0);
        let memory = self.port.memory.memory().into_inner();
        if let Some(left) = left {
            self.flush(left, &memory)?;
        }
        self.enter(Phase::State)?;
        let state = Saved {
            state,
            checksum: (self.options.verify && self.following.is_none()).then(|| pages::checksum(&memory)),
        };
        self.first()?.send(Kind::State, &state)?;
        self.enter(Phase::Ready)?;
        let () = self.first()?.expect(Kind::Ready)?;
        self.enter(Phase::Release)?;
        match self.port.handover {
            true => self.owner.hand_over()?,
            false => self.owner.release()?,
        }
        self.enter(Phase::Resume)
    }

    /// Sends the last of memory.
    fn flush(&mut self, mut left: Left, memory: &Memory) -> Result<()> {
        self.enter(Phase::Flush)?;
        self.send_rest()?;
        if let Some(log) = &left.log {
            // Saving may have written, too: what is taken now is the last.
            left.pages.add(&log.take()?);
        }
        let asked = self.asked.take();
        if let (true, Some(asked)) = (left.follows, asked) {
            self.count();
            self.streams.truncate(1);
            // That one goes on, and is counted then.
            self.report.wire -= self.first()?.written().0;
            send_missing(self.first()?, &left.pages)?;
            self.following = Some(Following::new(
                asked,
                memory,
                left.pages,
                self.port.sandbox.clone(),
            )?);
            return Ok(());
        }
        let sent = pages::send(
            &mut self.streams,
            memory,
            &left.pages,
            self.report.rounds,
            &Pace::new(None),
            &mut |_| {},
        )?;
        self.report.rounds += 1;
        self.report.pages += sent.bytes;
        self.count();
        // The target is done with these when they end.
        self.streams.truncate(1);
        Ok(())
    }

    fn count(&mut self) {
        self.report.wire = self
            .streams
            .iter()
            .map(|stream| stream.connection.written().0)
            .sum();
    }

    /// Bytes a second that the streams move, after so many took so long: where these are enough to tell.
    fn measure(&mut self, bytes: u64, took: Duration) -> u64 {
        const ENOUGH: u64 = 1 << 20;
        let now = (bytes as f64 / took.as_secs_f64().max(1e-6)) as u64;
        match self.rate {
            Some(before) if bytes < ENOUGH => before,
            _ => *self.rate.insert(now.max(1)),
        }
    }

    fn tell(&mut self, round: &Round) {
        self.count();
        self.watch.progress(&Progress {
            round: *round,
            wire: self.report.wire,
            memory: self.port.description.memory,
            dirty_rate: (round.dirty as f64 / round.took.as_secs_f64().max(1e-6)) as u64,
            downtime: converge::downtime(round.dirty, round.rate),
            elapsed: self.begun.elapsed(),
        });
    }

    /// The single point of decision: whatever comes after it, the guest is the target's.
    fn hand_over(mut self, connect: &mut dyn FnMut(u16) -> io::Result<Box<dyn Stream>>) -> Result<Report> {
        let first = self.first()?;
        first.decide();
        let confirmed = first.send(Kind::Resume, &()).and_then(|()| {
            self.watch.phase(Phase::Running);
            self.first()?.expect(Kind::Running)
        });
        self.report.total = self.begun.elapsed();
        self.report.downtime = self.paused.map_or(Duration::ZERO, |paused| paused.elapsed());
        let confirmed = match self.following.take() {
            Some(following) => self.follow(following, confirmed, connect),
            None => confirmed,
        };
        match confirmed {
            Ok(()) => Ok(self.report),
            Err(source) => Err(Error::Unconfirmed {
                source: Box::new(source),
            }),
        }
    }

    /// The rest of memory, over as many connections as it takes. `confirmed` says whether the guest runs there.
    fn follow(
        &mut self,
        mut following: Following,
        mut confirmed: Result<()>,
        connect: &mut dyn FnMut(u16) -> io::Result<Box<dyn Stream>>,
    ) -> Result<()> {
        self.owner.follows();
        self.watch.phase(Phase::Serve);
        let mut sent = match (&confirmed, self.streams.pop()) {
            (Ok(()), Some(stream)) => following.push(stream, &mut *self.watch),
            (Ok(()), None) => Err(super::connection::closed()),
            (Err(error), _) => Err(Error::Cannot(format!(
                "whether it runs there is not known: {error}"
            ))),
        };
        while let Err(error) = &sent {
            if let Error::Refused(reason) = error {
                // It runs no more: nothing need follow it.
                log::warn!("the rest of the machine's memory is not wanted: {reason}");
                break;
            }
            self.watch.broken(error);
            self.options.recover.wait(self.cancel)?;
            sent = match following.meet(self.session, self.options, connect) {
                Ok(stream) => {
                    confirmed = Ok(());
                    following.push(stream, &mut *self.watch)
                }
                // Nobody is there, nor was as far as is known.
                Err(_) if confirmed.is_err() => return confirmed,
                // Only who runs it can say that it has ended.
                Err(error) => Err(Error::Cannot(error.to_string())),
            };
        }
        self.report.total = self.begun.elapsed();
        let (bytes, wire) = following.sent();
        self.report.pages += bytes;
        self.report.wire += wire;
        Ok(())
    }

    /// The guest is not moved, and goes on here if it was stopped. Gives the reason, as far as it is known.
    fn stay(&mut self, reason: Error) -> Error {
        // First of all: it stands still.
        if self.paused.is_some()
            && let Err(error) = self.owner.go_on()
        {
            log::error!("the guest was not moved, and cannot go on here: {error}");
        }
        let Ok(first) = self.first() else {
            return reason;
        };
        let reason = first.last_words(reason);
        first.abort(&reason);
        reason
    }
}

/// What the State frame says.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    pub state: VmState,
    /// Of guest memory, where the two sides agreed on it.
    pub checksum: Option<u32>,
}
