//! The target's side of post-copy: a guest that runs before all of its memory is there.
//!
//! What is missing is known from the source, and a page is taken once: what comes later, or again, is older than what
//! the guest may have written meanwhile.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacelle_devices::memory::Memory;
use nacelle_devices::virtio::balloon::discard;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Cancel, Connection, Stream, closed};
use super::message::Hello;
use super::userfault::Userfault;
use super::wire::{self, Kind, MOST_RUNS};
use super::{Options, pages};
use crate::memory::dirty::{PAGE, Pages};
use crate::{Error, Result};

/// Guest memory of which pages are missing.
pub(super) struct Lazy {
    faults: Userfault,
    missing: Mutex<Pages>,
    /// Ends [`Lazy::serve`].
    wake: EventFd,
    begun: Mutex<Begun>,
}

/// Whether the guest has gone on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Not,
    It,
    /// It never will: what it asked for did not come.
    Never,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lazy {
    /// Forgets what `memory` holds of the pages that are missing, and has whoever reaches one wait for it.
    pub fn new(memory: &Memory, missing: Pages) -> Result<Lazy> {
        for run in missing.runs(u64::MAX) {
            let at = memory.to_region_addr(GuestAddress(run.address));
            let (region, offset) =
                at.ok_or_else(|| wire::wrong("pages are missing where there is no memory"))?;
            discard(region, offset.0, run.len())
                .map_err(Error::io("forget what was sent of guest memory"))?;
        }
        let faults = Userfault::new(memory).and_then(|faults| faults.register().map(|()| faults));
        Ok(Lazy {
            faults: faults.map_err(Error::io("answer faults of guest memory"))?,
            missing: Mutex::new(missing),
            wake: EventFd::new(libc::EFD_NONBLOCK).map_err(Error::io("make an eventfd"))?,
            begun: Mutex::new(Begun::Not),
        })
    }

    /// Asks for each page that somebody waits for, over a connection of its own, until [`Lazy::stop`]. `waiting` is one
    /// that was asked for in vain.
    pub fn serve(&self, connection: &mut Connection, waiting: &mut Option<u64>) -> Result<()> {
        loop {
            let next = match waiting.take() {
                Some(address) => Some(address),
                None => self
                    .faults
                    .next(&self.wake)
                    .map_err(Error::io("hear of faults of guest memory"))?,
            };
            let Some(address) = next else {
                return Ok(());
            };
            *waiting = Some(address);
            if self.is_missing(address) {
                connection.send_parts(Kind::Fault, 0, &[&address.to_le_bytes()])?;
                connection.flush()?;
                while self.is_missing(address) {
                    let (frame, payload) = connection.receive()?.ok_or_else(closed)?;
                    if !self.take(frame.kind, frame.flags, payload)? {
                        return Err(wire::wrong(format!("{:?} instead of a page", frame.kind)));
                    }
                }
            } else {
                // It came meanwhile, or never had anything in it.
                self.faults.zero(address).map_err(Error::io("bring a page"))?;
            }
            *waiting = None;
        }
    }

    /// The guest goes on now, whatever breaks: `false` where something was asked for in vain before.
    pub fn decide(&self) -> bool {
        let mut begun = held(&self.begun);
        if *begun == Begun::Not {
            *begun = Begun::It;
        }
        *begun == Begun::It
    }

    /// What is asked for does not come. Before the guest goes on it then never will, and who waits is let go: whether
    /// that is so.
    pub fn give_up(&self) -> bool {
        let mut begun = held(&self.begun);
        if *begun == Begun::Not {
            *begun = Begun::Never;
            self.faults.unregister();
        }
        *begun == Begun::Never
    }

    /// The source again: it is told what is still missing.
    pub fn meet(
        &self,
        session: u64,
        accept: &mut Accept<'_>,
        options: &Options,
        cancel: &Cancel,
    ) -> Result<(Connection, Connection)> {
        let mut come = |stream: u16| {
            let socket = accept().map_err(Error::io("take a connection"))?;
            let mut connection = Connection::new(socket, cancel.clone(), options.patience);
            let hello: Hello = connection.expect(Kind::Hello)?;
            if hello.session != session || hello.stream != stream {
                let error = wire::wrong("a connection of another migration");
                connection.abort(&error);
                return Err(error);
            }
            connection.send(Kind::Hello, &Hello::new(session, stream))?;
            Ok(connection)
        };
        let mut pushed = come(0)?;
        let asked = come(1)?;
        let missing = held(&self.missing).clone();
        send_missing(&mut pushed, &missing)?;
        Ok((pushed, asked))
    }

    /// Nobody waits any more; what is missing is zero.
    pub fn let_go(&self) {
        self.faults.unregister();
    }

    /// Ends [`Lazy::serve`], or lets it begin again.
    pub fn stop(&self, stop: bool) {
        let done = match stop {
            true => self.wake.write(1),
            false => self.wake.read().map(drop),
        };
        if let Err(error) = done
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::warn!("the eventfd {}: {error}", self.wake.as_raw_fd());
        }
    }

    /// Takes what the source sends by itself, until that was all.
    fn fill(&self, connection: &mut Connection) -> Result<()> {
        loop {
            let (frame, payload) = connection.receive()?.ok_or_else(closed)?;
            if self.take(frame.kind, frame.flags, payload)? {
                continue;
            }
            if frame.kind != Kind::Round {
                return Err(wire::wrong(format!("{:?} among pages", frame.kind)));
            }
            if !held(&self.missing).is_empty() {
                return Err(wire::wrong("the last of memory was sent, and there is more"));
            }
            let number = payload.to_vec();
            connection.send_parts(Kind::RoundDone, 0, &[&number])?;
            return connection.flush();
        }
    }

    fn is_missing(&self, address: u64) -> bool {
        held(&self.missing).has(address)
    }

    /// Takes a frame if it brings pages; whether it does.
    pub fn take(&self, kind: Kind, flags: u16, payload: &[u8]) -> Result<bool> {
        let mut plain = Vec::new();
        match kind {
            Kind::Pages => {
                let (address, data) = wire::pages(flags, payload, &mut plain)?;
                let (pages, _) = data.as_chunks::<{ PAGE as usize }>();
                for (page, at) in pages.iter().zip((address..).step_by(PAGE as usize)) {
                    self.bring(at, Some(page))?;
                }
            }
            Kind::Zero => {
                for run in wire::zero_runs(payload)? {
                    if !self.faults.holds(run) {
                        return Err(pages::outside(run.address));
                    }
                    for page in 0..run.pages {
                        self.bring(run.address + page * PAGE, None)?;
                    }
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts a page in its place, if it is still missing. Both connections may bring it.
    fn bring(&self, address: u64, page: Option<&[u8; PAGE as usize]>) -> Result<()> {
        let mut missing = held(&self.missing);
        if !missing.has(address) {
            return Ok(());
        }
        let brought = match page {
            Some(page) => self.faults.copy(address, page),
            None => self.faults.zero(address),
        };
        brought.map_err(Error::io("bring a page"))?;
        missing.remove(address);
        Ok(())
    }
}

/// The rest of a machine's memory, which follows it.
pub struct Rest {
    pub(super) lazy: Lazy,
    pub(super) session: u64,
    pub(super) options: Options,
    /// The one that pages come over, and the one that they are asked for over.
    pub(super) connections: Option<(Connection, Connection)>,
    pub(super) waiting: Option<u64>,
}

impl Rest {
    /// Takes it all, to be called at once on a thread of its own: the guest stands still where it needs what is not
    /// there. When the connection breaks it does so until the source comes again by `accept`. `cancel` is for a machine
    /// that ends.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and the like, when it was.
    pub fn take(mut self, accept: &mut Accept<'_>, cancel: &Cancel) -> Result<()> {
        let taken = loop {
            if let Some((pushed, asked)) = self.connections.take() {
                match self.work(pushed, asked, cancel) {
                    Ok(()) => break Ok(()),
                    Err(error) if cancel.is_cancelled() => break Err(error),
                    Err(error) => log::error!(
                        "the rest of the machine's memory does not come ({error}): its guest waits for nacelle \
                         migrate-recover at the source"
                    ),
                }
            }
            match self.lazy.meet(self.session, accept, &self.options, cancel) {
                Ok(connections) => self.connections = Some(connections),
                Err(error) if cancel.is_cancelled() => break Err(error),
                // The guest must not go on without it, whatever it is.
                Err(error) => {
                    log::warn!("the source has not come again: {error}");
                    std::thread::sleep(MOMENT);
                }
            }
        };
        self.lazy.let_go();
        taken
    }

    /// Both connections at work until all is there or one of them fails.
    fn work(&mut self, mut pushed: Connection, mut asked: Connection, cancel: &Cancel) -> Result<()> {
        let (lazy, waiting) = (&self.lazy, &mut self.waiting);
        let other = Cancel::new();
        for connection in [&mut pushed, &mut asked] {
            connection.obey(&[cancel, &other]);
        }
        lazy.stop(false);
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                let served = lazy.serve(&mut asked, waiting);
                if served.is_err() {
                    other.cancel();
                }
                served
            });
            let filled = lazy.fill(&mut pushed);
            if filled.is_err() {
                other.cancel();
            }
            lazy.stop(true);
            let served = serving
                .join()
                .unwrap_or_else(|_| Err(Error::ThreadEnded("faults".into())));
            if cancel.is_cancelled() {
                pushed.abort(&Error::Cannot(ENDED.into()));
            }
            // The one that failed first says why.
            match (filled, served) {
                (Err(Error::Cancelled), Err(error)) => Err(error),
                (filled, _) => filled,
            }
        })
    }
}

/// Gives the next connection.
pub type Accept<'a> = dyn FnMut() -> io::Result<Box<dyn Stream>> + Send + 'a;

/// What the source is told when the machine ends before its memory has come.
const ENDED: &str = "the machine has ended";
/// How long it waits after what was no connection of the source.
const MOMENT: Duration = Duration::from_millis(100);

/// Says which pages are missing at the target: a list, and its end.
pub(super) fn send_missing(connection: &mut Connection, missing: &Pages) -> Result<()> {
    for runs in missing.runs(u64::MAX).chunks(MOST_RUNS) {
        connection.send_parts(Kind::Missing, 0, &[&wire::zero_payload(runs)])?;
    }
    connection.send_parts(Kind::Missing, 0, &[])?;
    connection.flush()
}

/// Hears which pages of `memory` are missing at the target.
pub(super) fn hear_missing(connection: &mut Connection, memory: &Memory) -> Result<Pages> {
    let mut missing = Pages::none(memory);
    loop {
        let (frame, payload) = connection.receive()?.ok_or_else(closed)?;
        if frame.kind != Kind::Missing {
            return Err(wire::wrong(format!(
                "{:?} instead of what is missing",
                frame.kind
            )));
        }
        if !take_missing(payload, &mut missing)? {
            return Ok(missing);
        }
    }
}

/// Adds a part of the list to `missing`; whether more follows.
pub(super) fn take_missing(payload: &[u8], missing: &mut Pages) -> Result<bool> {
    for run in wire::zero_runs(payload)? {
        for page in 0..run.pages {
            let address = run.address + page * PAGE;
            if !missing.insert(address) && !missing.has(address) {
                return Err(pages::outside(address));
            }
        }
    }
    Ok(!payload.is_empty())
}
