//! A virtqueue: chains are popped, walked and given back.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

mod ring;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ring::Silent;

const BATCH: u16 = 64;

fn pop_and_complete(criterion: &mut Criterion) {
    let (memory, mut queue) = ring::queue(&[(16, false), (4096, true), (1, true)]);
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(BATCH.into()));
    group.bench_function("pop, walk, complete, notify: 64 chains of 3", |bencher| {
        bencher.iter(|| {
            ring::offer(&memory, &mut queue, BATCH);
            let mut bytes = 0;
            while let Some(chain) = queue.pop(&memory).unwrap() {
                let head = chain.head_index();
                bytes += chain.map(|descriptor| descriptor.len()).sum::<u32>();
                queue.complete(&memory, head, 4097).unwrap();
            }
            queue.notify(&memory, &Silent).unwrap();
            assert_eq!(bytes, u32::from(BATCH) * 4113);
        });
    });
    group.finish();
}

criterion_group!(benches, pop_and_complete);
criterion_main!(benches);
