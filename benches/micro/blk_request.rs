//! A block device's request: from descriptors to a checked value.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use criterion::{Criterion, criterion_group, criterion_main};
use nacelle_devices::fuzzing::{BlkRules, parse_blk_request};
use nacelle_devices::memory::Memory;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

fn parse(criterion: &mut Criterion) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    // VIRTIO_BLK_T_IN of sector 8.
    memory.write_obj(0u64, GuestAddress(0x1000)).unwrap();
    memory.write_obj(8u64, GuestAddress(0x1008)).unwrap();
    let rules = BlkRules {
        sectors: 1 << 20,
        read_only: false,
        durable: false,
        max_descriptors: 256,
        max_discard: 0,
        max_write_zeroes: 0,
    };
    for segments in [1u64, 32] {
        let mut chain = vec![Descriptor::new(0x1000, 16, 1, 1)];
        chain.extend((0..segments).map(|segment| Descriptor::new(0x1_0000 + segment * 4096, 4096, 3, 1)));
        chain.push(Descriptor::new(0x2000, 1, 2, 0));
        criterion.bench_function(&format!("blk request: a read of {segments} pages"), |bencher| {
            bencher.iter(|| {
                let request = parse_blk_request(&memory, chain.iter().copied(), &rules).unwrap();
                assert_eq!(u64::from(request.len), segments * 4096);
                request
            });
        });
    }
}

criterion_group!(benches, parse);
criterion_main!(benches);
