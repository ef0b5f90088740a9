//! The socket device's queues while a worker serves them: packets in, packets out, and which socket each
//! belongs to.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::{QueueT, Reader};
use vm_memory::GuestAddressSpace;
use vm_memory::bitmap::BitmapSlice;

use super::connection::{Connection, Phase, Verdict};
use super::event::tell_of_reset;
use super::host::{Host, Key, LISTENER, Peer};
use super::packet::{HEADER, Header, Op, STREAM};
use super::receive::Receive;
use super::unix::{CHUNK, Greeting};
use crate::complaint::Complaint;
use crate::irq::Interrupt;
use crate::memory::{Memory, SharedMemory};
use crate::virtio::{Activation, ActiveQueue, Served};

/// The host's context (§5.10.4).
const HOST_CID: u64 = 2;
/// RSTs for packets of no stream, kept until the guest has a buffer; more stop its sending.
const MAX_REPLIES: usize = 64;
/// Buffers that one stream may fill before others get their turn.
const TURN: usize = 16;

/// All that the I/O thread owns of a socket device.
pub struct VsockQueues {
    cid: u64,
    host: Host,
    receive: Receive,
    transmit: Option<ActiveQueue>,
    event: Option<ActiveQueue>,
    memory: SharedMemory,
    interrupt: Arc<dyn Interrupt>,
    complaint: Complaint,
    /// Streams that have something to say.
    due: BTreeSet<Key>,
    /// Streams that are not read before the guest has a buffer.
    hungry: BTreeSet<Key>,
    /// Too many replies wait; the guest's packets stay in its ring.
    stalled: bool,
    /// The driver broke the rules; nothing is served until it resets.
    broken: bool,
}

impl VsockQueues {
    /// `host` with the queues of `activation`.
    pub fn new(activation: Activation, cid: u64, host: Host) -> Self {
        let [mut receive, mut transmit, mut event] = [None, None, None];
        for queue in activation.queues {
            match queue.index {
                0 => receive = Some(queue),
                1 => transmit = Some(queue),
                _ => event = Some(queue),
            }
        }
        VsockQueues {
            cid,
            due: host.streams.keys().copied().collect(),
            hungry: host.streams.keys().copied().collect(),
            host,
            receive: Receive::new(receive),
            transmit,
            event,
            memory: activation.memory,
            interrupt: activation.interrupt,
            complaint: Complaint::new("vsock"),
            stalled: false,
            broken: false,
        }
    }

    /// The queues with nothing in flight, and the host's side.
    pub fn stop(self) -> (Vec<ActiveQueue>, Host) {
        let queues = [self.receive.queue, self.transmit, self.event];
        (queues.into_iter().flatten().collect(), self.host)
    }

    fn serve(&mut self, token: u32, ready: EventSet, ops: &mut EventOps) -> Served {
        let memory = self.memory.memory().into_inner();
        match token {
            0 => {
                self.receive.starved = false;
                for key in std::mem::take(&mut self.hungry) {
                    self.settle(key, ops);
                }
            }
            1 => self.transmit(&memory, ops)?,
            2 => {}
            LISTENER => self.accept(ops),
            _ => self.peer_ready(token, ready, &memory, ops)?,
        }
        if let Some(queue) = &mut self.event {
            tell_of_reset(queue, &memory, &*self.interrupt, &mut self.host.reset_due)?;
        }
        self.send_due(&memory, ops)?;
        self.receive.notify(&memory, &*self.interrupt)?;
        if self.stalled
            && self.host.replies.len() < MAX_REPLIES
            && let Some(queue) = &self.transmit
        {
            self.stalled = false;
            let _ = queue.kick.write(1);
        }
        // Not for its own event: an accept that fails would then fail again at once.
        if token != LISTENER {
            let room = !self.host.full();
            self.host.listen(room, ops);
        }
        Ok(())
    }

    /// Programs of the host call.
    fn accept(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.host.accept(ops) {
            self.complaint
                .log(format_args!("cannot accept a caller: {error}"));
            // Until something else happens; it may have freed a descriptor.
            self.host.listen(false, ops);
        } else if self.host.full() {
            self.host.listen(false, ops);
        }
    }

    /// A socket of the host can be read or written.
    fn peer_ready(
        &mut self,
        token: u32,
        ready: EventSet,
        memory: &Arc<Memory>,
        ops: &mut EventOps,
    ) -> Served {
        match self.host.peers.get_mut(&token) {
            None => Ok(()),
            Some(Peer::Caller(caller)) => {
                match caller.listen() {
                    Greeting::Unfinished => {}
                    greeting => {
                        caller.watch(token, false, ops);
                        let caller = self.host.peers.remove(&token);
                        if let (Greeting::Port(port), Some(Peer::Caller(caller))) = (greeting, caller) {
                            let key = self.host.connect(token, caller, port);
                            self.settle(key, ops);
                        }
                    }
                }
                Ok(())
            }
            Some(&mut Peer::Stream(key)) => {
                let Some(stream) = self.host.streams.get_mut(&key) else {
                    return Ok(());
                };
                if stream.connection.phase() == Phase::Requested {
                    // Watched for a hang-up only.
                    stream.connection.fail();
                }
                if ready.contains(EventSet::OUT) {
                    stream.flush();
                }
                if ready != EventSet::OUT {
                    self.pull(key, ready.contains(EventSet::HANG_UP), memory)?;
                }
                self.settle(key, ops);
                Ok(())
            }
        }
    }

    /// After a change of a stream: notes what is due and awaited, forgets it when it is over.
    fn settle(&mut self, key: Key, ops: &mut EventOps) {
        let Some(stream) = self.host.streams.get_mut(&key) else {
            return;
        };
        stream.settle(!self.receive.starved, ops);
        if stream.connection.phase() == Phase::Gone {
            self.host.forget(key);
            self.due.remove(&key);
            self.hungry.remove(&key);
            return;
        }
        if stream.connection.next().is_some() {
            self.due.insert(key);
        }
        if self.receive.starved && stream.connection.to_read() > 0 {
            self.hungry.insert(key);
        }
    }

    /// The header of a packet for the guest, with our credit.
    fn header(cid: u64, key: Key, connection: &mut Connection, op: Op, flags: u32, len: usize) -> Header {
        let (buf_alloc, fwd_cnt) = connection.credit.tell();
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            len: len as u32,
            kind: STREAM,
            op: Some(op),
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Moves what the host wrote to the guest, one turn.
    fn pull(&mut self, key: Key, hung_up: bool, memory: &Arc<Memory>) -> Served {
        let mut bytes = [0; CHUNK];
        for _ in 0..TURN {
            let allowed = match self.host.streams.get(&key) {
                Some(stream) if !self.due.contains(&key) => stream.connection.to_read(),
                // What is due goes first: data must not overtake a response.
                _ => 0,
            };
            if allowed == 0 {
                break;
            }
            let Some((chain, room)) = self.receive.next(memory, &mut self.complaint)? else {
                break;
            };
            let Some(stream) = self.host.streams.get_mut(&key) else {
                break;
            };
            let max = room.min(allowed as usize).min(CHUNK);
            let read = match max {
                0 => None,
                _ => stream.read(bytes.get_mut(..max).unwrap_or_default(), hung_up),
            };
            let Some(data) = read.and_then(|len| bytes.get(..len)) else {
                if max == 0 {
                    // A guest whose buffers hold no data gets none; the header alone moves it on.
                    self.complaint.log("a receive buffer has no room for data");
                    let header = Self::header(self.cid, key, &mut stream.connection, Op::CreditUpdate, 0, 0);
                    self.receive.fill(memory, chain, &header, &[])?;
                    continue;
                }
                self.receive.put_back();
                break;
            };
            stream.connection.sent(data.len() as u32);
            let header = Self::header(self.cid, key, &mut stream.connection, Op::Rw, 0, data.len());
            self.receive.fill(memory, chain, &header, data)?;
        }
        Ok(())
    }

    /// Says what is due, as far as the guest has buffers: replies first, then each stream in turn.
    fn send_due(&mut self, memory: &Arc<Memory>, ops: &mut EventOps) -> Served {
        while !self.host.replies.is_empty() {
            let Some((chain, _)) = self.receive.next(memory, &mut self.complaint)? else {
                return Ok(());
            };
            if let Some(header) = self.host.replies.pop_front() {
                self.receive.fill(memory, chain, &header, &[])?;
            }
        }
        while let Some(&key) = self.due.first() {
            let next = self
                .host
                .streams
                .get(&key)
                .and_then(|stream| stream.connection.next());
            let Some((op, flags)) = next else {
                self.due.remove(&key);
                continue;
            };
            let Some((chain, _)) = self.receive.next(memory, &mut self.complaint)? else {
                return Ok(());
            };
            if let Some(stream) = self.host.streams.get_mut(&key) {
                let header = Self::header(self.cid, key, &mut stream.connection, op, flags, 0);
                stream.connection.said(op, flags);
                self.receive.fill(memory, chain, &header, &[])?;
            }
            self.due.remove(&key);
            self.settle(key, ops);
        }
        Ok(())
    }

    /// Takes the guest's packets, one round of them.
    fn transmit(&mut self, memory: &Arc<Memory>, ops: &mut EventOps) -> Served {
        let Some(mut queue) = self.transmit.take() else {
            return Ok(());
        };
        let done = self.transmit_from(&mut queue, memory, ops);
        self.transmit = Some(queue);
        done
    }

    fn transmit_from(&mut self, queue: &mut ActiveQueue, memory: &Arc<Memory>, ops: &mut EventOps) -> Served {
        let mut taken = false;
        queue.queue.disable_notification(&**memory)?;
        let mut left = queue.queue.size();
        while left > 0 {
            if self.host.replies.len() >= MAX_REPLIES {
                self.stalled = true;
                break;
            }
            left -= 1;
            let Some(chain) = queue.pop(memory)? else {
                if queue.queue.enable_notification(&**memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            match chain.reader(memory) {
                Ok(reader) => self.packet(reader, ops),
                Err(_) => self.complaint.log("a packet is not in memory"),
            }
            queue.complete(memory, head, 0)?;
            taken = true;
        }
        if left == 0 {
            let _ = queue.kick.write(1);
        }
        match taken {
            true => queue.notify(memory, &*self.interrupt),
            false => Ok(()),
        }
    }

    /// One packet of the guest.
    fn packet<B: BitmapSlice>(&mut self, mut chain: Reader<B>, ops: &mut EventOps) {
        let mut bytes = [0; HEADER];
        if chain.read_exact(&mut bytes).is_err() {
            self.complaint.log("a packet is shorter than its header");
            return;
        }
        let header = Header::parse(&bytes);
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            self.complaint.log(format_args!(
                "a packet from context {} to context {} is dropped",
                header.src_cid, header.dst_cid
            ));
            return;
        }
        let key = Key {
            guest_port: header.src_port,
            host_port: header.dst_port,
        };
        let whole = header.len as usize <= chain.available_bytes();
        match self.host.streams.get_mut(&key) {
            Some(stream) if header.kind == STREAM => {
                let verdict = match whole {
                    true => stream.connection.hear(&header),
                    false => stream.connection.fail(),
                };
                match verdict {
                    Verdict::Heard | Verdict::Close => {}
                    Verdict::Opened => stream.greet(key.host_port),
                    Verdict::Deliver => {
                        if stream.deliver(&mut chain, header.len).is_err() {
                            stream.connection.fail();
                        }
                    }
                }
                if verdict == Verdict::Close && header.op != Some(Op::Rst) {
                    self.complaint.log(format_args!(
                        "a stream ends, its guest is out of order: {header:?}"
                    ));
                }
                self.settle(key, ops);
            }
            None if header.kind == STREAM && header.op == Some(Op::Request) && whole => {
                match self.host.call(key, &header) {
                    Ok(()) => self.settle(key, ops),
                    Err(error) => {
                        self.complaint
                            .log(format_args!("nobody takes port {}: {error}", key.host_port));
                        self.refuse(&header);
                    }
                }
            }
            _ => self.refuse(&header),
        }
    }

    /// Answers a packet that belongs to no stream with an RST; an RST is not answered (§5.10.6.4).
    fn refuse(&mut self, header: &Header) {
        if header.op != Some(Op::Rst) {
            self.host.replies.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                len: 0,
                kind: header.kind,
                op: Some(Op::Rst),
                flags: 0,
                buf_alloc: 0,
                fwd_cnt: 0,
            });
        }
    }
}

impl MutEventSubscriber for VsockQueues {
    fn init(&mut self, ops: &mut EventOps) {
        for queue in [&self.receive.queue, &self.transmit, &self.event]
            .into_iter()
            .flatten()
        {
            let events = Events::with_data(&queue.kick, u32::from(queue.index), EventSet::IN);
            if let Err(error) = ops.add(events) {
                log::error!("vsock: cannot watch a doorbell: {error:?}");
            }
            let _ = queue.kick.write(1);
        }
        self.host.begin(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let token = events.data();
        let queues = [&self.receive.queue, &self.transmit, &self.event];
        if let Some(queue) = queues
            .into_iter()
            .flatten()
            .find(|queue| u32::from(queue.index) == token)
        {
            let _ = queue.kick.read();
        }
        if self.broken {
            return;
        }
        if let Err(error) = self.serve(token, events.event_set(), ops) {
            self.broken = true;
            self.host.end(ops);
            self.complaint.log(format_args!(
                "a queue is malformed, the driver must reset: {error}"
            ));
            self.interrupt.needs_reset();
        }
    }
}
