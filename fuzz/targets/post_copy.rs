//! What the two sides of a post-copy hear: which pages are missing, pages that come, faults of pages.
#![no_main]

use std::io::{self, Cursor, Read, Write};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::memory::Memory;
use nacelle_vmm::memory::dirty::{PAGE, Run};
use nacelle_vmm::migrate::fuzzing::{Arriving, missing, serve};
use nacelle_vmm::migrate::wire::{self, Kind};
use vm_memory::{Bytes, GuestAddress};

/// Pages of the two regions of memory, and where the second one is.
const PAGES: [u64; 2] = [64, 16];
const SECOND: u64 = 80;

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Raw { kind: u8, flags: u8, payload: &'a [u8] },
    Missing(Vec<(u8, u8)>),
    Pages { page: u8, pages: u8, byte: u8, packed: bool },
    Zero { page: u8, pages: u8 },
    Fault { page: u8 },
}

fn runs(runs: &[(u8, u8)]) -> Vec<u8> {
    let run = |(page, pages): &(u8, u8)| Run {
        address: u64::from(*page) * PAGE,
        pages: u64::from(*pages),
    };
    wire::zero_payload(&runs.iter().map(run).collect::<Vec<_>>())
}

impl Piece<'_> {
    fn frame(&self) -> (Kind, u16, Vec<u8>) {
        let at = |page: u8| (u64::from(page) * PAGE).to_le_bytes();
        match self {
            Piece::Raw { kind, flags, payload } => {
                let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
                (kind, u16::from(*flags & 3), payload.to_vec())
            }
            Piece::Missing(missing) => (Kind::Missing, 0, runs(missing)),
            Piece::Pages { page, pages, byte, packed } => {
                let data = vec![*byte; usize::from(*pages % 8) * PAGE as usize];
                let (flags, data) = match packed {
                    false => (0, data),
                    true => (wire::ZSTD, zstd::bulk::compress(&data, 1).unwrap()),
                };
                (Kind::Pages, flags, [&at(*page), &data[..]].concat())
            }
            Piece::Zero { page, pages } => (Kind::Zero, 0, runs(&[(*page, *pages)])),
            Piece::Fault { page } => (Kind::Fault, 0, at(*page).to_vec()),
        }
    }
}

/// The other side: it has said all that it has to say, and what it is told is counted.
struct Other(Cursor<Vec<u8>>, u64);

impl Read for Other {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Other {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn stream<'a>(frames: impl Iterator<Item = &'a (Kind, u16, Vec<u8>)>) -> Box<Other> {
    let mut bytes = Vec::new();
    for (kind, flags, payload) in frames {
        // What is longer than may be is not sent.
        let _ = wire::write(&mut bytes, *kind, *flags, &[payload]);
    }
    Box::new(Other(Cursor::new(bytes), 0))
}

fn memory() -> Memory {
    let [first, second] = PAGES.map(|pages| (pages * PAGE) as usize);
    Memory::from_ranges(&[(GuestAddress(0), first), (GuestAddress(SECOND * PAGE), second)]).unwrap()
}

fn addresses() -> impl Iterator<Item = u64> {
    let [first, second] = PAGES;
    (0..first).chain(SECOND..SECOND + second).map(|page| page * PAGE)
}

fn page(memory: &Memory, address: u64) -> [u8; PAGE as usize] {
    let mut page = [0; PAGE as usize];
    memory.read_slice(&mut page, GuestAddress(address)).unwrap();
    page
}

fuzz_target!(|pieces: Vec<Piece>| {
    let frames: Vec<_> = pieces.iter().map(Piece::frame).collect();
    let memory = memory();
    let old = [0xcc; PAGE as usize];
    addresses().for_each(|address| memory.write_slice(&old, GuestAddress(address)).unwrap());

    // The source.
    let asked = frames.iter().filter(|(kind, ..)| *kind == Kind::Fault);
    serve(stream(asked.clone()), &memory).unwrap_or_default();
    serve(stream(frames.iter()), &memory).unwrap_or_default();

    // The target: a page is what came first for it, and what is not missing stays.
    let listed = frames.iter().filter(|(kind, ..)| *kind == Kind::Missing);
    let end = (Kind::Missing, 0, Vec::new());
    let Ok(list) = missing(stream(listed.chain([&end])), &memory) else {
        return;
    };
    let mut left = list.clone();
    let Ok(arriving) = Arriving::new(&memory, list.clone()) else {
        panic!("this host does not let it answer page faults: vm.unprivileged_userfaultfd, or be root");
    };
    let mut expected = std::collections::BTreeMap::new();
    for (kind, flags, payload) in &frames {
        let before = left.clone();
        let taken = arriving.take(*kind, *flags, payload);
        let mut plain = Vec::new();
        match kind {
            Kind::Pages => {
                let Ok((address, data)) = wire::pages(*flags, payload, &mut plain) else {
                    assert!(taken.is_err());
                    continue;
                };
                for (at, page) in data.chunks(PAGE as usize).enumerate() {
                    let address = address + at as u64 * PAGE;
                    if left.remove(address) {
                        expected.insert(address, page.to_vec());
                    }
                }
            }
            Kind::Zero if taken.is_ok() => {
                for run in wire::zero_runs(payload).unwrap() {
                    for page in 0..run.pages {
                        left.remove(run.address + page * PAGE);
                    }
                }
            }
            // It may have been taken in part.
            Kind::Zero => return arriving.let_go(),
            _ => assert!(!taken.unwrap() && before == left),
        }
    }
    arriving.let_go();
    for address in addresses() {
        let zero = || vec![0; PAGE as usize];
        let expected = match list.has(address) {
            true => expected.remove(&address).unwrap_or_else(zero),
            false => old.to_vec(),
        };
        assert_eq!(page(&memory, address)[..], expected[..], "{address:#x}");
    }
});
