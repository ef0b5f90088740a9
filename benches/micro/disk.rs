//! A disk's queue: small reads of a raw file in memory, by its queue and by the kernel's plain call.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nacelle_devices::disk::{DiskOp, DiskOptions, open};
use nacelle_devices::memory::{GuestBuffer, Memory};
use vm_memory::GuestAddress;

const BATCH: u16 = 32;
const PAGE: usize = 4096;
const BLOCKS: u64 = 4096;

fn reads(criterion: &mut Criterion) {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    for _ in 0..BLOCKS {
        file.write_all(&[0x5a; PAGE]).unwrap();
    }
    let disk = open(DiskOptions::raw(file.path())).unwrap();
    let mut queue = disk.open_queue(BATCH).unwrap();
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let buffers = || {
        (0..BATCH).map(|tag| {
            let range = (GuestAddress(u64::from(tag) * PAGE as u64), PAGE);
            (tag, GuestBuffer::new(Arc::clone(&memory), vec![range]).unwrap())
        })
    };
    let mut block = 0;
    let mut offset = || {
        block = (block + 1021) % BLOCKS;
        block * PAGE as u64
    };

    let mut group = criterion.benchmark_group("disk in memory");
    group.throughput(Throughput::Elements(BATCH.into()));
    group.bench_function("32 buffers of guest memory", |bencher| {
        bencher.iter(|| assert_eq!(buffers().count(), usize::from(BATCH)));
    });
    group.bench_function("32 reads of 4 KiB, its queue", |bencher| {
        bencher.iter(|| {
            for (tag, buffer) in buffers() {
                queue
                    .submit(tag, DiskOp::Read { offset: offset() }, buffer)
                    .unwrap();
            }
            queue.commit().unwrap();
            let mut left = BATCH;
            while left > 0 {
                while let Some(completion) = queue.reap() {
                    assert_eq!(completion.result.unwrap(), PAGE as u32);
                    left -= 1;
                }
            }
        });
    });
    let mut page = [0; PAGE];
    group.bench_function("32 reads of 4 KiB, pread", |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                file.as_file().read_exact_at(&mut page, offset()).unwrap();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, reads);
criterion_main!(benches);
