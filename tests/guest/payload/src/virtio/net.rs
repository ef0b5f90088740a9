//! Network device (virtio 1.2, §5.1), without offloads.

use super::ring::{Buffer, Ring};
use super::{Device, Result};
use crate::cpu;
use crate::memory::{self, Window};

pub const DEVICE_ID: u32 = 1;
/// `struct virtio_net_hdr` before each frame.
const HEADER: u64 = 12;
const MAC: u64 = 1 << 5;
const BUFFER: u64 = 2048;
const BUFFERS: u16 = 64;

/// A network card.
pub struct Net {
    pub device: Device,
    receive: Ring,
    transmit: Ring,
    /// A buffer for each descriptor of the receive queue.
    frames: Window,
    outgoing: Window,
}

impl Net {
    pub fn new(device: Device) -> Result<Net> {
        device.negotiate(MAC)?;
        let (receive, transmit) = (device.queue(0, BUFFERS)?, device.queue(1, BUFFERS)?);
        device.start();
        let mut net = Net {
            frames: memory::take(BUFFER * u64::from(receive.size)),
            outgoing: memory::take(BUFFER),
            device,
            receive,
            transmit,
        };
        for _ in 0..net.receive.size {
            net.give_buffer()?;
        }
        Ok(net)
    }

    /// The station's address.
    pub fn mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        self.device.config().read(0, &mut mac);
        mac
    }

    fn give_buffer(&mut self) -> Result<()> {
        let at = BUFFER * u64::from(self.receive.next_head());
        let buffer = Buffer::write(&self.frames.part(at, BUFFER));
        self.device.offer(&mut self.receive, &[buffer]).map(|_| ())
    }

    /// A frame that has come: copied to `frame`, its length is given.
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<usize>> {
        let Some(used) = self.receive.take_used() else {
            return Ok(None);
        };
        let len = (used.len as usize)
            .saturating_sub(HEADER as usize)
            .min(frame.len());
        if let Some(frame) = frame.get_mut(..len) {
            self.frames.read(BUFFER * u64::from(used.head) + HEADER, frame);
        }
        self.give_buffer()?;
        Ok(Some(len))
    }

    /// Sends a frame of at most 2036 bytes and waits until it is gone.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.outgoing.part(0, HEADER).fill(0);
        self.outgoing.write(HEADER, frame);
        let buffer = Buffer::read(&self.outgoing.part(0, HEADER + frame.len() as u64));
        self.device.offer(&mut self.transmit, &[buffer])?;
        cpu::wait(|| self.transmit.take_used());
        Ok(())
    }
}
