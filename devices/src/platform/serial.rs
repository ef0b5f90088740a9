//! The serial line: a 16550 at COM1, one end a guest's console, the other a socket.
//!
//! The guest's bytes go through a bounded buffer that the I/O thread empties into the socket: a reader who is
//! slow or absent costs the guest nothing, and finds the last of what was said.
//!
//! What is typed waits in the socket until the guest raises RTS, as on a line with hardware flow control: a
//! driver that opens the line empties its FIFO first, and would throw away what came before it was there.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState as UartState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::state::SerialState;
use crate::{Error, Result};

/// First port of COM1.
pub const BASE: u64 = 0x3f8;
/// How many ports.
pub const SIZE: u64 = 8;
/// COM1's interrupt.
pub const GSI: u32 = 4;
/// Bytes kept of what nobody has read.
const BACKLOG: usize = 64 * 1024;
/// The modem control register, and its bits for request to send and for the loop that tests use.
const MCR: u8 = 4;
const MCR_RTS: u8 = 1 << 1;
const MCR_LOOP: u8 = 1 << 4;
/// Bytes that a 16550 holds for the guest.
const FIFO: usize = 64;

struct Line(EventFd);

impl vm_superio::Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// What the guest wrote and nobody took yet.
struct Backlog {
    bytes: VecDeque<u8>,
    /// Signalled when there is something after there was nothing.
    bell: EventFd,
}

impl Write for Backlog {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let quiet = self.bytes.is_empty();
        for &byte in data {
            if self.bytes.len() == BACKLOG {
                self.bytes.pop_front();
            }
            self.bytes.push_back(byte);
        }
        if quiet && !data.is_empty() {
            let _ = self.bell.write(1);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Inner = Uart<Line, NoEvents, Backlog>;

/// The registers, shared by the vCPUs and the I/O thread.
pub struct Serial {
    uart: Mutex<Inner>,
    /// Signalled when the guest took what was typed and there is room again, and when it begins to listen.
    room: EventFd,
}

/// Whether the guest takes what is typed.
fn listens(uart: &mut Inner) -> bool {
    uart.read(MCR) & (MCR_RTS | MCR_LOOP) == MCR_RTS
}

impl Serial {
    /// A serial line whose interrupt is `line`, and the handler that joins it to `host`.
    ///
    /// # Errors
    /// When the host has no eventfd left.
    pub fn new(line: EventFd, host: UnixStream) -> Result<(Arc<Serial>, SerialIo)> {
        let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(Error::io("make an eventfd for the serial line"));
        let clone = |fd: &EventFd| fd.try_clone().map_err(Error::io("duplicate an eventfd"));
        host.set_nonblocking(true)
            .map_err(Error::io("set up the serial line's socket"))?;
        let (bell, room) = (eventfd()?, eventfd()?);
        let backlog = Backlog {
            bytes: VecDeque::new(),
            bell: clone(&bell)?,
        };
        let uart = Mutex::new(Uart::new(Line(line), backlog));
        let serial = Arc::new(Serial {
            uart,
            room: clone(&room)?,
        });
        let io = SerialIo {
            serial: Arc::clone(&serial),
            host,
            bell,
            room,
            typed: Vec::new(),
            watching: EventSet::empty(),
            closed: false,
        };
        Ok((serial, io))
    }

    fn uart(&self) -> MutexGuard<'_, Inner> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registers, for a snapshot.
    pub fn save(&self) -> SerialState {
        let state = self.uart().state();
        SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }

    /// Takes up saved registers.
    ///
    /// # Errors
    /// When they are none that a line could have.
    pub fn restore(&self, state: &SerialState) -> Result<()> {
        let refuse = |reason: String| Error::State {
            device: "serial",
            reason,
        };
        let registers = UartState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        };
        let mut uart = self.uart();
        let line = uart
            .interrupt_evt()
            .0
            .try_clone()
            .map_err(Error::io("duplicate an eventfd"))?;
        let bell = uart
            .writer()
            .bell
            .try_clone()
            .map_err(Error::io("duplicate an eventfd"))?;
        let bytes = std::mem::take(&mut uart.writer_mut().bytes);
        *uart = Uart::from_state(&registers, Line(line), NoEvents, Backlog { bytes, bell })
            .map_err(|error| refuse(error.to_string()))?;
        let _ = self.room.write(1);
        Ok(())
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            let mut uart = self.uart();
            let before = uart.fifo_capacity();
            *byte = uart.read(offset);
            if uart.fifo_capacity() > before {
                let _ = self.room.write(1);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), &[byte]) = (u8::try_from(offset), data) {
            let mut uart = self.uart();
            if let Err(error) = uart.write(offset, byte) {
                log::debug!("serial: {error}");
            }
            if offset == MCR && listens(&mut uart) {
                let _ = self.room.write(1);
            }
        }
    }
}

/// The side of the I/O thread: socket to guest, guest to socket.
pub struct SerialIo {
    serial: Arc<Serial>,
    host: UnixStream,
    bell: EventFd,
    room: EventFd,
    /// Bytes typed that the guest has no room for yet.
    typed: Vec<u8>,
    watching: EventSet,
    /// The other end is gone.
    closed: bool,
}

impl SerialIo {
    /// Moves what can be moved, both ways; then watches for what is missing.
    fn pump(&mut self, ops: &mut EventOps) {
        let mut wanted = EventSet::empty();
        if self.closed {
            return;
        }
        if self.fill() {
            wanted |= EventSet::IN;
        }
        if self.drain() {
            wanted |= EventSet::OUT;
        }
        if self.closed {
            // A descriptor whose other end is gone would wake the loop for ever.
            let _ = ops.remove(Events::empty(&self.host));
            return;
        }
        if wanted != self.watching {
            if let Err(error) = ops.modify(Events::new(&self.host, wanted)) {
                log::warn!("serial: the console is no longer watched: {error:?}");
            }
            self.watching = wanted;
        }
    }

    /// Socket to guest; `true` when more may come and there is room.
    fn fill(&mut self) -> bool {
        loop {
            if !listens(&mut self.serial.uart()) {
                return false;
            }
            if self.typed.is_empty() {
                let mut bytes = [0; FIFO];
                match (&self.host).read(&mut bytes) {
                    // Nobody is there any more; the guest goes on.
                    Ok(0) => {
                        self.closed = true;
                        return false;
                    }
                    Ok(n) => self.typed.extend(bytes.iter().take(n)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                    Err(_) => return false,
                }
            }
            let taken = self.serial.uart().enqueue_raw_bytes(&self.typed).unwrap_or(0);
            self.typed.drain(..taken.min(self.typed.len()));
            if !self.typed.is_empty() {
                return false;
            }
        }
    }

    /// Guest to socket; `true` when the socket is full.
    fn drain(&mut self) -> bool {
        loop {
            let chunk: Vec<u8> = {
                let uart = self.serial.uart();
                uart.writer().bytes.iter().take(4096).copied().collect()
            };
            if chunk.is_empty() {
                return false;
            }
            match (&self.host).write(&chunk) {
                Ok(n) => {
                    let mut uart = self.serial.uart();
                    let backlog = &mut uart.writer_mut().bytes;
                    // The guest may have pushed out some of it meanwhile; never take more than is there.
                    let n = n.min(backlog.len());
                    backlog.drain(..n);
                }
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }
}

impl MutEventSubscriber for SerialIo {
    fn init(&mut self, ops: &mut EventOps) {
        self.watching = EventSet::IN;
        let watched = ops
            .add(Events::new(&self.bell, EventSet::IN))
            .and_then(|()| ops.add(Events::new(&self.room, EventSet::IN)))
            .and_then(|()| ops.add(Events::new(&self.host, self.watching)));
        if let Err(error) = watched {
            log::error!("serial: the console is not watched: {error:?}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // It is told whatever is watched, and for ever.
        if events.event_set().contains(EventSet::HANG_UP) {
            self.closed = true;
            let _ = ops.remove(Events::empty(&self.host));
        }
        let _ = self.bell.read();
        let _ = self.room.read();
        self.pump(ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Worker;

    fn line() -> (Arc<Serial>, UnixStream, Worker, EventFd) {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (serial, io) = Serial::new(interrupt.try_clone().unwrap(), ours).unwrap();
        let worker = Worker::spawn("io0").unwrap();
        worker.add(io).unwrap();
        (serial, theirs, worker, interrupt)
    }

    const LISTEN: u8 = 0x0b;

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_writes_is_read_outside() {
        let (serial, mut host, _worker, _) = line();
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        let mut heard = [0; 5];
        host.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[test]
    fn what_is_typed_reaches_the_guest_whole_though_its_fifo_is_small() {
        let (serial, mut host, _worker, _) = line();
        serial.write(4, &[LISTEN]);
        let text: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        host.write_all(&text).unwrap();
        let mut heard = Vec::new();
        while heard.len() < text.len() {
            if read(&serial, 5) & 1 != 0 {
                heard.push(read(&serial, 0));
            }
        }
        assert_eq!(heard, text);
    }

    #[test]
    fn what_is_typed_before_the_guest_listens_waits_for_it() {
        let (serial, mut host, _worker, _) = line();
        host.write_all(b"early").unwrap();
        // The worker has seen the bytes once it has taken a word that came after them the other way.
        for byte in b"booting" {
            serial.write(0, &[*byte]);
        }
        host.read_exact(&mut [0; 7]).unwrap();
        // A driver that finds the line looks at it and empties it.
        assert_eq!(read(&serial, 5) & 1, 0);
        read(&serial, 0);
        serial.write(4, &[LISTEN]);
        let mut heard = Vec::new();
        while heard.len() < 5 {
            if read(&serial, 5) & 1 != 0 {
                heard.push(read(&serial, 0));
            }
        }
        assert_eq!(heard, b"early");
    }

    #[test]
    fn a_guest_that_nobody_listens_to_goes_on_and_its_last_words_are_kept() {
        let (serial, mut host, _worker, _) = line();
        for i in 0..400_000u32 {
            serial.write(0, &[(i % 256) as u8]);
        }
        serial.write(0, b"!");
        let mut heard = vec![0; 1 << 20];
        let mut last = 0;
        while last != b'!' {
            let n = host.read(&mut heard).unwrap();
            last = heard[n - 1];
        }
    }

    #[test]
    fn registers_survive_save_and_restore() {
        let (serial, _host, _worker, _) = line();
        serial.write(7, &[0x5a]);
        serial.write(3, &[0x03]);
        let state = serial.save();
        let (other, _host, _worker, _) = line();
        other.restore(&state).unwrap();
        assert_eq!((read(&other, 7), read(&other, 3)), (0x5a, 0x03));
    }
}
