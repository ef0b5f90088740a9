//! Socket device (virtio 1.2, §5.10): packets of streams.

use super::ring::{Buffer, Ring};
use super::{Device, Result};
use crate::cpu;
use crate::memory::{self, PAGE, Window};

pub const DEVICE_ID: u32 = 19;
pub const HEADER: usize = 44;
/// Most data of a packet.
pub const DATA: usize = PAGE as usize - HEADER;
const HOST: u64 = 2;
const STREAM: u16 = 1;
const BUFFERS: u16 = 32;
/// What we can take on a stream.
const ROOM: u32 = 128 << 10;

/// Operations.
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// A packet between the host's port and ours.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub host_port: u32,
    pub port: u32,
    pub op: u16,
    pub flags: u32,
    /// Bytes of data behind it.
    pub len: u32,
    /// Bytes that the sender has read of the stream so far.
    pub forwarded: u32,
}

/// The socket device.
pub struct Vsock {
    pub device: Device,
    receive: Ring,
    transmit: Ring,
    events: Ring,
    packets: Window,
    outgoing: Window,
    event: Window,
}

impl Vsock {
    pub fn new(device: Device) -> Result<Vsock> {
        device.negotiate(1)?;
        let mut vsock = Vsock {
            receive: device.queue(0, BUFFERS)?,
            transmit: device.queue(1, BUFFERS)?,
            events: device.queue(2, 4)?,
            packets: memory::take(PAGE * u64::from(BUFFERS)),
            outgoing: memory::take(PAGE),
            event: memory::take(PAGE),
            device,
        };
        vsock.device.start();
        for _ in 0..vsock.receive.size {
            vsock.give_buffer()?;
        }
        vsock
            .device
            .offer(&mut vsock.events, &[Buffer::write(&vsock.event.part(0, 4))])?;
        Ok(vsock)
    }

    fn give_buffer(&mut self) -> Result<()> {
        let at = PAGE * u64::from(self.receive.next_head());
        let buffer = Buffer::write(&self.packets.part(at, PAGE));
        self.device.offer(&mut self.receive, &[buffer]).map(|_| ())
    }

    /// Our context.
    pub fn cid(&self) -> u64 {
        self.device.config().get(0)
    }

    /// A packet that has come, its data copied to `data`.
    pub fn receive(&mut self, data: &mut [u8; DATA]) -> Result<Option<Packet>> {
        let Some(used) = self.receive.take_used() else {
            return Ok(None);
        };
        let raw = self.packets.part(PAGE * u64::from(used.head), PAGE);
        let packet = Packet {
            host_port: raw.get(16),
            port: raw.get(20),
            len: raw.get::<u32>(24).min(DATA as u32),
            op: raw.get(30),
            flags: raw.get(32),
            forwarded: raw.get(40),
        };
        if let Some(data) = data.get_mut(..packet.len as usize) {
            raw.read(HEADER as u64, data);
        }
        self.give_buffer()?;
        Ok(Some(packet))
    }

    /// Sends a packet with `data`, and waits until the device has it.
    pub fn send(&mut self, packet: Packet, data: &[u8]) -> Result<()> {
        let out = self.outgoing;
        out.set(0, self.cid());
        out.set(8, HOST);
        out.set(16, packet.port);
        out.set(20, packet.host_port);
        out.set(24, data.len() as u32);
        out.set(28, STREAM);
        out.set(30, packet.op);
        out.set(32, packet.flags);
        out.set(36, ROOM);
        out.set(40, packet.forwarded);
        out.write(HEADER as u64, data);
        let buffer = Buffer::read(&out.part(0, (HEADER + data.len()) as u64));
        self.device.offer(&mut self.transmit, &[buffer])?;
        cpu::wait(|| self.transmit.take_used());
        Ok(())
    }

    /// Whether the transport was reset (§5.10.6.7): all streams are gone.
    pub fn was_reset(&mut self) -> Result<bool> {
        let Some(used) = self.events.take_used() else {
            return Ok(false);
        };
        let reset = used.len == 4 && self.event.get::<u32>(0) == 0;
        let buffer = Buffer::write(&self.event.part(0, 4));
        self.device.offer(&mut self.events, &[buffer])?;
        Ok(reset)
    }
}
