//! The source's side of post-copy: the rest of a guest's memory follows it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nacelle_devices::memory::Memory;

use super::connection::{Cancel, Connection, Stream};
use super::lazy::hear_missing;
use super::message::Hello;
use super::packing::Packing;
use super::pages::{self, Pace, Sender};
use super::wire::{self, Kind};
use super::{Options, Watch};
use crate::memory::dirty::{PAGE, Pages, Run};
use crate::sandbox::{Role, Sandbox};
use crate::{Error, Result};

/// Pages that are sent where one is asked for: its neighbours are most likely next.
const AROUND: u64 = 8;
/// How often who waits looks whether it still should.
const MOMENT: Duration = Duration::from_millis(100);

/// Somebody's wish that a migration whose connection is broken go on over a new one.
#[derive(Clone, Debug, Default)]
pub struct Recover(Arc<(Mutex<bool>, Condvar)>);

impl Recover {
    /// It shall try now.
    pub fn now(&self) {
        let (wished, told) = &*self.0;
        *wished.lock().unwrap_or_else(PoisonError::into_inner) = true;
        told.notify_all();
    }

    /// Waits for the wish.
    pub(super) fn wait(&self, cancel: &Cancel) -> Result<()> {
        let (wished, told) = &*self.0;
        let mut wished = wished.lock().unwrap_or_else(PoisonError::into_inner);
        while !std::mem::take(&mut *wished) {
            cancel.check()?;
            let waited = told.wait_timeout(wished, MOMENT);
            (wished, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

/// Memory that follows.
pub(super) struct Following {
    memory: Memory,
    left: Pages,
    serving: Option<Serving>,
    sandbox: Sandbox,
    bytes: u64,
    wire: u64,
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.cancel.cancel();
        }
    }
}

/// The thread that sends what is asked for.
struct Serving {
    thread: JoinHandle<u64>,
    cancel: Cancel,
}

impl Following {
    /// `left` of `memory`, of which the target may ask for pages from now on.
    pub fn new(asked: Sender, memory: &Memory, left: Pages, sandbox: Sandbox) -> Result<Following> {
        let mut following = Following {
            memory: memory.clone(),
            left,
            serving: None,
            sandbox,
            bytes: 0,
            wire: 0,
        };
        following.serve(asked)?;
        Ok(following)
    }

    fn serve(&mut self, mut asked: Sender) -> Result<()> {
        let cancel = Cancel::new();
        asked.connection.obey(&[&cancel]);
        // The guest may need nothing for a long time.
        asked.connection.wait();
        let (memory, sandbox) = (self.memory.clone(), self.sandbox.clone());
        let work = move || {
            if let Err(error) = sandbox.enter(Role::Faults) {
                log::error!("the thread faults does not start: {error}");
                return 0;
            }
            if let Err(error) = answer(&mut asked, &memory) {
                log::debug!("pages are not asked for any more: {error}");
            }
            asked.connection.written().0
        };
        let thread = std::thread::Builder::new().name("faults".into()).spawn(work);
        let thread = thread.map_err(Error::io("start the thread faults"))?;
        self.serving = Some(Serving { thread, cancel });
        Ok(())
    }

    /// Sends all that is left over `stream`.
    pub fn push(&mut self, stream: Sender, watch: &mut dyn Watch) -> Result<()> {
        let mut streams = [stream];
        let of = self.left.bytes();
        let mut tell = |done| watch.sending(done, of);
        let pushed = pages::send(
            &mut streams,
            &self.memory,
            &self.left,
            0,
            &Pace::new(None),
            &mut tell,
        );
        let [mut stream] = streams;
        let pushed = pushed.map_err(|error| stream.connection.last_words(error));
        self.wire += stream.connection.written().0;
        if let Some(Serving { thread, cancel }) = self.serving.take() {
            cancel.cancel();
            self.wire += thread.join().unwrap_or(0);
        }
        self.bytes += pushed?.bytes;
        Ok(())
    }

    /// Bytes of pages, and bytes on the wire.
    pub fn sent(&self) -> (u64, u64) {
        (self.bytes, self.wire)
    }

    /// The target again, over new connections; it says what it still needs.
    pub fn meet(
        &mut self,
        session: u64,
        options: &Options,
        connect: &mut dyn FnMut(u16) -> io::Result<Box<dyn Stream>>,
    ) -> Result<Sender> {
        if let Some(Serving { thread, cancel }) = self.serving.take() {
            cancel.cancel();
            self.wire += thread.join().unwrap_or(0);
        }
        let mut open = |number: u16| {
            let stream = connect(number).map_err(Error::io("connect to where the machine runs"))?;
            let mut connection = Connection::new(stream, Cancel::new(), options.patience);
            connection.send(Kind::Hello, &Hello::new(session, number))?;
            let theirs: Hello = connection.expect(Kind::Hello)?;
            match theirs.session == session {
                true => Ok(Sender::new(connection, Packing::new(options.compression))),
                false => Err(wire::wrong("the target of another migration")),
            }
        };
        let mut pushed = open(0)?;
        let asked = open(1)?;
        self.left = hear_missing(&mut pushed.connection, &self.memory)?;
        self.serve(asked)?;
        Ok(pushed)
    }
}

/// Sends each page that is asked for, until nobody asks any more.
pub(super) fn answer(asked: &mut Sender, memory: &Memory) -> Result<()> {
    let all = Pages::all(memory);
    while let Some((frame, payload)) = asked.connection.receive()? {
        let (Kind::Fault, Some(address)) = (frame.kind, payload.first_chunk()) else {
            return Err(wire::wrong(format!("{:?} instead of a fault", frame.kind)));
        };
        let address = u64::from_le_bytes(*address);
        if !address.is_multiple_of(PAGE) || !all.has(address) {
            return Err(pages::outside(address));
        }
        let around = (address..).step_by(PAGE as usize).take(AROUND as usize);
        let pages = around.take_while(|at| all.has(*at)).count() as u64;
        asked.urgent(memory, Run { address, pages })?;
    }
    Ok(())
}
