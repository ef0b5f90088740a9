//! Serves all devices at once until somebody types `bye`: echoes what comes over network, console ports, sockets
//! and the serial line, and follows the balloon.

use crate::interrupts;
use crate::memory::{self, PAGE};
use crate::serial;
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::console::{self, Console};
use crate::virtio::net::{self, Net};
use crate::virtio::vsock::{self, Packet, Vsock};
use crate::virtio::{Device, Error, Result};
use crate::{cpu, say};

/// Memory that the balloon may have.
const BALLOON: u64 = 32 << 20;
/// Our address; UDP datagrams to the port are sent back.
const ADDRESS: [u8; 4] = [10, 9, 0, 2];
const ECHO_PORT: u16 = 7;

struct Served {
    net: Option<Net>,
    console: Option<Console>,
    balloon: Option<Balloon>,
    sockets: Option<Sockets>,
    line: [u8; 64],
    typed: usize,
    frames: u64,
}

/// The device of this type, set up by `new` where the machine has it.
fn optional<T>(id: u32, new: impl FnOnce(Device) -> Result<T>) -> Result<Option<T>> {
    match interrupts::open(id) {
        Ok((device, _)) => new(device).map(Some),
        Err(_) => Ok(None),
    }
}

pub fn serve() -> Result<()> {
    serial::listen();
    let mut served = Served {
        net: optional(net::DEVICE_ID, Net::new)?,
        console: optional(console::DEVICE_ID, Console::new)?,
        balloon: optional(balloon::DEVICE_ID, |device| {
            let memory = memory::take(BALLOON);
            memory.fill(1);
            Balloon::new(device, memory)
        })?,
        sockets: optional(vsock::DEVICE_ID, |device| Ok(Sockets::new(Vsock::new(device)?)))?,
        line: [0; 64],
        typed: 0,
        frames: 0,
    };
    say!("ok serving");
    cpu::wait(|| {
        loop {
            match served.round() {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return None,
                Ok(None) => return Some(Ok(())),
                Err(error) => return Some(Err(error)),
            }
        }
    })?;
    say!("ok served {} frames", served.frames);
    Ok(())
}

impl Served {
    /// Whether there was something to do; `None` after `bye`.
    fn round(&mut self) -> Result<Option<bool>> {
        let mut busy = self.network()? | self.console()? | self.balloon()?;
        if let Some(sockets) = &mut self.sockets {
            busy |= sockets.serve()?;
        }
        while let Some(byte) = serial::typed() {
            busy = true;
            if byte != b'\n' {
                self.line[self.typed % 64] = byte;
                self.typed += 1;
                continue;
            }
            let line = self.line;
            let text = line
                .get(..self.typed)
                .and_then(|text| core::str::from_utf8(text).ok());
            self.typed = 0;
            match (text.unwrap_or("?"), &mut self.sockets) {
                ("bye", _) => return Ok(None),
                ("dial", Some(sockets)) => sockets.dial()?,
                (text, _) => say!("ok typed {text}"),
            }
        }
        Ok(Some(busy))
    }

    fn network(&mut self) -> Result<bool> {
        let Some(net) = &mut self.net else {
            return Ok(false);
        };
        let mut frame = [0; 2036];
        let Some(len) = net.receive(&mut frame)? else {
            return Ok(false);
        };
        let mac = net.mac();
        if let Some(frame) = frame.get_mut(..len)
            && answer(frame, mac)
        {
            self.frames += 1;
            net.send(frame)?;
        }
        Ok(true)
    }

    fn console(&mut self) -> Result<bool> {
        let Some(console) = &mut self.console else {
            return Ok(false);
        };
        let mut busy = false;
        while let Some(event) = console.event()? {
            busy = true;
            match event {
                console::Event::Added(port) => say!("ok port {port} added"),
                console::Event::Named(port, name, len) => {
                    let name = name.get(..len).and_then(|name| core::str::from_utf8(name).ok());
                    say!("ok port {port} named {}", name.unwrap_or("?"));
                }
                console::Event::Open(port, open) => say!("ok port {port} open {open}"),
                console::Event::Other(event) => say!("ok port event {event}"),
            }
        }
        let mut bytes = [0; 512];
        for port in 0..console::MAX_PORTS {
            while let Some(len) = console.receive(port, &mut bytes)? {
                busy = true;
                console.send(port, bytes.get(..len).unwrap_or_default())?;
            }
        }
        Ok(busy)
    }

    fn balloon(&mut self) -> Result<bool> {
        let Some(balloon) = &mut self.balloon else {
            return Ok(false);
        };
        let asked = balloon.answer()?;
        if !balloon.follow()? {
            return Ok(asked);
        }
        let given = balloon.given();
        if given == balloon.wanted() {
            // What came back can be used.
            let rest = balloon
                .memory
                .part(given * PAGE, balloon.memory.len() - given * PAGE);
            rest.fill(2);
            say!("ok balloon {given}");
        }
        Ok(true)
    }
}

/// Makes the answer of `frame` in its place: an ARP reply, or a datagram sent back. `false` for other frames.
fn answer(frame: &mut [u8], mac: [u8; 6]) -> bool {
    let arp =
        frame.get(12..22) == Some(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]) && frame.get(38..42) == Some(&ADDRESS);
    let udp = frame.get(12..15) == Some(&[8, 0, 0x45])
        && frame.get(23) == Some(&17)
        && frame.get(30..34) == Some(&ADDRESS)
        && frame.get(36..38) == Some(&ECHO_PORT.to_be_bytes());
    if arp && let Some(frame) = frame.get_mut(..42) {
        frame[21] = 2;
        frame.copy_within(22..32, 32);
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&ADDRESS);
    } else if udp && let Some(frame) = frame.get_mut(..42) {
        // Both checksums stay right: the same words, in other places.
        for (a, b, len) in [(26, 30, 4), (34, 36, 2)] {
            for i in 0..len {
                frame.swap(a + i, b + i);
            }
        }
    } else {
        return false;
    }
    if let Some(frame) = frame.get_mut(..12) {
        frame.copy_within(6..12, 0);
        frame[6..].copy_from_slice(&mac);
    }
    true
}

/// Port that takes calls; what comes is sent back.
const LISTENING: u32 = 7;
/// Where `dial` calls, and from.
const CALLED: u32 = 1234;
const CALLER: u32 = 5000;
const STREAMS: usize = 4;

/// A stream: the host's port, ours, bytes taken.
type Stream = Option<(u32, u32, u32)>;

struct Sockets {
    device: Vsock,
    streams: [Stream; STREAMS],
}

impl Sockets {
    fn new(device: Vsock) -> Sockets {
        Sockets {
            device,
            streams: [None; STREAMS],
        }
    }

    fn stream(&mut self, host_port: u32, port: u32) -> Option<&mut Stream> {
        let is = |stream: &&mut Stream| stream.is_some_and(|(host, our, _)| (host, our) == (host_port, port));
        self.streams.iter_mut().find(is)
    }

    fn add(&mut self, host_port: u32, port: u32) -> Result<()> {
        let place = self.streams.iter_mut().find(|stream| stream.is_none());
        *place.ok_or(Error("too many streams", port.into()))? = Some((host_port, port, 0));
        Ok(())
    }

    fn dial(&mut self) -> Result<()> {
        self.add(CALLED, CALLER)?;
        let packet = Packet {
            host_port: CALLED,
            port: CALLER,
            op: vsock::REQUEST,
            flags: 0,
            len: 0,
            forwarded: 0,
        };
        self.device.send(packet, &[])
    }

    fn serve(&mut self) -> Result<bool> {
        if self.device.was_reset()? {
            self.streams = [None; STREAMS];
            say!("ok vsock reset");
        }
        let mut data = [0; vsock::DATA];
        let Some(packet) = self.device.receive(&mut data)? else {
            return Ok(false);
        };
        let answer = |op, forwarded| Packet {
            op,
            forwarded,
            flags: 0,
            ..packet
        };
        match packet.op {
            vsock::REQUEST if packet.port == LISTENING => {
                self.add(packet.host_port, packet.port)?;
                self.device.send(answer(vsock::RESPONSE, 0), &[])?;
            }
            vsock::RESPONSE => self.device.send(answer(vsock::RW, 0), b"hello from the guest")?,
            vsock::RW | vsock::CREDIT_REQUEST => {
                let Some(Some((.., taken))) = self.stream(packet.host_port, packet.port) else {
                    self.device.send(answer(vsock::RST, 0), &[])?;
                    return Ok(true);
                };
                *taken = taken.wrapping_add(packet.len);
                let taken = *taken;
                let op = if packet.op == vsock::RW {
                    vsock::RW
                } else {
                    vsock::CREDIT_UPDATE
                };
                self.device.send(
                    answer(op, taken),
                    data.get(..packet.len as usize).unwrap_or_default(),
                )?;
            }
            vsock::SHUTDOWN | vsock::RST => {
                if let Some(stream) = self.stream(packet.host_port, packet.port) {
                    *stream = None;
                    say!("ok vsock closed {}", packet.port);
                }
                if packet.op == vsock::SHUTDOWN {
                    self.device.send(answer(vsock::RST, 0), &[])?;
                }
            }
            vsock::CREDIT_UPDATE => {}
            _ => self.device.send(answer(vsock::RST, 0), &[])?,
        }
        Ok(true)
    }
}
