//! The header of a packet, and the credit that both sides give each other (virtio 1.2, §5.10.6). Pure.

/// Length of a header.
pub const HEADER: usize = 44;
/// The only type of socket that we serve: a stream.
pub const STREAM: u16 = 1;
/// Flag of SHUTDOWN: the sender receives no more.
pub const SHUT_RECEIVE: u32 = 1;
/// Flag of SHUTDOWN: the sender sends no more.
pub const SHUT_SEND: u32 = 2;
/// Bytes that a guest may send on one connection before the host's program reads them.
pub const BUFFER: u32 = 64 * 1024;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// Ends it at once, or refuses it.
    Rst = 3,
    /// Says that the sender receives or sends no more.
    Shutdown = 4,
    /// Carries data.
    Rw = 5,
    /// Tells the credit.
    CreditUpdate = 6,
    /// Asks to be told.
    CreditRequest = 7,
}

impl Op {
    fn parse(op: u16) -> Option<Op> {
        Some(match op {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Rst,
            4 => Op::Shutdown,
            5 => Op::Rw,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender's context.
    pub src_cid: u64,
    /// Receiver's context.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Type of socket.
    pub kind: u16,
    /// What the packet is for; `None` for what the specification does not know.
    pub op: Option<Op>,
    /// Depends on the operation.
    pub flags: u32,
    /// Bytes that the sender can buffer.
    pub buf_alloc: u32,
    /// Bytes that left the sender's buffer so far, modulo 2³².
    pub fwd_cnt: u32,
}

/// The first `N` bytes of `bytes`, which it loses; zeroes where there are not as many.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    match bytes.split_first_chunk::<N>() {
        Some((first, rest)) => {
            *bytes = rest;
            *first
        }
        None => [0; N],
    }
}

impl Header {
    /// What `bytes` say.
    pub fn parse(bytes: &[u8; HEADER]) -> Header {
        let mut bytes = &bytes[..];
        let bytes = &mut bytes;
        Header {
            src_cid: u64::from_le_bytes(take(bytes)),
            dst_cid: u64::from_le_bytes(take(bytes)),
            src_port: u32::from_le_bytes(take(bytes)),
            dst_port: u32::from_le_bytes(take(bytes)),
            len: u32::from_le_bytes(take(bytes)),
            kind: u16::from_le_bytes(take(bytes)),
            op: Op::parse(u16::from_le_bytes(take(bytes))),
            flags: u32::from_le_bytes(take(bytes)),
            buf_alloc: u32::from_le_bytes(take(bytes)),
            fwd_cnt: u32::from_le_bytes(take(bytes)),
        }
    }

    /// The header as it goes to the guest.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.map_or(0, |op| op as u16).to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// How much each side may send on a connection (§5.10.6.3). Counters run modulo 2³².
#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    /// What the guest said last.
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    /// Bytes that we sent.
    sent: u32,
    /// Bytes that we received.
    received: u32,
    /// Bytes of them that left our buffer.
    forwarded: u32,
    /// The value of `forwarded` that the guest knows.
    told: u32,
}

impl Credit {
    /// Takes what a packet of the guest says of its buffer.
    pub fn hear(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = header.fwd_cnt;
    }

    /// Bytes that we may send. A guest that claims more than it got has no credit.
    pub fn room(&self) -> u32 {
        let underway = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(underway)
    }

    /// We sent `len` bytes.
    pub fn sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// The guest sent `len` bytes; `false` when it had no credit for them.
    pub fn receive(&mut self, len: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = BUFFER.checked_sub(held).is_some_and(|room| len <= room);
        if fits {
            self.received = self.received.wrapping_add(len);
        }
        fits
    }

    /// `len` bytes left our buffer.
    pub fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest should be told of the room that there is again.
    pub fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER / 2
    }

    /// What our next packet says: `buf_alloc` and `fwd_cnt`.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUFFER, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_the_specification_says() {
        let bytes: [u8; HEADER] = std::array::from_fn(|i| i as u8);
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.kind, 0x1d1c);
        assert_eq!(header.op, None);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);

        let header = Header {
            op: Some(Op::Shutdown),
            ..header
        };
        let mut expected = bytes.to_vec();
        expected[30..32].copy_from_slice(&[4, 0]);
        assert_eq!(header.bytes(), expected);
        assert_eq!(Header::parse(&expected.try_into().unwrap()), header);
    }

    fn heard(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::parse(&[0; HEADER])
        }
    }

    #[test]
    fn we_send_what_the_guest_has_room_for() {
        for (sent, buf_alloc, fwd_cnt, to_send) in [
            (0, 100, 0, 100),
            (60, 100, 0, 40),
            (60, 100, 60, 100),
            (60, 50, 0, 0),
            (60, 100, 61, 0),
            (u32::MAX, 100, u32::MAX - 10, 90),
            (5, 100, u32::MAX - 4, 90),
        ] {
            let mut credit = Credit::default();
            credit.sent(sent);
            credit.hear(&heard(buf_alloc, fwd_cnt));
            assert_eq!(credit.room(), to_send, "{sent} {buf_alloc} {fwd_cnt}");
        }
    }

    #[test]
    fn the_guest_may_fill_our_buffer_and_not_a_byte_more() {
        let mut credit = Credit {
            received: u32::MAX - 5,
            forwarded: u32::MAX - 5,
            told: u32::MAX - 5,
            ..Credit::default()
        };
        assert!(credit.receive(BUFFER - 1));
        assert!(!credit.receive(2));
        assert!(!credit.receive(u32::MAX));
        assert!(credit.receive(1));
        assert!(!credit.receive(1));
        credit.forward(BUFFER / 2 - 1);
        assert!(!credit.update_due());
        credit.forward(1);
        assert!(credit.update_due());
        assert_eq!(credit.tell(), (BUFFER, (BUFFER / 2).wrapping_sub(6)));
        assert!(!credit.update_due());
        assert!(credit.receive(BUFFER / 2));
    }
}
