//! Packets of a socket device's driver, with programs of the host at the other end.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::fuzzing::{VSOCK_HEADER, VsockCredit, VsockHeader};
use nacelle_fuzz::device::{CID, Kind, PORT};
use nacelle_fuzz::guest::{Guest, Step};

const RECEIVE: u8 = 0;
const TRANSMIT: u8 = 1;

#[derive(Arbitrary, Debug)]
struct Packet<'a> {
    guest_port: u8,
    host_port: u8,
    op: u8,
    flags: u8,
    buf_alloc: u32,
    fwd_cnt: u16,
    /// What the header says beyond the truth.
    lie: Option<[u8; VSOCK_HEADER]>,
    more: i8,
    data: &'a [u8],
}

impl Packet<'_> {
    fn bytes(&self) -> Vec<u8> {
        let len = (self.data.len() as u32).wrapping_add_signed(i32::from(self.more) / 64);
        // The programs' ports are few, so that streams meet.
        let ports = (
            u32::from(self.guest_port & 3),
            PORT + u32::from(self.host_port & 1),
        );
        let mut bytes = Vec::new();
        bytes.extend(CID.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(ports.0.to_le_bytes());
        bytes.extend(ports.1.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(u16::from(self.op & 7).to_le_bytes());
        bytes.extend(u32::from(self.flags & 3).to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(u32::from(self.fwd_cnt).to_le_bytes());
        for (byte, lie) in bytes.iter_mut().zip(self.lie.unwrap_or([0; VSOCK_HEADER])) {
            *byte ^= lie;
        }
        bytes.extend(self.data);
        bytes
    }
}

#[derive(Arbitrary, Debug)]
enum Action<'a> {
    Send(Packet<'a>),
    Room(u16),
    Step(Step<'a>),
}

fn check_header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<VSOCK_HEADER>() else {
        return;
    };
    let header = VsockHeader::parse(bytes);
    let again = header.bytes();
    assert!(header.op.is_none() || again == bytes);
    let mut credit = VsockCredit::default();
    credit.hear(&header);
    assert_eq!(
        credit.room(),
        if header.fwd_cnt == 0 {
            header.buf_alloc
        } else {
            credit.room()
        }
    );
    assert_eq!(credit.receive(header.len), header.len <= 64 * 1024);
}

fuzz_target!(|actions: Vec<Action>| {
    let mut guest = Guest::new(Kind::Vsock, u64::MAX);
    for action in &actions {
        match action {
            Action::Send(packet) => {
                let bytes = packet.bytes();
                check_header(&bytes);
                guest.ask(TRANSMIT, &bytes, 0);
            }
            Action::Room(room) => guest.ask(RECEIVE, &[], *room),
            Action::Step(step) => guest.step(step),
        }
    }
});
