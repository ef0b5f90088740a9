//! Chains of descriptors that break the rules (virtio 1.2, §2.7.4, §2.7.5).

use super::{Subject, running, start};
use crate::driver::{BUFFERS, Driver, INDIRECT, MEMORY, NEXT, Over, WRITE, eventually};

const SIZE: u16 = 16;
const TABLE: u64 = BUFFERS + 0x10_0000;

/// Descriptors, from the first of a table on: address, length, flags, next.
type Table = &'static [(u64, u32, u16, u16)];

struct BadChain {
    what: &'static str,
    ring: Table,
    head: u16,
    indirect: Table,
}

const fn direct(what: &'static str, ring: Table) -> BadChain {
    BadChain {
        what,
        ring,
        head: 0,
        indirect: &[],
    }
}

const fn indirect(what: &'static str, ring: Table, indirect: Table) -> BadChain {
    BadChain {
        what,
        ring,
        head: 0,
        indirect,
    }
}

const fn head(what: &'static str, head: u16) -> BadChain {
    BadChain {
        what,
        ring: &[],
        head,
        indirect: &[],
    }
}

/// What no driver may offer, and what it may but no driver of ours does.
const CHAINS: &[BadChain] = &[
    direct(
        "a loop to read",
        &[(BUFFERS, 64, NEXT, 1), (BUFFERS, 64, NEXT, 0)],
    ),
    direct(
        "a loop to write",
        &[(BUFFERS, 64, WRITE | NEXT, 1), (BUFFERS, 64, WRITE | NEXT, 0)],
    ),
    direct("its own successor", &[(BUFFERS, 64, WRITE | NEXT, 0)]),
    direct(
        "a loop both ways",
        &[(BUFFERS, 64, NEXT, 1), (BUFFERS, 64, WRITE | NEXT, 0)],
    ),
    direct("nothing to read", &[(BUFFERS, 0, 0, 0)]),
    direct("nothing to write", &[(BUFFERS, 0, WRITE, 0)]),
    direct("a byte to read", &[(BUFFERS, 1, 0, 0)]),
    direct("a byte to write", &[(BUFFERS, 1, WRITE, 0)]),
    direct("only to read", &[(BUFFERS, 4096, 0, 0)]),
    direct("only to write", &[(BUFFERS, 4096, WRITE, 0)]),
    direct(
        "to write, then to read",
        &[(BUFFERS, 64, WRITE | NEXT, 1), (BUFFERS, 64, 0, 0)],
    ),
    direct(
        "to read, to write, to read",
        &[
            (BUFFERS, 64, NEXT, 1),
            (BUFFERS, 64, WRITE | NEXT, 2),
            (BUFFERS, 64, 0, 0),
        ],
    ),
    direct("behind memory, to read", &[(MEMORY, 64, 0, 0)]),
    direct("behind memory, to write", &[(MEMORY, 64, WRITE, 0)]),
    direct("half in memory, to read", &[(MEMORY - 32, 64, 0, 0)]),
    direct("half in memory, to write", &[(MEMORY - 32, 64, WRITE, 0)]),
    direct("at the end of addresses, to read", &[(u64::MAX - 31, 64, 0, 0)]),
    direct(
        "at the end of addresses, to write",
        &[(u64::MAX - 31, 64, WRITE, 0)],
    ),
    direct("4 GiB to read", &[(BUFFERS, u32::MAX, 0, 0)]),
    direct("4 GiB to write", &[(BUFFERS, u32::MAX, WRITE, 0)]),
    direct("more than anybody reads", &[(BUFFERS, 2 << 20, 0, 0)]),
    direct(
        "half of it outside memory",
        &[(BUFFERS, 64, NEXT, 1), (MEMORY, 64, WRITE, 0)],
    ),
    direct("a successor that there is not", &[(BUFFERS, 64, NEXT, SIZE)]),
    direct("a successor far away", &[(BUFFERS, 64, WRITE | NEXT, 0xffff)]),
    direct("unknown flags", &[(BUFFERS, 64, 0xfff8, 0)]),
    head("a head that there is not", SIZE),
    head("a head far away", 0xffff),
    indirect("an empty table", &[(TABLE, 0, INDIRECT, 0)], &[]),
    indirect(
        "half a descriptor",
        &[(TABLE, 24, INDIRECT, 0)],
        &[(BUFFERS, 64, NEXT, 1)],
    ),
    indirect(
        "a table too long to count",
        &[(TABLE, 16 << 16, INDIRECT, 0)],
        &[(BUFFERS, 64, 0, 0)],
    ),
    indirect(
        "the longest table",
        &[(TABLE, 0xffff0, INDIRECT, 0)],
        &[(BUFFERS, 1, NEXT, 0)],
    ),
    indirect("a table behind memory", &[(MEMORY, 32, INDIRECT, 0)], &[]),
    indirect("a table half in memory", &[(MEMORY - 16, 32, INDIRECT, 0)], &[]),
    indirect(
        "a table at the end of addresses",
        &[(u64::MAX - 15, 32, INDIRECT, 0)],
        &[],
    ),
    indirect(
        "a table in a table",
        &[(TABLE, 16, INDIRECT, 0)],
        &[(TABLE, 16, INDIRECT, 0)],
    ),
    indirect(
        "a table in a chain's midst",
        &[
            (BUFFERS, 64, NEXT, 1),
            (TABLE, 16, INDIRECT | NEXT, 2),
            (BUFFERS, 64, WRITE, 0),
        ],
        &[(BUFFERS, 64, 0, 0)],
    ),
    indirect(
        "a table to write",
        &[(TABLE, 16, INDIRECT | WRITE, 0)],
        &[(BUFFERS, 4096, WRITE, 0)],
    ),
    indirect(
        "a table that leaves itself",
        &[(TABLE, 32, INDIRECT, 0)],
        &[(BUFFERS, 64, NEXT, 2)],
    ),
    indirect(
        "a loop in a table",
        &[(TABLE, 32, INDIRECT, 0)],
        &[(BUFFERS, 64, WRITE | NEXT, 1), (BUFFERS, 64, WRITE | NEXT, 0)],
    ),
];

/// Offers the chain; gives the most that the device may say to have written.
fn offer(driver: &mut Driver, queue: u16, chain: &BadChain) -> u64 {
    for (index, &(address, len, flags, next)) in (0..).zip(chain.ring) {
        driver.descriptor(queue, index, address, len, flags, next);
    }
    for (index, &(address, len, flags, next)) in (0..).zip(chain.indirect) {
        driver.descriptor_at(TABLE, index, address, len, flags, next);
    }
    driver.make_available(queue, chain.head);
    driver.ring(queue);
    let writable = |table: Table| table.iter().any(|(_, _, flags, _)| flags & WRITE != 0);
    match writable(chain.ring) || writable(chain.indirect) {
        true => u64::from(u32::MAX),
        false => 0,
    }
}

pub fn a_bad_chain_on_any_queue_is_answered_or_costs_a_reset<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    let offered = driver.features;
    for queue in 0..driver.queue_count() {
        for chain in CHAINS {
            let what = format!("{} in queue {queue}", chain.what);
            driver.start_with(offered, |_, max| Some(max.min(SIZE)));
            subject.greet(&mut driver);
            subject.provoke(&mut driver);
            let most = offer(&mut driver, queue, chain);
            if S::IDLE.contains(&queue) {
                driver.transport.pause().unwrap();
                driver.transport.resume().unwrap();
            } else {
                let mut answer = None;
                eventually(&what, || {
                    subject.swallow();
                    answer = driver.used(queue);
                    answer.is_some() || driver.status() & 0x40 != 0
                });
                if let Some((head, len)) = answer {
                    assert_eq!(head, chain.head, "{what}");
                    assert!(u64::from(len) <= most, "{what}: {len} bytes written");
                }
                subject.swallow();
                if driver.status() & 0x40 == 0 {
                    subject.work(&mut driver);
                }
            }
        }
    }
    start(&mut subject, &mut driver, offered);
    subject.work(&mut driver);
}
