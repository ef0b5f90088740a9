//! Commands and frames of a network device's driver.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::fuzzing::NetCommand;
use nacelle_fuzz::device::{HostEvent, Kind};
use nacelle_fuzz::guest::{Guest, Step};

#[derive(Arbitrary, Debug)]
enum Action<'a> {
    Command(u8, u8, &'a [u8]),
    Send([u8; 12], &'a [u8]),
    /// Room for frames, and frames.
    Receive(u16, &'a [u8]),
    Step(Step<'a>),
}

fuzz_target!(|input: (u64, Vec<Action>)| {
    let (features, actions) = input;
    let mut guest = Guest::new(Kind::Net, features);
    // The pairs come before the control queue, unless there is one pair only (§5.1.2).
    let several = features & 1 << 22 != 0;
    let control = if several { 4 } else { 2 };
    for action in &actions {
        match action {
            Action::Command(class, command, data) => {
                let bytes = [&[class & 7, command & 7], *data].concat();
                if let Some(NetCommand::SetPairs(pairs)) = NetCommand::parse(&bytes, features, 2) {
                    assert!((1..=2).contains(&pairs));
                }
                guest.ask(control, &bytes, 1);
            }
            Action::Send(header, frame) => guest.ask(1, &[header, *frame].concat(), 0),
            Action::Receive(room, frame) => {
                guest.ask(0, &[], *room);
                guest.step(&Step::Host(HostEvent::Write(0, frame)));
            }
            Action::Step(step) => guest.step(step),
        }
    }
});
