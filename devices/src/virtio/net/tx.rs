//! From the guest to the network (virtio 1.2, §5.1.6.2).

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
};
use virtio_queue::{Error, QueueT};

use super::MAX_FRAME;
use super::features::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO};
use super::nic::{Counter, NAME};
use crate::complaint::Complaint;
use crate::irq::Interrupt;
use crate::memory::{GuestBuffer, Memory};
use crate::net::{Frame, HEADER_LEN, Header, NetBackend};
use crate::ratelimit::Throttle;
use crate::virtio::{ActiveQueue, Chain};

/// An Ethernet header; less is no frame.
const MIN_PAYLOAD: usize = 14;
/// Ranges that one frame may have; the kernel takes 1024.
const MAX_RANGES: usize = 1000;
/// Frames moved before other handlers of the worker have their turn.
const BUDGET: usize = 128;

/// What the transmitter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The next doorbell.
    Driver,
    /// Room in the network.
    Network,
    /// The rate limit.
    Timer,
}

/// The transmit queue while it is served.
pub struct Transmitter {
    /// The ring.
    pub queue: ActiveQueue,
    features: u64,
    complaint: Complaint,
    /// Its limits, where it has any.
    pub throttle: Option<Throttle>,
    /// The next frame has passed the rate limit and waits for the network.
    admitted: bool,
}

/// A frame that the driver sends, its header checked.
struct Sending {
    header: Header,
    buffer: GuestBuffer,
}

impl Transmitter {
    /// The queue of a driver with these features.
    pub fn new(queue: ActiveQueue, features: u64, throttle: Option<Throttle>) -> Self {
        Transmitter {
            queue,
            features,
            complaint: Complaint::new(NAME),
            throttle,
            admitted: false,
        }
    }

    /// Sends what the driver offers, or throws it away where `backend` is missing (the link is down).
    ///
    /// # Errors
    /// When the ring is malformed.
    pub fn run(
        &mut self,
        memory: &Arc<Memory>,
        interrupt: &dyn Interrupt,
        backend: Option<&dyn NetBackend>,
        counters: &Counter,
    ) -> Result<Waiting, Error> {
        self.queue.queue.disable_notification(&**memory)?;
        let mut told = true;
        let mut waiting = None;
        for _ in 0..BUDGET {
            let Some(chain) = self.queue.pop(memory)? else {
                if self.queue.queue.enable_notification(&**memory)? {
                    self.queue.queue.disable_notification(&**memory)?;
                    continue;
                }
                waiting = Some(Waiting::Driver);
                break;
            };
            let head = chain.head_index();
            if let Some(later) = self.send(chain, memory, backend, counters) {
                self.queue.undo_pop();
                waiting = Some(later);
                break;
            }
            self.queue.complete(memory, head, 0)?;
            told = false;
        }
        if !told {
            self.queue.notify(memory, interrupt)?;
        }
        Ok(waiting.unwrap_or_else(|| {
            // The others have their turn, then we go on.
            let _ = self.queue.kick.write(1);
            Waiting::Driver
        }))
    }

    /// Sends one frame, or says what to wait for before it is tried again.
    fn send(
        &mut self,
        chain: Chain,
        memory: &Arc<Memory>,
        backend: Option<&dyn NetBackend>,
        counters: &Counter,
    ) -> Option<Waiting> {
        let Some(mut sending) = parse(chain, memory, self.features) else {
            counters.drop_one();
            self.complaint.log("a frame of the driver is malformed");
            return None;
        };
        let Some(backend) = backend else {
            counters.drop_one();
            return None;
        };
        if let Some(throttle) = &mut self.throttle
            && !self.admitted
            && !throttle.admit(sending.buffer.len() as u64)
        {
            return Some(Waiting::Timer);
        }
        self.admitted = true;
        let mut frame = Frame::new(&mut sending.header);
        frame.guest(&sending.buffer, HEADER_LEN);
        match backend.send(&frame) {
            Ok(()) => counters.count(frame.len() - HEADER_LEN),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(Waiting::Network),
            // A network loses frames; what it thinks of this one is no concern of the driver's.
            Err(_) => counters.drop_one(),
        }
        self.admitted = false;
        None
    }
}

/// The frame in `chain`, its header read once; nothing where it is malformed.
fn parse(chain: Chain, memory: &Arc<Memory>, features: u64) -> Option<Sending> {
    let mut ranges = Vec::with_capacity(2);
    let mut ended = false;
    for descriptor in chain {
        if descriptor.is_write_only() || ranges.len() == MAX_RANGES {
            return None;
        }
        if descriptor.len() > 0 {
            ranges.push((descriptor.addr(), descriptor.len() as usize));
        }
        ended = !descriptor.has_next();
    }
    if !ended {
        return None;
    }
    let buffer = GuestBuffer::new(Arc::clone(memory), ranges).ok()?;
    if buffer.len() > MAX_FRAME || buffer.iovecs().len() > MAX_RANGES {
        return None;
    }
    let payload = buffer
        .len()
        .checked_sub(HEADER_LEN)
        .filter(|len| *len >= MIN_PAYLOAD)?;
    let mut header = [0; HEADER_LEN];
    buffer.read(&mut header).ok()?;
    let header = check_header(header, payload, features)?;
    Some(Sending { header, buffer })
}

/// The header that the network is given for one of the driver's: only what it may ask for (§5.1.6.2.1), and
/// nothing that points out of the frame of `payload` bytes.
fn check_header(header: Header, payload: usize, features: u64) -> Option<Header> {
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, ..] = header;
    let needs_csum = flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 != 0;
    let start = usize::from(u16::from_le_bytes([s0, s1]));
    let offset = usize::from(u16::from_le_bytes([o0, o1]));
    if needs_csum && (features & CSUM == 0 || start + offset + 2 > payload) {
        return None;
    }
    let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN as u8;
    let kind = u32::from(gso_type & !ecn);
    let needed = match kind {
        VIRTIO_NET_HDR_GSO_NONE => 0,
        VIRTIO_NET_HDR_GSO_TCPV4 => HOST_TSO4,
        VIRTIO_NET_HDR_GSO_TCPV6 => HOST_TSO6,
        VIRTIO_NET_HDR_GSO_UDP => HOST_UFO,
        _ => return None,
    };
    if features & needed != needed || (ecn != 0 && features & HOST_ECN == 0) {
        return None;
    }
    let segmented = kind != VIRTIO_NET_HDR_GSO_NONE;
    if segmented && (!needs_csum || [g0, g1] == [0, 0]) {
        return None;
    }
    let mut checked = [0; HEADER_LEN];
    if needs_csum {
        checked[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        [checked[6], checked[7], checked[8], checked[9]] = [s0, s1, o0, o1];
    }
    if segmented {
        // How long the headers are is a hint of the driver's; the kernel refuses one beyond the frame.
        let hint = usize::from(u16::from_le_bytes([h0, h1])).min(payload) as u16;
        [checked[2], checked[3]] = hint.to_le_bytes();
        [checked[1], checked[4], checked[5]] = [gso_type, g0, g1];
    }
    Some(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO;

    #[test]
    fn a_header_is_passed_on_only_as_far_as_it_was_negotiated_and_stays_in_the_frame() {
        let plain = [0; 12];
        let csum = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        let tso4 = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        let with = |header: Header, at: usize, value: u8| {
            let mut header = header;
            header[at] = value;
            header
        };
        let table = [
            (plain, 60, 0, Some(plain)),
            // Flags and fields that mean nothing here are not passed on.
            (with(plain, 0, 0xfe), 60, 0, Some(plain)),
            (with(plain, 10, 7), 60, 0, Some(plain)),
            (with(plain, 6, 9), 60, 0, Some(plain)),
            (csum, 60, ALL, Some(csum)),
            (csum, 60, 0, None),
            (csum, 52, ALL, Some(csum)),
            (csum, 51, ALL, None),
            (with(csum, 7, 255), 60, ALL, None),
            (with(csum, 9, 255), 60, ALL, None),
            (tso4, 4000, ALL, Some(tso4)),
            (tso4, 4000, CSUM, None),
            (tso4, 4000, CSUM | HOST_TSO6, None),
            (with(tso4, 0, 0), 4000, ALL, None),
            (with(with(tso4, 4, 0), 5, 0), 4000, ALL, None),
            (with(tso4, 1, 0x81), 4000, ALL, Some(with(tso4, 1, 0x81))),
            (with(tso4, 1, 0x81), 4000, ALL & !HOST_ECN, None),
            (with(tso4, 1, 4), 4000, ALL, Some(with(tso4, 1, 4))),
            (with(tso4, 1, 3), 4000, ALL, Some(with(tso4, 1, 3))),
            (with(tso4, 1, 3), 4000, ALL & !HOST_UFO, None),
            (with(tso4, 1, 2), 4000, ALL, None),
            (with(tso4, 1, 5), 4000, ALL, None),
            (with(tso4, 3, 255), 60, ALL, Some(with(tso4, 2, 60))),
        ];
        for (header, payload, features, expected) in table {
            assert_eq!(
                check_header(header, payload, features),
                expected,
                "{header:?} of {payload} bytes with {features:#x}"
            );
        }
    }
}
