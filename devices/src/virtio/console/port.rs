//! One port: bytes between the guest's two queues and the host's socket.
//!
//! No chain stays popped between two events: what does not fit the socket is put back with a note of how much
//! of it is gone, and a receive buffer for which there is no byte is put back too. So nothing is in flight
//! when the device stops, and neither side can make us store what the other does not take.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use virtio_queue::{QueueT, Reader};
use vm_memory::bitmap::BitmapSlice;

use super::control::Agreement;
use crate::complaint::Complaint;
use crate::irq::Interrupt;
use crate::memory::Memory;
use crate::virtio::{ActiveQueue, Served};

/// What is moved at a time.
const CHUNK: usize = 4096;
/// What is sent of one chain before others get their turn; a chain may be 4 GiB long.
const TURN: u32 = 64 * 1024;

/// A port of a console.
pub struct Port {
    /// Name for the guest, as in `/dev/virtio-ports/NAME`.
    pub name: String,
    /// What the driver knows of it.
    pub agreement: Agreement,
    /// Host to guest, while the device runs.
    pub receive: Option<ActiveQueue>,
    /// Guest to host, while the device runs.
    pub transmit: Option<ActiveQueue>,
    /// The host's side; gone once it has hung up.
    host: Option<UnixStream>,
    watched: EventSet,
    /// The guest has no buffer for us.
    starved: bool,
    /// The socket takes nothing more.
    blocked: bool,
}

/// What became of a chain that was to be sent.
enum Sent {
    Whole,
    Part(u32),
}

impl Port {
    /// A port whose host's side is `host`, not blocking.
    pub fn new(name: String, console: bool, host: UnixStream) -> Self {
        Port {
            agreement: Agreement::new(console, !name.is_empty(), true),
            name,
            receive: None,
            transmit: None,
            host: Some(host),
            watched: EventSet::empty(),
            starved: false,
            blocked: false,
        }
    }

    /// Another loop watches from now on: nothing is known of either side.
    pub fn begin(&mut self) {
        self.watched = EventSet::empty();
        self.starved = false;
        self.blocked = false;
    }

    /// Watches the host's side for what can be done now: nothing where `idle`. A socket is never left in the
    /// loop without need, since it reports a hang-up again and again.
    pub fn watch(&mut self, token: u32, idle: bool, ops: &mut EventOps) {
        let Some(host) = &self.host else {
            return;
        };
        let mut wanted = EventSet::empty();
        wanted.set(
            EventSet::IN,
            !idle && self.receive.is_some() && self.agreement.state.guest_open && !self.starved,
        );
        wanted.set(EventSet::OUT, !idle && self.blocked);
        let events = Events::with_data(host, token, wanted);
        let done = match (self.watched.is_empty(), wanted.is_empty()) {
            _ if self.watched == wanted => Ok(()),
            (true, _) => ops.add(events),
            (false, true) => ops.remove(events),
            (false, false) => ops.modify(events),
        };
        match done {
            Ok(()) => self.watched = wanted,
            Err(error) => log::error!("console: cannot watch port {}: {error:?}", self.name),
        }
    }

    /// The guest has buffers again.
    pub fn fed(&mut self) {
        self.starved = false;
    }

    /// The host has hung up: what the guest still sends is dropped, and it will be told.
    fn hang_up(&mut self, ops: &mut EventOps) {
        if let Some(host) = self.host.take()
            && !self.watched.is_empty()
            && let Err(error) = ops.remove(Events::empty(&host))
        {
            log::error!("console: cannot forget port {}: {error:?}", self.name);
        }
        self.watched = EventSet::empty();
        self.blocked = false;
        self.agreement.host_open = false;
    }

    /// Moves what the host wrote into the guest's buffers, one round of them.
    ///
    /// # Errors
    /// When the queue is malformed.
    pub fn receive(
        &mut self,
        memory: &Arc<Memory>,
        interrupt: &dyn Interrupt,
        complaint: &mut Complaint,
        ops: &mut EventOps,
    ) -> Served {
        let (Some(queue), Some(host)) = (&mut self.receive, &mut self.host) else {
            return Ok(());
        };
        if !self.agreement.state.guest_open {
            return Ok(());
        }
        let mut hung_up = false;
        let mut filled = false;
        let mut bytes = [0; CHUNK];
        queue.queue.disable_notification(&**memory)?;
        // The socket stays readable for the next round.
        for _ in 0..queue.queue.size() {
            let Some(chain) = queue.pop(memory)? else {
                if queue.queue.enable_notification(&**memory)? {
                    continue;
                }
                self.starved = true;
                break;
            };
            let head = chain.head_index();
            let mut writer = match chain.writer(memory) {
                Ok(writer) if writer.available_bytes() > 0 => writer,
                _ => {
                    complaint.log("a receive buffer cannot be written");
                    queue.complete(memory, head, 0)?;
                    filled = true;
                    continue;
                }
            };
            let room = writer.available_bytes().min(CHUNK);
            match host.read(bytes.get_mut(..room).unwrap_or_default()) {
                Ok(0) => hung_up = true,
                Ok(len) => {
                    let written = writer.write_all(bytes.get(..len).unwrap_or_default());
                    let len = written.map_or(0, |()| len as u32);
                    queue.complete(memory, head, len)?;
                    filled = true;
                    continue;
                }
                Err(error) => {
                    hung_up = !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                }
            }
            queue.undo_pop();
            break;
        }
        if filled {
            queue.notify(memory, interrupt)?;
        }
        if hung_up {
            self.hang_up(ops);
        }
        Ok(())
    }

    /// Moves what the guest sends to the host, one round of chains.
    ///
    /// # Errors
    /// When the queue is malformed.
    pub fn transmit(
        &mut self,
        memory: &Arc<Memory>,
        interrupt: &dyn Interrupt,
        complaint: &mut Complaint,
        ops: &mut EventOps,
    ) -> Served {
        let Some(queue) = &mut self.transmit else {
            return Ok(());
        };
        self.blocked = false;
        let mut hung_up = self.host.is_none();
        let mut taken = false;
        let mut left = queue.queue.size();
        queue.queue.disable_notification(&**memory)?;
        while left > 0 {
            left -= 1;
            let Some(chain) = queue.pop(memory)? else {
                if queue.queue.enable_notification(&**memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let sent = match (&mut self.host, chain.reader(memory)) {
                (Some(host), Ok(reader)) if !hung_up => send(host, reader, self.agreement.state.sent)
                    .unwrap_or_else(|_| {
                        hung_up = true;
                        Sent::Whole
                    }),
                (_, Ok(_)) => Sent::Whole,
                (_, Err(_)) => {
                    complaint.log("a transmit buffer cannot be read");
                    Sent::Whole
                }
            };
            match sent {
                Sent::Whole => {
                    self.agreement.state.sent = 0;
                    queue.complete(memory, head, 0)?;
                    taken = true;
                }
                Sent::Part(sent) => {
                    self.agreement.state.sent = sent;
                    queue.undo_pop();
                    self.blocked = true;
                    break;
                }
            }
        }
        if left == 0 && !self.blocked {
            let _ = queue.kick.write(1);
        }
        if taken {
            queue.notify(memory, interrupt)?;
        }
        if hung_up {
            self.hang_up(ops);
        }
        Ok(())
    }
}

/// Writes what `chain` holds to the host, without the first `sent` bytes, as far as the host takes it.
fn send<B: BitmapSlice>(host: &mut UnixStream, mut chain: Reader<B>, sent: u32) -> std::io::Result<Sent> {
    let Ok(mut rest) = chain.split_at(sent as usize) else {
        return Ok(Sent::Whole);
    };
    let mut total = sent;
    let mut bytes = [0; CHUNK];
    loop {
        let len = rest.read(&mut bytes)?;
        let mut left = bytes.get(..len).unwrap_or_default();
        if left.is_empty() {
            return Ok(Sent::Whole);
        }
        if total - sent >= TURN {
            return Ok(Sent::Part(total));
        }
        while !left.is_empty() {
            match host.write(left) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => {
                    left = left.get(len..).unwrap_or_default();
                    total = total.saturating_add(len as u32);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Sent::Part(total)),
                Err(error) => return Err(error),
            }
        }
    }
}
