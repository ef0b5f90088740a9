//! Control messages and text of a console's driver.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::fuzzing::{CONSOLE_MESSAGE, ConsoleAgreement, ConsoleRequest};
use nacelle_fuzz::device::Kind;
use nacelle_fuzz::guest::{Guest, Step};

const CONTROL_RECEIVE: u8 = 2;
const CONTROL_TRANSMIT: u8 = 3;

#[derive(Arbitrary, Debug)]
enum Action<'a> {
    Say(u8, u8, u8),
    Raw(&'a [u8]),
    Hear(u16),
    /// Text on a port, and room for it.
    Send(u8, &'a [u8]),
    Room(u8, u16),
    Step(Step<'a>),
}

/// Whatever a driver says, what there is to be said to it comes to an end.
fn check_agreement(messages: &[Vec<u8>]) {
    let mut port = ConsoleAgreement::new(true, true, true);
    for message in messages {
        let Some(bytes) = message.first_chunk::<CONSOLE_MESSAGE>() else {
            continue;
        };
        match ConsoleRequest::parse(*bytes) {
            Some(ConsoleRequest::DeviceReady(true)) => port.device_ready(),
            Some(ConsoleRequest::PortReady(_, ready)) => port.port_ready(ready),
            Some(ConsoleRequest::PortOpen(_, open)) => {
                port.port_open(open);
            }
            _ => {}
        }
        for said in 0.. {
            let Some(message) = port.next() else {
                break;
            };
            assert!(said < 4, "{message:?}");
            port.said(message);
        }
    }
}

fuzz_target!(|input: (u64, Vec<Action>)| {
    let (features, actions) = input;
    let mut guest = Guest::new(Kind::Console, features);
    let mut messages = Vec::new();
    for action in &actions {
        match action {
            Action::Say(port, event, value) => {
                let message = vec![port & 3, 0, 0, 0, event & 7, 0, value & 3, 0];
                guest.ask(CONTROL_TRANSMIT, &message, 0);
                messages.push(message);
            }
            Action::Raw(message) => {
                guest.ask(CONTROL_TRANSMIT, message, 0);
                messages.push(message.to_vec());
            }
            Action::Hear(room) => guest.ask(CONTROL_RECEIVE, &[], *room),
            Action::Send(port, text) => guest.ask(4 * (port & 1) + 1, text, 0),
            Action::Room(port, room) => guest.ask(4 * (port & 1), &[], *room),
            Action::Step(step) => guest.step(step),
        }
    }
    check_agreement(&messages);
});
