//! Statistics, pages and free memory that a balloon's driver tells of.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::virtio::balloon::BalloonStatistics;
use nacelle_fuzz::device::Kind;
use nacelle_fuzz::guest::{Guest, Part, Step};

const MEMORY: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
enum Action<'a> {
    Statistics(Vec<(u8, u64)>, &'a [u8]),
    Inflate(Vec<u8>, &'a [u8]),
    Deflate(Vec<u8>, &'a [u8]),
    Report(u8, Vec<Part>),
    Step(Step<'a>),
}

/// Pages of the guest that no queue lies in.
fn pfns(pages: &[u8]) -> Vec<u8> {
    pages
        .iter()
        .flat_map(|page| (u32::from(*page) + 8).to_le_bytes())
        .collect()
}

fuzz_target!(|input: (u64, Vec<Action>)| {
    let (features, actions) = input;
    let mut guest = Guest::new(Kind::Balloon, features);
    for action in &actions {
        match action {
            Action::Statistics(entries, more) => {
                let entry = |(tag, value): &(u8, u64)| {
                    [&u16::from(tag & 15).to_le_bytes()[..], &value.to_le_bytes()].concat()
                };
                let mut bytes: Vec<u8> = entries.iter().flat_map(entry).collect();
                bytes.extend(*more);
                let statistics = BalloonStatistics::parse(&bytes, MEMORY);
                assert!(statistics.free_memory.is_none_or(|free| free <= MEMORY));
                guest.ask(2, &bytes, 0);
            }
            Action::Inflate(pages, more) => guest.ask(0, &[&pfns(pages), *more].concat(), 0),
            Action::Deflate(pages, more) => guest.ask(1, &[&pfns(pages), *more].concat(), 0),
            Action::Report(queue, parts) => guest.offer(3 + queue % 2, parts, &[], true),
            Action::Step(step) => guest.step(step),
        }
    }
});
