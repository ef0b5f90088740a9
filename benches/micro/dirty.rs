//! The bitmap of written pages: marked by devices, read by a migration.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nacelle_devices::memory::Memory;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const SIZE: usize = 1 << 30;
const PAGE: usize = 4096;

fn scan(criterion: &mut Criterion) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
    let region = memory.iter().next().unwrap();
    let bitmap = region.bitmap();
    let mut group = criterion.benchmark_group("dirty bitmap of 1 GiB");
    group.throughput(Throughput::Bytes(SIZE as u64));
    for (name, every) in [("one page in 1000", 1000), ("every page", 1)] {
        for page in (0..SIZE / PAGE).step_by(every) {
            bitmap.mark_dirty(page * PAGE, 1);
        }
        group.bench_function(format!("{name}: each page asked for"), |bencher| {
            bencher.iter(|| {
                let dirty = (0..SIZE / PAGE)
                    .filter(|page| bitmap.dirty_at(page * PAGE))
                    .count();
                assert!(dirty >= SIZE / PAGE / every);
                dirty
            });
        });
    }
    group.finish();
    criterion.bench_function("mark 4 KiB written", |bencher| {
        bencher.iter(|| bitmap.mark_dirty(0x1234_5000, PAGE))
    });
}

criterion_group!(benches, scan);
criterion_main!(benches);
