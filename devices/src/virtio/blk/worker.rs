//! One queue of a block device in service: takes requests in, submits them, answers them when they finish.
//!
//! A batch costs one system call to the ring and one interrupt. What is in flight is in `slots`, by tag; the
//! driver's descriptor index is not the tag, since a hostile driver may offer one twice.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::poll::PollContext;

use super::counters::Kind;
use super::failure::Held;
use super::request::{self, IOERR, OK, Refusal, Request, Work};
use super::{NAME, QUEUE_SIZE, Shared};
use crate::complaint::Complaint;
use crate::disk::{Completion, DiskQueue};
use crate::irq::Interrupt;
use crate::memory::{GuestBuffer, Memory, SharedMemory};
use crate::ratelimit::Throttle;
use crate::virtio::{ActiveQueue, Served};
use crate::{Error, Result};

const ID_BYTES: usize = virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

/// What a queue works with, kept by the device while the queue is stopped.
pub(super) struct Engine {
    pub disk: Box<dyn DiskQueue>,
    pub throttle: Throttle,
    pub held: Held,
}

/// A request that the disk has.
struct InFlight {
    head: u16,
    status: GuestAddress,
    /// Bytes that the device may write before the status.
    writable: u32,
    kind: Kind,
    /// Bytes to move.
    len: u32,
    started: Instant,
}

/// The queue while it is served.
pub(super) struct BlkQueue {
    queue: ActiveQueue,
    memory: SharedMemory,
    interrupt: Arc<dyn Interrupt>,
    shared: Arc<Shared>,
    /// What the driver accepted.
    features: u64,
    engine: Engine,
    slots: Vec<Option<InFlight>>,
    free: Vec<u16>,
    /// The driver broke the ring: nothing more is taken in until a reset.
    broken: bool,
    complaint: Complaint,
}

impl BlkQueue {
    pub(super) fn new(
        queue: ActiveQueue,
        memory: SharedMemory,
        interrupt: Arc<dyn Interrupt>,
        shared: Arc<Shared>,
        features: u64,
        mut engine: Engine,
    ) -> Self {
        engine.held.start();
        BlkQueue {
            queue,
            memory,
            interrupt,
            shared,
            features,
            engine,
            slots: (0..QUEUE_SIZE).map(|_| None).collect(),
            free: (0..QUEUE_SIZE).collect(),
            broken: false,
            complaint: Complaint::new(NAME),
        }
    }

    /// Finishes what was popped, without taking in more, and gives everything back; what is held stays held.
    ///
    /// # Errors
    /// When the kernel cannot even wait; then what was popped is lost.
    pub(super) fn finish(mut self) -> Result<(ActiveQueue, Engine)> {
        let waiting = Error::io("wait for the disk to finish");
        let finished = PollContext::<()>::new()
            .and_then(|poll| {
                poll.add(self.engine.disk.completion(), ())?;
                while self.in_flight() > 0 {
                    self.commit();
                    self.answer_finished();
                    if self.in_flight() > 0 {
                        poll.wait()?;
                        let _ = self.engine.disk.completion().read();
                    }
                }
                Ok(())
            })
            .map_err(std::io::Error::from);
        finished.map_err(waiting)?;
        Ok((self.queue, self.engine))
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Answers what the disk has finished, takes in what the driver offers, tells the driver once.
    fn work(&mut self) {
        self.answer_finished();
        if self.broken {
            return;
        }
        let memory = self.memory.memory().into_inner();
        let taken = self.take_in(&memory);
        self.commit();
        // What the cache could answer has finished already.
        self.answer_finished();
        if let Err(error) = taken {
            self.fail(error);
        }
    }

    /// Submits what is tried again, then what the driver offers, as far as the limits allow.
    fn take_in(&mut self, memory: &Arc<Memory>) -> Served {
        let mut answered = false;
        let result = self.take_all(memory, &mut answered);
        if answered {
            self.queue.notify(memory, &*self.interrupt)?;
        }
        result
    }

    fn take_all(&mut self, memory: &Arc<Memory>, answered: &mut bool) -> Served {
        let mut left = QUEUE_SIZE;
        loop {
            self.queue.queue.disable_notification(&**memory)?;
            // Without a free tag, a completion brings us back here; while something failed is held, a new start does.
            while !self.engine.held.waits()
                && let Some(tag) = self.free.last().copied()
            {
                if left == 0 {
                    // A driver that never ends must not hold a thread that serves others too.
                    let _ = self.queue.kick.write(1);
                    return Ok(());
                }
                let Some((head, begun)) = self.begin_next(memory, tag)? else {
                    break;
                };
                left -= 1;
                match begun {
                    Begun::Submitted => {
                        self.free.pop();
                    }
                    Begun::Answered(written) => {
                        self.queue.complete(memory, head, written)?;
                        *answered = true;
                    }
                    Begun::Held => {}
                    // The timer brings us back here.
                    Begun::Deferred => return Ok(()),
                }
            }
            let full = self.engine.held.waits() || self.free.is_empty();
            if full || !self.queue.queue.enable_notification(&**memory)? {
                return Ok(());
            }
        }
    }

    /// Begins with the next request, one that is tried again first; gives its head.
    fn begin_next(
        &mut self,
        memory: &Arc<Memory>,
        tag: u16,
    ) -> std::result::Result<Option<(u16, Begun)>, virtio_queue::Error> {
        if let Some(head) = self.engine.held.next() {
            let begun = self.begin(memory, head, self.queue.again(memory, head), tag);
            if let Begun::Deferred = begun {
                self.engine.held.undo_next(head);
            }
            return Ok(Some((head, begun)));
        }
        let Some(chain) = self.queue.pop(memory)? else {
            return Ok(None);
        };
        let head = chain.head_index();
        let begun = self.begin(memory, head, chain, tag);
        if let Begun::Deferred = begun {
            self.queue.undo_pop();
        }
        Ok(Some((head, begun)))
    }

    fn begin(
        &mut self,
        memory: &Arc<Memory>,
        head: u16,
        chain: impl Iterator<Item = Descriptor>,
        tag: u16,
    ) -> Begun {
        let rules = self.shared.rules(self.features);
        let Request {
            work,
            data,
            len,
            status,
            writable,
        } = match request::parse(memory, chain, &rules) {
            Ok(request) => request,
            Err(refusal) => {
                self.shared.counters.refuse();
                return Begun::Answered(refuse(memory, refusal));
            }
        };
        if !self.engine.throttle.admit(u64::from(len)) {
            return Begun::Deferred;
        }
        let op = match work {
            Work::Disk(op) => op,
            Work::Nothing => return Begun::Answered(answer(memory, status, OK, writable, 0)),
            Work::Id => return Begun::Answered(self.identify(memory, data, status, writable)),
        };
        let in_flight = InFlight {
            head,
            status,
            writable,
            kind: Kind::of(&op),
            len,
            started: Instant::now(),
        };
        let Ok(buffer) = GuestBuffer::new(Arc::clone(memory), data) else {
            // The driver's failure, not the disk's.
            self.shared.counters.refuse();
            return Begun::Answered(answer(memory, status, IOERR, writable, 0));
        };
        let submitted = self.engine.disk.submit(tag, op, buffer);
        match (submitted, self.slots.get_mut(usize::from(tag))) {
            (Ok(()), Some(slot)) => {
                *slot = Some(in_flight);
                Begun::Submitted
            }
            (submitted, _) => {
                let why = submitted
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::InvalidInput.into());
                match self.conclude(memory, &in_flight, Err(why)) {
                    Some(written) => Begun::Answered(written),
                    None => Begun::Held,
                }
            }
        }
    }

    /// Answers a request for the serial number.
    fn identify(
        &self,
        memory: &Memory,
        data: Vec<request::Range>,
        status: GuestAddress,
        writable: u32,
    ) -> u32 {
        let mut id = self.shared.serial.as_slice();
        for (address, len) in data {
            let (now, later) = id.split_at(len.min(id.len()));
            if memory.write_slice(now, address).is_err() {
                return answer(memory, status, IOERR, writable, 0);
            }
            id = later;
        }
        let written = ID_BYTES - id.len();
        answer(memory, status, OK, writable, written as u32)
    }

    /// Starts what was submitted. What the kernel does not take now is tried again in a moment.
    fn commit(&mut self) {
        if let Err(error) = self.engine.disk.commit() {
            log::debug!("blk: the kernel takes no more now: {error}");
            let _ = self.engine.disk.completion().write(1);
        }
    }

    /// Gives what the disk has finished back to the driver and tells it once.
    fn answer_finished(&mut self) {
        let Some(first) = self.engine.disk.reap() else {
            return;
        };
        let memory = self.memory.memory().into_inner();
        let mut result = Ok(());
        let mut next = Some(first);
        while let Some(completion) = next {
            result = result.and(self.answer_one(&memory, completion));
            next = self.engine.disk.reap();
        }
        if let Err(error) = result.and_then(|()| self.queue.notify(&memory, &*self.interrupt)) {
            self.fail(error);
        }
    }

    fn answer_one(&mut self, memory: &Memory, completion: Completion) -> Served {
        let Completion { tag, buffer, result } = completion;
        let Some(done) = self.slots.get_mut(usize::from(tag)).and_then(Option::take) else {
            log::error!("blk: the disk finished {tag}, which it does not have");
            return Ok(());
        };
        self.free.push(tag);
        if done.kind == Kind::Read {
            // What came of a failed read is not known: all of it may have.
            buffer.mark_written(done.len as usize);
        }
        match self.conclude(memory, &done, result) {
            Some(written) => self.queue.complete(memory, done.head, written),
            None => Ok(()),
        }
    }

    /// Counts a request that the disk is done with and writes its status; gives the used length. A request that is
    /// held has neither.
    fn conclude(&mut self, memory: &Memory, done: &InFlight, result: io::Result<u32>) -> Option<u32> {
        let result = result.and_then(|moved| whole(done, moved));
        self.shared
            .counters
            .record(done.kind, done.len, done.started, result.is_ok());
        let status = match result {
            Ok(()) => OK,
            Err(error) => {
                let name = self.shared.disk.name();
                self.complaint
                    .log(format_args!("disk {name}: {:?} failed: {error}", done.kind));
                let verdict = self.shared.on_error.verdict(done.kind, error.kind());
                if verdict.answer.is_none() {
                    self.engine.held.keep(done.head);
                }
                if verdict.stops {
                    self.shared.failed(error);
                }
                verdict.answer?
            }
        };
        let data = match done.kind {
            Kind::Read if status == OK => done.len,
            _ => 0,
        };
        Some(answer(memory, done.status, status, done.writable, data))
    }

    fn fail(&mut self, error: virtio_queue::Error) {
        if !std::mem::replace(&mut self.broken, true) {
            let index = self.queue.index;
            let what = format_args!("queue {index} is malformed, the driver must reset: {error}");
            self.complaint.log(what);
            self.interrupt.needs_reset();
        }
    }
}

enum Begun {
    /// The disk has it.
    Submitted,
    /// It is done; this many bytes were written for the driver.
    Answered(u32),
    /// It failed, and is tried again when the queue is started again.
    Held,
    /// The rate limit does not let it start yet.
    Deferred,
}

/// A short transfer is no success: the driver was promised all of it. Storage writes less than it is given where it
/// has no more room.
fn whole(done: &InFlight, moved: u32) -> io::Result<()> {
    let (expected, kind) = match done.kind {
        Kind::Read => (done.len, io::ErrorKind::UnexpectedEof),
        Kind::Write => (done.len, io::ErrorKind::StorageFull),
        Kind::Flush | Kind::Discard | Kind::WriteZeroes => (0, io::ErrorKind::InvalidData),
    };
    match moved == expected {
        true => Ok(()),
        false => Err(io::Error::new(
            kind,
            format!("only {moved} of {expected} bytes were moved"),
        )),
    }
}

/// Writes the status byte. Gives the used length: what was written without a gap from the first byte that the
/// device may write (§2.7.8.2), `data` of `writable` bytes before the status.
fn answer(memory: &Memory, address: GuestAddress, status: u8, writable: u32, data: u32) -> u32 {
    if memory.write_obj(status, address).is_err() {
        return 0;
    }
    if data == writable { data + 1 } else { data }
}

fn refuse(memory: &Memory, refusal: Refusal) -> u32 {
    match refusal {
        Refusal::Unanswerable => 0,
        Refusal::Status { code, status, used } => match memory.write_obj(code, status) {
            Ok(()) => used,
            Err(_) => 0,
        },
    }
}

impl MutEventSubscriber for BlkQueue {
    fn init(&mut self, ops: &mut EventOps) {
        // Doorbell and completions are told at each signal, so that they need not be read: a system call less for each.
        let each = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let watched = [
            Events::new(&self.queue.kick, each),
            Events::new(self.engine.disk.completion(), each),
            Events::new(self.engine.throttle.timer(), EventSet::IN),
        ];
        for events in watched {
            if let Err(error) = ops.add(events) {
                log::error!("blk: cannot watch a descriptor: {error:?}");
            }
        }
        // What the driver offered before we ran (a restore, a resume) has rung no doorbell of ours.
        let _ = self.queue.kick.write(1);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.engine.throttle.timer().as_raw_fd() {
            self.engine.throttle.acknowledge();
        }
        self.work();
    }
}
