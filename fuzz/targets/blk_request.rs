//! Requests of a block device's driver: the parser by itself, then the device over a disk in memory.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::disk::DiskOp;
use nacelle_devices::fuzzing::{BlkRefusal, BlkRules, BlkWork, parse_blk_request};
use nacelle_fuzz::device::Kind;
use nacelle_fuzz::disk::SECTORS;
use nacelle_fuzz::guest::{DATA, Guest, Part, Step, memory, put};
use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddressSpace;

#[derive(Arbitrary, Debug)]
struct Request<'a> {
    kind: u8,
    sector: u8,
    segment: Option<(u8, u16, u8)>,
    sectors: u8,
    parts: Vec<Part>,
    more: &'a [u8],
    raw: bool,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    read_only: bool,
    features: u64,
    descriptors: Vec<(u32, u32, u8)>,
    requests: Vec<Request<'a>>,
    steps: Vec<Step<'a>>,
}

impl Request<'_> {
    /// The request as it lies in memory.
    fn bytes(&self) -> Vec<u8> {
        if self.raw {
            return self.more.to_vec();
        }
        let mut bytes = u32::from(self.kind & 15).to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(u64::from(self.sector).to_le_bytes());
        if let Some((sector, count, flags)) = self.segment {
            bytes.extend(u64::from(sector).to_le_bytes());
            bytes.extend(u32::from(count).to_le_bytes());
            bytes.extend(u32::from(flags).to_le_bytes());
        }
        bytes.extend(self.more);
        bytes.resize(bytes.len() + 512 * usize::from(self.sectors & 1), 0xaa);
        bytes
    }
}

/// What comes out of the parser can be executed as it is.
fn check_parser(input: &Input) {
    let memory = memory();
    if let Some(request) = input.requests.first() {
        put(&memory, DATA, &request.bytes());
    }
    let rules = BlkRules {
        sectors: SECTORS,
        read_only: input.read_only,
        durable: false,
        max_descriptors: 16,
        max_discard: 8,
        max_write_zeroes: 4,
    };
    let chain = input.descriptors.iter().map(|&(at, len, flags)| {
        let address = DATA + u64::from(at % 0x6_0000);
        Descriptor::new(address, len, u16::from(flags & 3), 0)
    });
    match parse_blk_request(&memory.memory(), chain, &rules) {
        Ok(request) => {
            let len: usize = request.data.iter().map(|(_, len)| len).sum();
            let end = SECTORS * 512;
            let changes = match request.work {
                BlkWork::Disk(DiskOp::Read { offset }) => {
                    assert!(len > 0 && len % 512 == 0 && offset + len as u64 <= end);
                    assert_eq!(request.writable as usize, len);
                    false
                }
                BlkWork::Disk(DiskOp::Write { offset, .. }) => {
                    assert!(len > 0 && len % 512 == 0 && offset + len as u64 <= end);
                    true
                }
                BlkWork::Disk(DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. }) => {
                    assert!(len > 0 && len <= 8 * 512 && offset + len <= end);
                    true
                }
                BlkWork::Disk(DiskOp::Flush) | BlkWork::Id | BlkWork::Nothing => false,
            };
            assert!(!(changes && input.read_only));
            assert!(request.data.is_empty() || request.len as usize == len);
        }
        Err(BlkRefusal::Status { code, used, .. }) => assert!((1..=2).contains(&code) && used <= 1),
        Err(BlkRefusal::Unanswerable) => {}
    }
}

fuzz_target!(|input: Input| {
    check_parser(&input);
    let mut guest = Guest::new(Kind::Blk, input.features);
    let mut steps = input.steps.iter();
    for request in &input.requests {
        guest.offer(request.kind >> 4, &request.parts, &request.bytes(), request.raw);
        guest.ask(request.kind >> 4, &request.bytes(), 513);
        if let Some(step) = steps.next() {
            guest.step(step);
        }
    }
});
