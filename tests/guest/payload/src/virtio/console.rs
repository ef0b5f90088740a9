//! Console device with several ports (virtio 1.2, §5.3).

use super::ring::{Buffer, Ring};
use super::{Device, Error, Result};
use crate::cpu;
use crate::memory::{self, Window};

pub const DEVICE_ID: u32 = 3;
const MULTIPORT: u64 = 1 << 1;
const BUFFER: u64 = 512;
const BUFFERS: u16 = 8;
pub const MAX_PORTS: usize = 4;

/// Control events.
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A queue whose buffers the device writes.
struct Inbox {
    ring: Ring,
    buffers: Window,
}

impl Inbox {
    fn new(device: &Device, index: u16) -> Result<Inbox> {
        let ring = device.queue(index, BUFFERS)?;
        let buffers = memory::take(BUFFER * u64::from(ring.size));
        Ok(Inbox { ring, buffers })
    }

    fn give_all(&mut self, device: &Device) -> Result<()> {
        while self.ring.free() > 0 {
            let at = BUFFER * u64::from(self.ring.next_head());
            device.offer(&mut self.ring, &[Buffer::write(&self.buffers.part(at, BUFFER))])?;
        }
        Ok(())
    }

    fn take(&mut self, device: &Device, bytes: &mut [u8]) -> Result<Option<usize>> {
        let Some(used) = self.ring.take_used() else {
            return Ok(None);
        };
        let len = (used.len as usize).min(bytes.len());
        if let Some(bytes) = bytes.get_mut(..len) {
            self.buffers.read(BUFFER * u64::from(used.head), bytes);
        }
        self.give_all(device)?;
        Ok(Some(len))
    }
}

/// A queue whose buffers the device reads.
struct Outbox {
    ring: Ring,
    buffer: Window,
}

impl Outbox {
    fn new(device: &Device, index: u16) -> Result<Outbox> {
        let ring = device.queue(index, BUFFERS)?;
        let buffer = memory::take(memory::PAGE);
        Ok(Outbox { ring, buffer })
    }

    fn send(&mut self, device: &Device, bytes: &[u8]) -> Result<()> {
        self.buffer.write(0, bytes);
        let buffer = Buffer::read(&self.buffer.part(0, bytes.len() as u64));
        device.offer(&mut self.ring, &[buffer])?;
        cpu::wait(|| self.ring.take_used());
        Ok(())
    }
}

/// The console device.
pub struct Console {
    pub device: Device,
    control: (Inbox, Outbox),
    ports: [Option<(Inbox, Outbox)>; MAX_PORTS],
}

/// What the device said of a port.
pub enum Event {
    /// It exists; it is ready and open now.
    Added(u32),
    /// It has this name, of so many bytes.
    Named(u32, [u8; 64], usize),
    /// The host opened or closed it.
    Open(u32, bool),
    /// Something else.
    Other(u16),
}

impl Console {
    /// Sets up the control queues and those of all ports.
    pub fn new(device: Device) -> Result<Console> {
        if device.negotiate(MULTIPORT)? & MULTIPORT == 0 {
            return Err(Error("the console has no control queue", 0));
        }
        let count = (device.config().get::<u32>(4) as usize).min(MAX_PORTS);
        let mut ports = [const { None }; MAX_PORTS];
        for (number, port) in (0u16..).zip(ports.iter_mut().take(count)) {
            // Port 0 has queues 0 and 1, the control has 2 and 3, the other ports follow.
            let first = if number == 0 { 0 } else { 2 + 2 * number };
            *port = Some((Inbox::new(&device, first)?, Outbox::new(&device, first + 1)?));
        }
        let mut console = Console {
            control: (Inbox::new(&device, 2)?, Outbox::new(&device, 3)?),
            device,
            ports,
        };
        console.device.start();
        console.control.0.give_all(&console.device)?;
        for (inbox, _) in console.ports.iter_mut().flatten() {
            inbox.give_all(&console.device)?;
        }
        console.say(0, DEVICE_READY, 1)?;
        Ok(console)
    }

    fn say(&mut self, port: u32, event: u16, value: u16) -> Result<()> {
        let mut message = [0; 8];
        message[..4].copy_from_slice(&port.to_le_bytes());
        message[4..6].copy_from_slice(&event.to_le_bytes());
        message[6..].copy_from_slice(&value.to_le_bytes());
        self.control.1.send(&self.device, &message)
    }

    /// What the device says next. A new port is taken into use.
    pub fn event(&mut self) -> Result<Option<Event>> {
        let mut message = [0; 72];
        let Some(len) = self.control.0.take(&self.device, &mut message)? else {
            return Ok(None);
        };
        let port = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        let event = u16::from_le_bytes([message[4], message[5]]);
        let value = u16::from_le_bytes([message[6], message[7]]);
        Ok(Some(match event {
            DEVICE_ADD => {
                self.say(port, PORT_READY, 1)?;
                self.say(port, PORT_OPEN, 1)?;
                Event::Added(port)
            }
            PORT_NAME => {
                let mut name = [0; 64];
                name.copy_from_slice(&message[8..]);
                Event::Named(port, name, len.saturating_sub(8))
            }
            PORT_OPEN => Event::Open(port, value != 0),
            other => Event::Other(other),
        }))
    }

    /// What the host wrote to `port`.
    pub fn receive(&mut self, port: usize, bytes: &mut [u8]) -> Result<Option<usize>> {
        match self.ports.get_mut(port) {
            Some(Some((inbox, _))) => inbox.take(&self.device, bytes),
            _ => Ok(None),
        }
    }

    /// Writes to `port`.
    pub fn send(&mut self, port: usize, bytes: &[u8]) -> Result<()> {
        match self.ports.get_mut(port) {
            Some(Some((_, outbox))) => outbox.send(&self.device, bytes),
            _ => Err(Error("there is no port", port as u64)),
        }
    }
}
