//! The console's queues while a worker serves them.

use std::io::{Read, Write};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::control::{MESSAGE, Message, Request};
use super::port::Port;
use crate::complaint::Complaint;
use crate::irq::Interrupt;
use crate::memory::{Memory, SharedMemory};
use crate::virtio::{Activation, ActiveQueue, Chain, Served};

/// Queues have their index as token in the event loop, the sockets of ports what follows.
const SOCKETS: u32 = 1 << 16;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// What a queue is for (§5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    ControlReceive,
    ControlTransmit,
}

impl Role {
    fn of(index: u16) -> Role {
        match index {
            CONTROL_RECEIVE => Role::ControlReceive,
            CONTROL_TRANSMIT => Role::ControlTransmit,
            _ => {
                // Port 0 came first, then the control queues, then the other ports.
                let port = usize::from(if index < 2 { 0 } else { index / 2 - 1 });
                match index % 2 {
                    0 => Role::Receive(port),
                    _ => Role::Transmit(port),
                }
            }
        }
    }
}

/// All that the I/O thread owns of a console.
pub struct ConsoleQueues {
    ports: Vec<Port>,
    control_receive: Option<ActiveQueue>,
    control_transmit: Option<ActiveQueue>,
    /// Those without a use, as the driver set them up without the feature that they belong to.
    idle: Vec<ActiveQueue>,
    memory: SharedMemory,
    interrupt: Arc<dyn Interrupt>,
    complaint: Complaint,
    /// The driver broke the rules; nothing is served until it resets.
    broken: bool,
}

impl ConsoleQueues {
    /// `ports` with the queues of `activation`.
    pub fn new(activation: Activation, multiport: bool, mut ports: Vec<Port>) -> Self {
        let (mut control_receive, mut control_transmit, mut idle) = (None, None, Vec::new());
        for port in &mut ports {
            port.begin();
        }
        for queue in activation.queues {
            let role = Role::of(queue.index);
            match (role, role_port(role).and_then(|port| ports.get_mut(port))) {
                _ if !multiport && queue.index >= 2 => idle.push(queue),
                (Role::ControlReceive, _) => control_receive = Some(queue),
                (Role::ControlTransmit, _) => control_transmit = Some(queue),
                (Role::Receive(_), Some(port)) => port.receive = Some(queue),
                (Role::Transmit(_), Some(port)) => port.transmit = Some(queue),
                (_, None) => idle.push(queue),
            }
        }
        if !multiport && let Some(port) = ports.first_mut() {
            port.agreement.without_control();
        }
        ConsoleQueues {
            ports,
            control_receive,
            control_transmit,
            idle,
            memory: activation.memory,
            interrupt: activation.interrupt,
            complaint: Complaint::new("console"),
            broken: false,
        }
    }

    /// The queues with nothing in flight, and the ports.
    pub fn stop(mut self) -> (Vec<ActiveQueue>, Vec<Port>) {
        let mut queues = self.idle;
        queues.extend(self.control_receive.take());
        queues.extend(self.control_transmit.take());
        for port in &mut self.ports {
            queues.extend(port.receive.take());
            queues.extend(port.transmit.take());
        }
        (queues, self.ports)
    }

    fn queues(&self) -> impl Iterator<Item = &ActiveQueue> {
        let of_ports = self.ports.iter().flat_map(|port| [&port.receive, &port.transmit]);
        [&self.control_receive, &self.control_transmit]
            .into_iter()
            .chain(of_ports)
            .flatten()
    }

    fn serve(&mut self, token: u32, ready: EventSet, ops: &mut EventOps) -> Served {
        let memory = self.memory.memory().into_inner();
        let (role, ready) = match u16::try_from(token) {
            Ok(index) => (Role::of(index), EventSet::empty()),
            Err(_) => (Role::Receive((token - SOCKETS) as usize), ready),
        };
        let (interrupt, complaint) = (&*self.interrupt, &mut self.complaint);
        match (role, role_port(role).and_then(|port| self.ports.get_mut(port))) {
            (Role::ControlTransmit, _) => self.receive_control(&memory)?,
            (Role::ControlReceive, _) => {}
            // Its socket: a hang-up shows when we read or write.
            (_, Some(port)) if !ready.is_empty() => {
                if ready.contains(EventSet::OUT) {
                    port.transmit(&memory, interrupt, complaint, ops)?;
                }
                if ready != EventSet::OUT {
                    port.receive(&memory, interrupt, complaint, ops)?;
                }
            }
            (Role::Receive(_), Some(port)) => port.fed(),
            (Role::Transmit(_), Some(port)) => port.transmit(&memory, interrupt, complaint, ops)?,
            (_, None) => {}
        }
        self.send_control(&memory)
    }

    /// What the driver says (§5.3.6.2).
    fn receive_control(&mut self, memory: &Arc<Memory>) -> Served {
        let Some(queue) = &mut self.control_transmit else {
            return Ok(());
        };
        let (ports, complaint) = (&mut self.ports, &mut self.complaint);
        queue.serve(memory, &*self.interrupt, |chain| {
            if let Err(what) = read_request(memory, chain).and_then(|request| follow(ports, request)) {
                complaint.log(what);
            }
            0
        })
    }

    /// What the driver must be told, as far as it has buffers.
    fn send_control(&mut self, memory: &Arc<Memory>) -> Served {
        let Some(queue) = &mut self.control_receive else {
            return Ok(());
        };
        let mut left = queue.queue.size();
        let mut due = next_message(&self.ports);
        while let Some((id, message)) = due
            && left > 0
        {
            let Some(chain) = queue.pop(memory)? else {
                if queue.queue.enable_notification(&**memory)? {
                    continue;
                }
                break;
            };
            left -= 1;
            let head = chain.head_index();
            let Some(port) = self.ports.get_mut(id) else {
                break;
            };
            let bytes = message.bytes(id as u32, &port.name);
            let written = match chain.writer(memory) {
                Ok(mut writer) if writer.available_bytes() >= bytes.len() => writer.write_all(&bytes).is_ok(),
                _ => false,
            };
            if written {
                port.agreement.said(message);
            } else {
                self.complaint.log("a control message does not fit its buffer");
            }
            queue.complete(memory, head, if written { bytes.len() as u32 } else { 0 })?;
            due = next_message(&self.ports);
        }
        if left == 0 {
            let _ = queue.kick.write(1);
        }
        match left < queue.queue.size() {
            true => queue.notify(memory, &*self.interrupt),
            false => Ok(()),
        }
    }
}

/// The first message that is due, and its port.
fn next_message(ports: &[Port]) -> Option<(usize, Message)> {
    ports
        .iter()
        .enumerate()
        .find_map(|(id, port)| Some((id, port.agreement.next()?)))
}

fn role_port(role: Role) -> Option<usize> {
    match role {
        Role::Receive(port) | Role::Transmit(port) => Some(port),
        Role::ControlReceive | Role::ControlTransmit => None,
    }
}

fn read_request(memory: &Memory, chain: Chain) -> Result<Request, &'static str> {
    let mut bytes = [0; MESSAGE];
    let read = chain
        .reader(memory)
        .is_ok_and(|mut reader| reader.read_exact(&mut bytes).is_ok());
    match read {
        true => Request::parse(bytes).ok_or("a control message is none that a driver may send"),
        false => Err("a control message cannot be read"),
    }
}

fn follow(ports: &mut [Port], request: Request) -> Result<(), &'static str> {
    let unknown = "a control message is about a port that there is not";
    let find = |id: u32| usize::try_from(id).unwrap_or(usize::MAX);
    match request {
        Request::DeviceReady(false) => Err("the driver has no use for ports"),
        Request::DeviceReady(true) => {
            for port in ports {
                port.agreement.device_ready();
            }
            Ok(())
        }
        Request::PortReady(id, ready) => {
            ports
                .get_mut(find(id))
                .ok_or(unknown)?
                .agreement
                .port_ready(ready);
            ready.then_some(()).ok_or("the driver cannot set a port up")
        }
        Request::PortOpen(id, open) => {
            let port = ports.get_mut(find(id)).ok_or(unknown)?;
            port.agreement
                .port_open(open)
                .then_some(())
                .ok_or("the driver opens a port that it did not set up")
        }
    }
}

impl MutEventSubscriber for ConsoleQueues {
    fn init(&mut self, ops: &mut EventOps) {
        for queue in self.queues() {
            let events = Events::with_data(&queue.kick, u32::from(queue.index), EventSet::IN);
            if let Err(error) = ops.add(events) {
                log::error!("console: cannot watch a doorbell: {error:?}");
            }
            let _ = queue.kick.write(1);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let token = events.data();
        if let Some(queue) = self.queues().find(|queue| u32::from(queue.index) == token) {
            let _ = queue.kick.read();
        }
        if !self.broken
            && let Err(error) = self.serve(token, events.event_set(), ops)
        {
            self.broken = true;
            self.complaint.log(format_args!(
                "a queue is malformed, the driver must reset: {error}"
            ));
            self.interrupt.needs_reset();
        }
        for (token, port) in (SOCKETS..).zip(&mut self.ports) {
            port.watch(token, self.broken, ops);
        }
    }
}
