//! The target's side.

use std::io;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use nacelle_devices::memory::Memory;
use vm_memory::GuestAddressSpace;

use super::connection::{Cancel, Connection, Stream, closed};
use super::disks::Receiving;
use super::lazy::{Lazy, Rest, take_missing};
use super::message::{Description, Hello};
use super::pages::{self, Receiver};
use super::send::Saved;
use super::wire::{self, Kind};
use super::{Options, Phase, Watch, userfault};
use crate::config::PageSize;
use crate::memory::dirty::Pages;
use crate::power::Power;
use crate::{Error, Result, Vm, VmConfig, VmEvent, VmState};

/// How long a disk may still be the source's after it said that it let go.
const LOCK: Duration = Duration::from_secs(5);

/// A machine that has come and runs.
pub struct Arrived {
    /// It.
    pub vm: Vm,
    /// From the order to go on to the guest's first instruction here.
    pub resumed: Duration,
    /// What of its memory follows, to be taken at once.
    pub rest: Option<Rest>,
}

/// Takes up a machine that comes over the streams that `accept` gives. `config` says what it is made of here,
/// and must be like the source's. When this returns, it runs here; on an error the source goes on with it.
///
/// # Errors
/// Whatever kept it from coming.
pub fn receive<M>(
    config: VmConfig,
    events: Sender<M>,
    accept: &mut (dyn FnMut() -> io::Result<Box<dyn Stream>> + Send),
    options: &Options,
    cancel: &Cancel,
    watch: &mut dyn Watch,
) -> Result<Arrived>
where
    M: From<VmEvent> + Send + 'static,
{
    let mut target = Target {
        power: Some(Power::new(events)),
        config: Some(config),
        accept,
        options,
        cancel,
        watch,
    };
    let (mut connection, session) = target.greet()?;
    target.take(&mut connection, session).map_err(|error| {
        let error = connection.last_words(error);
        connection.abort(&error);
        error
    })
}

struct Target<'a> {
    power: Option<Power>,
    config: Option<VmConfig>,
    accept: &'a mut (dyn FnMut() -> io::Result<Box<dyn Stream>> + Send),
    options: &'a Options,
    cancel: &'a Cancel,
    watch: &'a mut dyn Watch,
}

impl Target<'_> {
    fn enter(&mut self, phase: Phase) -> Result<()> {
        self.watch.phase(phase);
        self.cancel.check()
    }

    fn open(&mut self) -> Result<(Connection, Hello)> {
        let stream = (self.accept)().map_err(Error::io("take a connection"))?;
        let mut connection = Connection::new(stream, self.cancel.clone(), self.options.patience);
        let hello = connection.expect(Kind::Hello)?;
        Ok((connection, hello))
    }

    fn greet(&mut self) -> Result<(Connection, u64)> {
        self.enter(Phase::Hello)?;
        let (mut connection, theirs) = self.open()?;
        let checked = theirs
            .version()
            .and_then(|_| connection.send(Kind::Hello, &Hello::new(theirs.session, 0)));
        if let Err(error) = checked {
            connection.abort(&error);
            return Err(error);
        }
        Ok((connection, theirs.session))
    }

    fn take(&mut self, connection: &mut Connection, session: u64) -> Result<Arrived> {
        self.enter(Phase::Configure)?;
        let description: Description = connection.expect(Kind::Config)?;
        let mut vm = self.prepare(&description)?;
        self.enter(Phase::Disks)?;
        let mut disks = Receiving::begin(&vm, &description.disks)?;
        connection.send(Kind::Accept, &())?;
        let mut others = Vec::new();
        for _ in 1..description.streams + u16::from(description.post_copy) {
            let (other, hello) = self.open()?;
            if hello.session != session {
                return Err(wire::wrong("a connection of another migration"));
            }
            others.push(other);
        }
        self.enter(Phase::Copy)?;
        let memory = vm.memory().memory().into_inner();
        let asked = description.post_copy.then(|| others.pop()).flatten();
        let last = take_memory(&memory, connection, others, &mut disks)?;
        disks.flush()?;
        drop(disks);
        let saved = match (last, asked) {
            (Last::State(saved), _) => *saved,
            (Last::Missing(missing), Some(asked)) => {
                let lazy = Lazy::new(&memory, missing)?;
                let Saved { state, .. } = connection.expect(Kind::State)?;
                drop(memory);
                return self.go_on_without(vm, state, lazy, connection, asked, session);
            }
            (Last::Missing(_), None) => {
                return Err(wire::wrong("memory is missing, and nobody to ask for it"));
            }
        };
        self.enter(Phase::State)?;
        if saved.checksum.is_some_and(|sum| sum != pages::checksum(&memory)) {
            return Err(wire::wrong("guest memory is not what it was at the source"));
        }
        drop(memory);
        vm.take_up(saved.state)?;
        self.enter(Phase::Ready)?;
        connection.send(Kind::Ready, &())?;
        let () = connection.expect(Kind::Resume)?;
        let begun = Instant::now();
        // Nobody else runs it any more: neither a lost connection nor somebody's wish may keep it from running.
        self.watch.phase(Phase::Resume);
        lock_disks(&mut vm)?;
        vm.resume()?;
        let resumed = begun.elapsed();
        self.watch.phase(Phase::Running);
        vm.announce();
        connection.decide();
        if let Err(error) = connection.send(Kind::Running, &()) {
            log::warn!("the source is not told that the machine runs here: {error}");
        }
        Ok(Arrived {
            vm,
            resumed,
            rest: None,
        })
    }

    /// Goes on with a machine of whose memory something is missing: whatever reaches that waits for it, this thread
    /// too.
    fn go_on_without(
        &mut self,
        mut vm: Vm,
        state: VmState,
        lazy: Lazy,
        connection: &mut Connection,
        mut asked: Connection,
        session: u64,
    ) -> Result<Arrived> {
        let (mut waiting, mut again) = (None, None);
        let (accept, options, cancel) = (&mut *self.accept, self.options, self.cancel);
        let watch = &mut *self.watch;
        let went_on = std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                while let Err(error) = lazy.serve(&mut asked, &mut waiting) {
                    if lazy.give_up() {
                        return Err(error);
                    }
                    log::error!("the rest of the machine's memory does not come ({error})");
                    let (pushed, anew) = lazy.meet(session, accept, options, cancel)?;
                    (again, asked) = (Some(pushed), anew);
                }
                Ok(())
            });
            let went_on = take_up(&mut vm, state, connection, &lazy, cancel, watch);
            lazy.stop(true);
            match serving.join() {
                // What it has read of memory since may be wrong.
                Ok(Err(error)) if went_on.is_err() => Err(error),
                _ => went_on,
            }
        });
        let resumed = went_on.inspect_err(|_| lazy.let_go())?;
        let decided = std::mem::replace(
            connection,
            Connection::new(Box::new(io::empty()), Cancel::new(), LOCK),
        );
        let rest = Rest {
            lazy,
            session,
            options: self.options.clone(),
            connections: Some((again.unwrap_or(decided), asked)),
            waiting,
        };
        Ok(Arrived {
            vm,
            resumed,
            rest: Some(rest),
        })
    }

    /// A machine like the source's, empty.
    fn prepare(&mut self, description: &Description) -> Result<Vm> {
        let (Some(mut config), Some(power)) = (self.config.take(), self.power.take()) else {
            return Err(closed());
        };
        let memory = match (config.opened.memory.take(), description.in_place) {
            (Some(file), true) => crate::memory::shared(&config.memory, file)?,
            (None, false) => crate::memory::create(&config.memory)?,
            (_, in_place) => {
                let reason = match in_place {
                    true => "the machine's memory is not to be sent, and was not handed over",
                    false => "the machine's memory was handed over, and is to be sent",
                };
                return Err(Error::Cannot(reason.into()));
            }
        };
        if description.post_copy {
            userfault::available().map_err(|reason| Error::Cannot(format!("no post-copy: {reason}")))?;
            if config.memory.pages != PageSize::Ordinary {
                return Err(Error::Cannot(
                    "no post-copy: its memory has huge pages here".into(),
                ));
            }
        }
        config.put(&description.places());
        let vm = Vm::prepare(config, memory, power)?;
        description.fits(vm.description())?;
        Ok(vm)
    }
}

/// Takes up a machine of whose memory something is missing, and lets it go on.
fn take_up(
    vm: &mut Vm,
    state: VmState,
    connection: &mut Connection,
    lazy: &Lazy,
    cancel: &Cancel,
    watch: &mut dyn Watch,
) -> Result<Duration> {
    let mut enter = |phase| {
        watch.phase(phase);
        cancel.check()
    };
    enter(Phase::State)?;
    vm.take_up(state)?;
    enter(Phase::Ready)?;
    connection.send(Kind::Ready, &())?;
    let () = connection.expect(Kind::Resume)?;
    // From here on what breaks is mended.
    if !lazy.decide() {
        return Err(closed());
    }
    let begun = Instant::now();
    watch.phase(Phase::Resume);
    lock_disks(vm)?;
    vm.resume()?;
    let resumed = begun.elapsed();
    watch.phase(Phase::Running);
    vm.announce();
    connection.decide();
    if let Err(error) = connection.send(Kind::Running, &()) {
        log::warn!("the source is not told that the machine runs here: {error}");
    }
    watch.phase(Phase::Serve);
    Ok(resumed)
}

/// What follows pages.
enum Last {
    /// The rest of the machine: all of memory is there.
    State(Box<Saved>),
    /// What is missing of memory.
    Missing(Pages),
}

/// Fills memory from all streams until the first one brings the rest of the machine.
fn take_memory(
    memory: &Memory,
    connection: &mut Connection,
    others: Vec<Connection>,
    disks: &mut Receiving,
) -> Result<Last> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = others
            .into_iter()
            .map(|mut other| {
                scope.spawn(move || {
                    take_pages(memory, &mut other, &mut Receiving::default())
                        .inspect_err(|error| other.abort(error))
                })
            })
            .collect();
        let saved = take_pages(memory, connection, disks);
        // The others end with their connections, which the source closes when it is done or fails.
        for thread in threads {
            match thread.join() {
                Ok(Ok(_)) => {}
                Ok(Err(error)) if saved.is_ok() => return Err(error),
                Ok(Err(error)) => log::debug!("a stream of pages: {error}"),
                Err(_) => return Err(Error::ThreadEnded("a stream of pages".into())),
            }
        }
        saved?.ok_or_else(closed)
    })
}

/// Does what one stream says, until it ends or brings the rest of the machine.
fn take_pages(memory: &Memory, connection: &mut Connection, disks: &mut Receiving) -> Result<Option<Last>> {
    let mut missing = Pages::none(memory);
    let mut receiver = Receiver::new(memory);
    loop {
        let Some((frame, payload)) = connection.receive()? else {
            return Ok(None);
        };
        if receiver.take(&frame, payload)? {
            continue;
        }
        match frame.kind {
            Kind::Round => {
                let number = payload.to_vec();
                connection.send_parts(Kind::RoundDone, 0, &[&number])?;
                connection.flush()?;
            }
            Kind::State => {
                let saved = wire::decode(payload)?;
                return Ok(Some(Last::State(Box::new(saved))));
            }
            Kind::Disk => disks.take(frame.flags, payload)?,
            Kind::Missing => {
                if !take_missing(payload, &mut missing)? {
                    return Ok(Some(Last::Missing(missing)));
                }
            }
            other => return Err(wire::wrong(format!("{other:?} among pages"))),
        }
    }
}

/// Takes the disks; the source has let go, but the news may take a moment (NFS).
fn lock_disks(vm: &mut Vm) -> Result<()> {
    let begun = Instant::now();
    loop {
        match vm.lock_disks() {
            Err(error) if begun.elapsed() < LOCK => {
                log::debug!("a disk is not to be had yet: {error}");
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}
