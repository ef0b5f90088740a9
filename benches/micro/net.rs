//! A network device's path of a frame, but for the network: header and buffers between ring and tap.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nacelle_devices::fuzzing::{NetCounter, Receiver, Transmitter};
use nacelle_devices::net::{Frame, NetBackend};
use ring::Silent;
use virtio_queue::QueueT;

/// VIRTIO_NET_F_MRG_RXBUF
const MERGEABLE: u64 = 1 << 15;
const BATCH: u16 = 64;
const FRAME: usize = 12 + 1514;

/// A network that takes everything, and gives as many frames as were asked for.
struct Nowhere {
    file: std::fs::File,
    left: AtomicUsize,
}

impl AsFd for Nowhere {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetBackend for Nowhere {
    fn receive(&self, _frame: &mut Frame<'_>) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        let left = left.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        self.left.store(left, Ordering::Relaxed);
        Ok(FRAME)
    }
    fn send(&self, _frame: &Frame<'_>) -> io::Result<()> {
        Ok(())
    }
    fn offloads(&self) -> u64 {
        0
    }
    fn set_offloads(&self, _features: u64) -> io::Result<()> {
        Ok(())
    }
    fn set_active(&self, _active: bool) -> io::Result<()> {
        Ok(())
    }
}

fn frames(criterion: &mut Criterion) {
    let network = Nowhere {
        file: std::fs::File::open("/dev/null").unwrap(),
        left: AtomicUsize::new(0),
    };
    let counter = NetCounter::default();
    let mut group = criterion.benchmark_group("net");
    group.throughput(Throughput::Elements(BATCH.into()));

    let (memory, queue) = ring::queue(&[(FRAME as u32, false)]);
    let mut transmitter = Transmitter::new(queue, 0, None);
    group.bench_function("64 frames sent", |bencher| {
        bencher.iter(|| {
            ring::offer(&memory, &mut transmitter.queue, BATCH);
            transmitter
                .run(&memory, &Silent, Some(&network), &counter)
                .unwrap();
            assert_eq!(transmitter.queue.queue.next_avail(), BATCH);
        });
    });

    for (name, features, size) in [
        ("64 frames received, into large buffers", 0, 65562),
        ("64 frames received, merged buffers of a page", MERGEABLE, 4096),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let (memory, mut queue) = ring::queue(&[(size, true)]);
                    ring::offer(&memory, &mut queue, 128);
                    (memory, Receiver::new(queue, features, None))
                },
                |(memory, mut receiver)| {
                    network.left.store(BATCH.into(), Ordering::Relaxed);
                    receiver
                        .run(&memory, &Silent, &network, &counter)
                        .unwrap()
                        .unwrap();
                    assert_eq!(receiver.queue.queue.next_used(), BATCH);
                    receiver
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
