//! From the network to the guest (virtio 1.2, §5.1.6.3, §5.1.6.4).
//!
//! The driver's buffers are taken ahead and kept, so that a frame is read straight into as many of them as it
//! may need. Only where they are too few for the largest frame is it read into memory of our own first; it is
//! kept there until the driver gives more.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM};
use virtio_queue::{Error, QueueT};

use super::MAX_FRAME;
use super::features::{GUEST_CSUM, MRG_RXBUF};
use super::nic::{Counter, NAME};
use crate::complaint::Complaint;
use crate::irq::{Interrupt, Vector};
use crate::memory::{GuestBuffer, Memory};
use crate::net::{Frame, HEADER_LEN, Header, NetBackend};
use crate::ratelimit::Throttle;
use crate::virtio::{ActiveQueue, Chain};

/// Ranges that one read may have; the kernel takes 1024.
const MAX_RANGES: usize = 1000;
/// Frames moved before other handlers of the worker have their turn.
const BUDGET: usize = 128;

/// What the receiver waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A frame, or a turn for more of them.
    Network,
    /// Buffers: watching the network would only spin.
    Driver,
    /// The rate limit.
    Timer,
}

/// A chain taken from the driver; without a buffer where it is malformed.
struct Posted {
    head: u16,
    buffer: Option<GuestBuffer>,
}

/// The receive queue while it is served.
pub struct Receiver {
    /// The ring.
    pub queue: ActiveQueue,
    mergeable: bool,
    guest_csum: bool,
    posted: VecDeque<Posted>,
    /// A frame with its header that waits for buffers: the first `held` bytes of `spare`.
    held: usize,
    spare: Vec<u8>,
    used: Vec<(u16, u32)>,
    complaint: Complaint,
    malformed_answered: bool,
    /// Its limits, where it has any.
    pub throttle: Option<Throttle>,
    /// The next frame may be read; how long it is shows only then, so that it is paid for with the one after.
    admitted: bool,
    unpaid: usize,
}

/// What became of one attempt.
enum Step {
    Delivered { several: bool },
    Dropped,
    NoFrame,
    NoBuffer,
    NotYet,
    Again,
}

/// What the buffers taken ahead can hold.
struct Room {
    bytes: usize,
    /// The driver has offered no more than these.
    all: bool,
}

impl Receiver {
    /// The queue of a driver with these features.
    pub fn new(queue: ActiveQueue, features: u64, throttle: Option<Throttle>) -> Self {
        Receiver {
            queue,
            mergeable: features & MRG_RXBUF != 0,
            guest_csum: features & GUEST_CSUM != 0,
            posted: VecDeque::new(),
            held: 0,
            spare: Vec::new(),
            used: Vec::new(),
            complaint: Complaint::new(NAME),
            malformed_answered: false,
            throttle,
            admitted: false,
            unpaid: 0,
        }
    }

    /// Moves frames until there are none, no buffers, or it is others' turn.
    ///
    /// # Errors
    /// When the ring is malformed.
    pub fn run(
        &mut self,
        memory: &Arc<Memory>,
        interrupt: &dyn Interrupt,
        backend: &dyn NetBackend,
        counters: &Counter,
    ) -> Result<io::Result<Waiting>, Error> {
        self.queue.queue.disable_notification(&**memory)?;
        let (mut told, mut several_told) = (true, false);
        let mut result = None;
        for _ in 0..BUDGET {
            match self.step(memory, backend, counters) {
                Ok(Ok(Step::Delivered { several })) => {
                    told = false;
                    several_told |= several;
                }
                Ok(Ok(Step::Dropped)) => counters.drop_one(),
                Ok(Ok(Step::Again)) => {}
                Ok(Ok(Step::NoFrame)) => {
                    result = Some(Ok(Waiting::Network));
                    break;
                }
                Ok(Ok(Step::NotYet)) => {
                    result = Some(Ok(Waiting::Timer));
                    break;
                }
                Ok(Ok(Step::NoBuffer)) => {
                    if !self.queue.queue.enable_notification(&**memory)? {
                        result = Some(Ok(Waiting::Driver));
                        break;
                    }
                    self.queue.queue.disable_notification(&**memory)?;
                }
                Ok(Err(error)) => {
                    result = Some(Err(error));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if !told || std::mem::take(&mut self.malformed_answered) {
            self.notify(memory, interrupt, several_told)?;
        }
        Ok(result.unwrap_or_else(|| {
            // The others have their turn, then we go on.
            let _ = self.queue.kick.write(1);
            Ok(Waiting::Network)
        }))
    }

    /// Throws away what the network has: the link is down, or frames go elsewhere.
    pub fn discard(&mut self, backend: &dyn NetBackend, counters: &Counter) -> io::Result<()> {
        if std::mem::take(&mut self.held) > 0 {
            counters.drop_one();
        }
        let mut header: Header = [0; HEADER_LEN];
        for _ in 0..BUDGET {
            match backend.receive(&mut Frame::new(&mut header)) {
                Ok(_) => counters.drop_one(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The queue as the driver sees it: buffers taken ahead were not taken. A frame kept is lost.
    pub fn into_queue(mut self, counters: &Counter) -> ActiveQueue {
        for _ in &self.posted {
            self.queue.undo_pop();
        }
        if self.held > 0 {
            counters.drop_one();
        }
        self.queue
    }

    fn notify(&mut self, memory: &Memory, interrupt: &dyn Interrupt, several: bool) -> Result<(), Error> {
        if !several {
            return self.queue.notify(memory, interrupt);
        }
        // The library counts chains given back together as one, so it cannot tell whether the driver waits
        // for one among them: it is told in any case.
        let _ = self.queue.queue.needs_notification(memory)?;
        if let Err(error) = interrupt.trigger(Vector::Queue(self.queue.index)) {
            log::warn!("{NAME}: interrupt of queue {} is lost: {error}", self.queue.index);
        }
        Ok(())
    }

    fn step(
        &mut self,
        memory: &Arc<Memory>,
        backend: &dyn NetBackend,
        counters: &Counter,
    ) -> Result<io::Result<Step>, Error> {
        let room = self.take_buffers(memory)?;
        if room.bytes == 0 {
            return Ok(Ok(if room.all { Step::NoBuffer } else { Step::Again }));
        }
        if self.held == 0 && !self.admit() {
            return Ok(Ok(Step::NotYet));
        }
        if self.held > 0 || (self.mergeable && room.bytes < MAX_FRAME) {
            self.step_through_spare(memory, backend, counters, &room)
        } else {
            self.step_directly(memory, backend, counters)
        }
    }

    /// Whether the rate limit lets the next frame pass.
    fn admit(&mut self) -> bool {
        if let Some(throttle) = &mut self.throttle
            && !self.admitted
        {
            self.admitted = throttle.admit(self.unpaid as u64);
            return self.admitted;
        }
        true
    }

    /// Notes that a frame of `len` bytes was read.
    fn pay_later(&mut self, len: usize) {
        (self.admitted, self.unpaid) = (false, len);
    }

    /// Reads the next frame straight into the driver's buffers.
    fn step_directly(
        &mut self,
        memory: &Arc<Memory>,
        backend: &dyn NetBackend,
        counters: &Counter,
    ) -> Result<io::Result<Step>, Error> {
        let mut header: Header = [0; HEADER_LEN];
        // A byte more than the buffers hold shows that a frame was cut off.
        let mut beyond = [0; 1];
        let mut frame = Frame::new(&mut header);
        let mut skip = HEADER_LEN;
        for buffer in self.usable() {
            frame.guest(buffer, skip);
            skip = 0;
        }
        frame.own(&mut beyond);
        let room = frame.len();
        let len = match backend.receive(&mut frame) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Ok(Step::NoFrame)),
            Err(error) => return Ok(Err(error)),
        };
        let mut left = len;
        for buffer in self.usable() {
            buffer.mark_written(left);
            left = left.saturating_sub(buffer.len());
        }
        self.pay_later(len);
        if len <= HEADER_LEN || len >= room || len > MAX_FRAME {
            return Ok(Ok(Step::Dropped));
        }
        self.finish_header(&mut header, len);
        if let Some(Posted {
            buffer: Some(first), ..
        }) = self.posted.front()
        {
            first.write(&header).map_err(Error::GuestMemory)?;
        }
        self.give_back(memory, len)?;
        counters.count(len - HEADER_LEN);
        Ok(Ok(Step::Delivered {
            several: self.used.len() > 1,
        }))
    }

    /// Reads the next frame into our own memory, unless one waits there, and copies it to the driver's buffers
    /// when they are enough.
    fn step_through_spare(
        &mut self,
        memory: &Arc<Memory>,
        backend: &dyn NetBackend,
        counters: &Counter,
        room: &Room,
    ) -> Result<io::Result<Step>, Error> {
        if self.held == 0 {
            self.spare.resize(MAX_FRAME + 1, 0);
            let Some((header, rest)) = self.spare.split_first_chunk_mut() else {
                return Ok(Ok(Step::Dropped));
            };
            let mut frame = Frame::new(header);
            frame.own(rest);
            let len = match backend.receive(&mut frame) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Ok(Step::NoFrame)),
                Err(error) => return Ok(Err(error)),
            };
            self.pay_later(len);
            if len <= HEADER_LEN || len > MAX_FRAME {
                return Ok(Ok(Step::Dropped));
            }
            self.held = len;
        }
        let len = self.held;
        if len > room.bytes {
            // The ring is full and yet not enough, or a malformed chain is in the way: waiting would not help.
            if !room.all || self.posted.len() >= usize::from(self.queue.queue.size()) {
                self.held = 0;
                return Ok(Ok(Step::Dropped));
            }
            return Ok(Ok(Step::NoBuffer));
        }
        self.held = 0;
        let mut spare = std::mem::take(&mut self.spare);
        if let Some(header) = spare.first_chunk_mut() {
            self.finish_header(header, len);
        }
        let mut left = spare.get(..len).unwrap_or_default();
        for buffer in self.usable() {
            let written = buffer.write(left).map_err(Error::GuestMemory)?;
            left = left.get(written..).unwrap_or_default();
        }
        self.spare = spare;
        self.give_back(memory, len)?;
        counters.count(len - HEADER_LEN);
        Ok(Ok(Step::Delivered {
            several: self.used.len() > 1,
        }))
    }

    /// The buffers that a frame may take, in order.
    fn usable(&self) -> impl Iterator<Item = &GuestBuffer> {
        self.posted
            .iter()
            .map_while(|posted| posted.buffer.as_ref())
            .take(if self.mergeable { usize::MAX } else { 1 })
    }

    /// Takes buffers until the largest frame fits. A malformed chain among them is answered when its turn
    /// comes, so that positions stay in order; until then nothing behind it is taken.
    fn take_buffers(&mut self, memory: &Arc<Memory>) -> Result<Room, Error> {
        // A driver that offers malformed chains as fast as we answer them must not hold us here.
        for _ in 0..self.queue.queue.size() {
            match self.posted.front() {
                Some(Posted { head, buffer: None }) => {
                    let head = *head;
                    self.posted.pop_front();
                    self.queue.complete(memory, head, 0)?;
                    self.malformed_answered = true;
                    self.complaint.log("a receive buffer is malformed");
                }
                Some(_) => break,
                None => {
                    let Some(chain) = self.queue.pop(memory)? else {
                        return Ok(Room { bytes: 0, all: true });
                    };
                    self.posted.push_back(post(chain, memory));
                }
            }
        }
        let (mut bytes, mut ranges) = (0, 0);
        for buffer in self.posted.iter().map_while(|posted| posted.buffer.as_ref()) {
            bytes += buffer.len();
            ranges += buffer.iovecs().len();
        }
        while self.mergeable && bytes < MAX_FRAME && ranges < MAX_RANGES / 2 {
            if self.posted.back().is_some_and(|posted| posted.buffer.is_none()) {
                return Ok(Room { bytes, all: false });
            }
            let Some(chain) = self.queue.pop(memory)? else {
                return Ok(Room { bytes, all: true });
            };
            let posted = post(chain, memory);
            if let Some(buffer) = &posted.buffer {
                bytes += buffer.len();
                ranges += buffer.iovecs().len();
            }
            self.posted.push_back(posted);
        }
        Ok(Room { bytes, all: false })
    }

    /// Makes a header of the network one that this driver may see (§5.1.6.4.1).
    fn finish_header(&self, header: &mut Header, len: usize) {
        let mut left = len;
        let mut count = 0u16;
        for buffer in self.usable() {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(buffer.len());
            count = count.saturating_add(1);
        }
        let [flags, .., count_low, count_high] = header;
        let known = (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID) as u8;
        *flags &= if self.guest_csum { known } else { 0 };
        [*count_low, *count_high] = count.to_le_bytes();
    }

    /// Gives the first buffers back, `len` bytes of them written; all at once, since the driver takes a frame
    /// as soon as it sees its first buffer.
    fn give_back(&mut self, memory: &Memory, len: usize) -> Result<(), Error> {
        self.used.clear();
        let mut left = len;
        while left > 0 {
            let Some(Posted {
                head,
                buffer: Some(buffer),
            }) = self.posted.pop_front()
            else {
                break;
            };
            let here = left.min(buffer.len());
            left -= here;
            self.used.push((head, here as u32));
        }
        self.queue.complete_together(memory, &self.used)
    }
}

/// What the driver offers with `chain`: device-writable ranges with room for the header (§5.1.6.3.1), and an end.
fn post(chain: Chain, memory: &Arc<Memory>) -> Posted {
    let head = chain.head_index();
    let mut ranges = Vec::with_capacity(1);
    let mut ended = false;
    for descriptor in chain {
        if !descriptor.is_write_only() || ranges.len() == MAX_RANGES / 2 {
            return Posted { head, buffer: None };
        }
        if descriptor.len() > 0 {
            ranges.push((descriptor.addr(), descriptor.len() as usize));
        }
        ended = !descriptor.has_next();
    }
    if !ended {
        return Posted { head, buffer: None };
    }
    let buffer = GuestBuffer::new(Arc::clone(memory), ranges)
        .ok()
        .filter(|buffer| buffer.len() >= HEADER_LEN && buffer.iovecs().len() <= MAX_RANGES / 2);
    Posted { head, buffer }
}
