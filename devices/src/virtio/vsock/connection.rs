//! One stream between the guest and the host, apart from any socket or queue (virtio 1.2, §5.10.6). Pure.
//!
//! ```text
//!   host asks ──▶ Requested ──RESPONSE──▶ Established ──SHUTDOWN of both──▶ Draining ──▶ gone (RST said)
//!   guest asks ─────(RESPONSE due)───────────▶ │
//!   anything out of order, in any phase ──▶ Broken (RST due) ──▶ gone
//! ```
//! Packets to the guest are not queued: what is due follows from the state, so a guest that does not listen
//! costs nothing.

use super::packet::{Credit, Header, Op, SHUT_RECEIVE, SHUT_SEND};

/// Where a stream is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The host asked for it, the guest has not answered.
    Requested,
    /// Both sides may send.
    Established,
    /// The guest is done with it; what it sent still goes to the host.
    Draining,
    /// It ends with an RST that is still to be said.
    Broken,
    /// It can be forgotten.
    Gone,
}

/// What a packet of the guest means for the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing, or see what the guest has shut.
    Heard,
    /// The guest granted the connection.
    Opened,
    /// The data of the packet is for the host.
    Deliver,
    /// The host's side is to be closed at once.
    Close,
}

/// A stream's state.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    /// What both sides may send.
    pub credit: Credit,
    /// REQUEST or RESPONSE, until it was said.
    opening: Option<Op>,
    /// SHUT flags of the guest.
    guest_shut: u32,
    /// SHUT flags of the host.
    host_shut: u32,
    /// Those that the guest knows.
    told_shut: u32,
    /// The guest asked for our credit.
    update_asked: bool,
    /// We ran out of the guest's credit and have not said so.
    request_due: bool,
    /// Bytes from the guest wait for the host.
    holding: bool,
}

impl Connection {
    fn new(phase: Phase, opening: Op) -> Self {
        Connection {
            phase,
            credit: Credit::default(),
            opening: Some(opening),
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            update_asked: false,
            request_due: false,
            holding: false,
        }
    }

    /// The host asks the guest.
    pub fn to_guest() -> Self {
        Self::new(Phase::Requested, Op::Request)
    }

    /// The guest asked with `request`, and the host's side is there.
    pub fn from_guest(request: &Header) -> Self {
        let mut connection = Self::new(Phase::Established, Op::Response);
        connection.credit.hear(request);
        connection
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes a packet of the guest for this stream.
    pub fn hear(&mut self, header: &Header) -> Verdict {
        if self.phase == Phase::Broken {
            // It ends anyway; an RST saves us ours.
            if header.op == Some(Op::Rst) {
                self.phase = Phase::Gone;
            }
            return Verdict::Heard;
        }
        self.credit.hear(header);
        match (header.op, self.phase) {
            (Some(Op::Rst), Phase::Draining) if self.holding => Verdict::Heard,
            (Some(Op::Rst), _) => {
                self.phase = Phase::Gone;
                Verdict::Close
            }
            (Some(Op::Response), Phase::Requested) if self.opening.is_none() => {
                self.phase = Phase::Established;
                Verdict::Opened
            }
            (Some(Op::Rw), Phase::Established) if self.guest_shut & SHUT_SEND == 0 => {
                match self.credit.receive(header.len) {
                    true => Verdict::Deliver,
                    false => self.fail(),
                }
            }
            (Some(Op::CreditUpdate), Phase::Established | Phase::Draining) => Verdict::Heard,
            (Some(Op::CreditRequest), Phase::Established | Phase::Draining) => {
                self.update_asked = true;
                Verdict::Heard
            }
            (Some(Op::Shutdown), Phase::Established | Phase::Draining) => {
                self.guest_shut |= header.flags & (SHUT_RECEIVE | SHUT_SEND);
                if self.guest_shut == SHUT_RECEIVE | SHUT_SEND {
                    self.phase = Phase::Draining;
                }
                Verdict::Heard
            }
            _ => self.fail(),
        }
    }

    /// Ends the stream with an RST.
    pub fn fail(&mut self) -> Verdict {
        self.phase = Phase::Broken;
        Verdict::Close
    }

    /// Whether the guest said that it sends no more.
    pub fn guest_sends_no_more(&self) -> bool {
        self.guest_shut & SHUT_SEND != 0
    }

    /// Whether the guest said that it receives no more.
    pub fn guest_receives_no_more(&self) -> bool {
        self.guest_shut & SHUT_RECEIVE != 0
    }

    /// The host sends no more.
    pub fn host_sends_no_more(&mut self) {
        self.host_shut |= SHUT_SEND;
    }

    /// The host receives no more; what the guest still sends is dropped.
    pub fn host_receives_no_more(&mut self) {
        self.host_shut |= SHUT_RECEIVE;
    }

    /// Bytes that may be read from the host for the guest now.
    pub fn to_read(&self) -> u32 {
        let open = self.phase == Phase::Established
            && self.opening.is_none()
            && self.guest_shut & SHUT_RECEIVE == 0
            && self.host_shut & SHUT_SEND == 0;
        if open { self.credit.room() } else { 0 }
    }

    /// `len` bytes of the host went to the guest.
    pub fn sent(&mut self, len: u32) {
        self.credit.sent(len);
        self.request_due = self.credit.room() == 0;
    }

    /// `len` bytes of the guest went to the host, `held` still wait for it.
    pub fn forwarded(&mut self, len: u32, held: usize) {
        self.credit.forward(len);
        self.holding = held > 0;
    }

    /// What the guest must be told next, with its flags.
    pub fn next(&self) -> Option<(Op, u32)> {
        match self.phase {
            Phase::Gone => None,
            Phase::Broken => Some((Op::Rst, 0)),
            _ if self.opening.is_some() => self.opening.map(|op| (op, 0)),
            Phase::Draining if !self.holding => Some((Op::Rst, 0)),
            Phase::Draining | Phase::Requested => None,
            Phase::Established if self.told_shut != self.host_shut => Some((Op::Shutdown, self.host_shut)),
            Phase::Established if self.update_asked || self.credit.update_due() => {
                Some((Op::CreditUpdate, 0))
            }
            Phase::Established if self.request_due && self.credit.room() == 0 => Some((Op::CreditRequest, 0)),
            Phase::Established => None,
        }
    }

    /// The guest was told, and with it our credit.
    pub fn said(&mut self, op: Op, flags: u32) {
        self.update_asked = false;
        match op {
            Op::Request | Op::Response => self.opening = None,
            Op::Rst => self.phase = Phase::Gone,
            Op::Shutdown => self.told_shut = flags,
            Op::CreditRequest => self.request_due = false,
            Op::CreditUpdate | Op::Rw => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{BUFFER, HEADER};
    use super::*;

    fn packet(op: Op) -> Header {
        Header {
            op: Some(op),
            buf_alloc: 1000,
            ..Header::parse(&[0; HEADER])
        }
    }

    fn data(len: u32) -> Header {
        Header {
            len,
            ..packet(Op::Rw)
        }
    }

    fn shutdown(flags: u32) -> Header {
        Header {
            flags,
            ..packet(Op::Shutdown)
        }
    }

    fn say(connection: &mut Connection) -> Option<(Op, u32)> {
        let (op, flags) = connection.next()?;
        connection.said(op, flags);
        Some((op, flags))
    }

    fn established() -> Connection {
        let mut connection = Connection::from_guest(&packet(Op::Request));
        assert_eq!(say(&mut connection), Some((Op::Response, 0)));
        connection
    }

    #[test]
    fn the_host_asks_and_the_guest_grants() {
        let mut connection = Connection::to_guest();
        assert_eq!(say(&mut connection), Some((Op::Request, 0)));
        assert_eq!((connection.next(), connection.to_read()), (None, 0));
        assert_eq!(connection.hear(&packet(Op::Response)), Verdict::Opened);
        assert_eq!(connection.to_read(), 1000);
    }

    #[test]
    fn nothing_is_sent_before_the_response_or_beyond_the_credit() {
        let mut connection = Connection::from_guest(&packet(Op::Request));
        assert_eq!(connection.to_read(), 0);
        say(&mut connection);
        connection.sent(1000);
        assert_eq!(connection.to_read(), 0);
        assert_eq!(say(&mut connection), Some((Op::CreditRequest, 0)));
        assert_eq!(connection.next(), None, "asked once");
        let update = Header {
            fwd_cnt: 300,
            ..packet(Op::CreditUpdate)
        };
        assert_eq!(connection.hear(&update), Verdict::Heard);
        assert_eq!(connection.to_read(), 300);
    }

    #[test]
    fn whatever_is_out_of_order_ends_it_with_an_rst() {
        let unknown = Header {
            op: None,
            ..packet(Op::Rw)
        };
        for wrong in [
            packet(Op::Request),
            packet(Op::Response),
            data(BUFFER + 1),
            unknown,
        ] {
            let mut connection = established();
            assert_eq!(connection.hear(&wrong), Verdict::Close, "{wrong:?}");
            assert_eq!(connection.hear(&data(1)), Verdict::Heard);
            assert_eq!(say(&mut connection), Some((Op::Rst, 0)));
            assert_eq!(connection.phase(), Phase::Gone);
        }
        for wrong in [
            packet(Op::Request),
            data(1),
            shutdown(3),
            packet(Op::CreditUpdate),
        ] {
            let mut connection = Connection::to_guest();
            say(&mut connection);
            assert_eq!(connection.hear(&wrong), Verdict::Close, "{wrong:?}");
        }
        let mut connection = Connection::to_guest();
        let early = connection.hear(&packet(Op::Response));
        assert_eq!(early, Verdict::Close, "before it was asked");
    }

    #[test]
    fn an_rst_ends_it_without_an_answer() {
        for mut connection in [established(), Connection::to_guest()] {
            assert_eq!(connection.hear(&packet(Op::Rst)), Verdict::Close);
            assert_eq!((connection.phase(), connection.next()), (Phase::Gone, None));
        }
    }

    #[test]
    fn a_half_that_is_shut_stays_shut() {
        let mut connection = established();
        assert_eq!(connection.hear(&shutdown(SHUT_RECEIVE)), Verdict::Heard);
        assert_eq!(connection.to_read(), 0);
        assert_eq!(connection.hear(&data(5)), Verdict::Deliver);
        assert_eq!(connection.hear(&shutdown(0)), Verdict::Heard);
        assert!(connection.guest_receives_no_more());

        let mut connection = established();
        assert_eq!(connection.hear(&shutdown(SHUT_SEND)), Verdict::Heard);
        assert_eq!(connection.to_read(), 1000);
        assert_eq!(connection.hear(&data(5)), Verdict::Close);
    }

    #[test]
    fn what_the_guest_sent_before_it_left_is_delivered_before_the_rst() {
        let mut connection = established();
        assert_eq!(connection.hear(&data(5)), Verdict::Deliver);
        connection.forwarded(0, 5);
        assert_eq!(
            connection.hear(&shutdown(SHUT_SEND | SHUT_RECEIVE)),
            Verdict::Heard
        );
        assert_eq!(connection.next(), None);
        assert_eq!(
            connection.hear(&packet(Op::Rst)),
            Verdict::Heard,
            "it was impatient"
        );
        connection.forwarded(5, 0);
        assert_eq!(say(&mut connection), Some((Op::Rst, 0)));
        assert_eq!(connection.phase(), Phase::Gone);
    }

    #[test]
    fn the_guest_is_told_of_each_half_that_the_host_shuts() {
        let mut connection = established();
        connection.host_sends_no_more();
        assert_eq!(say(&mut connection), Some((Op::Shutdown, SHUT_SEND)));
        assert_eq!(connection.next(), None);
        connection.host_receives_no_more();
        assert_eq!(
            say(&mut connection),
            Some((Op::Shutdown, SHUT_SEND | SHUT_RECEIVE))
        );
        assert_eq!(connection.next(), None);
    }

    #[test]
    fn the_guest_is_told_of_room_when_it_asks_and_when_there_is_much() {
        let mut connection = established();
        connection.hear(&packet(Op::CreditRequest));
        assert_eq!(say(&mut connection), Some((Op::CreditUpdate, 0)));
        assert_eq!(connection.hear(&data(BUFFER)), Verdict::Deliver);
        connection.forwarded(BUFFER / 2, (BUFFER / 2) as usize);
        assert_eq!(connection.next(), Some((Op::CreditUpdate, 0)));
        connection.credit.tell();
        assert_eq!(connection.next(), None);
    }
}
