//! What a source of a migration sends: frames as they are, or with true headers over any payload.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::memory::Memory;
use nacelle_vmm::VmState;
use nacelle_vmm::migrate::message::{Description, Hello};
use nacelle_vmm::migrate::pages::Receiver;
use nacelle_vmm::migrate::wire::{self, Kind};
use vm_memory::GuestAddress;

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Raw(&'a [u8]),
    Frame { kind: u8, flags: u8, payload: &'a [u8] },
    Pages { page: u8, pages: u8, byte: u8, packed: bool },
    Zero { page: u8, pages: u8 },
}

impl Piece<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Piece::Raw(bytes) => to.extend_from_slice(bytes),
            Piece::Frame { kind, flags, payload } => {
                let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
                wire::write(to, kind, u16::from(*flags & 3), &[payload]).unwrap();
            }
            Piece::Pages { page, pages, byte, packed } => {
                let address = (u64::from(*page) * 4096).to_le_bytes();
                let data = vec![*byte; usize::from(*pages) * 4096];
                match packed {
                    false => wire::write(to, Kind::Pages, 0, &[&address, &data]).unwrap(),
                    true => {
                        let data = zstd::bulk::compress(&data, 1).unwrap();
                        wire::write(to, Kind::Pages, wire::ZSTD, &[&address, &data]).unwrap();
                    }
                }
            }
            Piece::Zero { page, pages } => {
                let run = nacelle_vmm::memory::dirty::Run {
                    address: u64::from(*page) * 4096,
                    pages: u64::from(*pages),
                };
                wire::write(to, Kind::Zero, 0, &[&wire::zero_payload(&[run])]).unwrap();
            }
        }
    }
}

fuzz_target!(|pieces: Vec<Piece>| {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 64 << 12), (GuestAddress(80 << 12), 16 << 12)]).unwrap();
    let mut stream = Vec::new();
    pieces.iter().for_each(|piece| piece.write(&mut stream));
    let (mut left, mut payload) = (&stream[..], Vec::new());
    let mut receiver = Receiver::new(&memory);
    while let Ok(Some(frame)) = wire::read(&mut left, &mut payload) {
        assert!(payload.len() as u64 <= frame.kind.most());
        let _ = receiver.take(&frame, &payload);
        if let Ok(description) = wire::decode::<Description>(&payload) {
            let _ = description.fits(&Description::default());
        }
        if let Ok(hello) = wire::decode::<Hello>(&payload) {
            let _ = hello.version();
        }
        let _ = wire::decode::<VmState>(&payload);
        let _ = wire::decode::<String>(&payload);
    }
});
