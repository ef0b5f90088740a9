//! Control messages of a console with several ports, and what one port and its driver agreed on
//! (virtio 1.2, §5.3.6.2). Pure.

use crate::state::ConsolePortState;

/// Length of a message without the name that may follow.
pub const MESSAGE: usize = 8;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// What a driver may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// It is ready for ports, or failed.
    DeviceReady(bool),
    /// It set a port up, or failed to.
    PortReady(u32, bool),
    /// A program in the guest opened or closed a port.
    PortOpen(u32, bool),
}

impl Request {
    /// What `bytes` say; `None` for what a driver must not say.
    pub fn parse(bytes: [u8; MESSAGE]) -> Option<Request> {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = bytes;
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        let value = match u16::from_le_bytes([v0, v1]) {
            0 => false,
            1 => true,
            _ => return None,
        };
        match u16::from_le_bytes([e0, e1]) {
            DEVICE_READY => Some(Request::DeviceReady(value)),
            PORT_READY => Some(Request::PortReady(id, value)),
            PORT_OPEN => Some(Request::PortOpen(id, value)),
            _ => None,
        }
    }
}

/// What we may say about a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It exists.
    Add,
    /// It is a console.
    Console,
    /// It has this name.
    Name,
    /// The host's side is open, or closed.
    Open(bool),
}

impl Message {
    /// The message for port `id` with this name.
    pub fn bytes(self, id: u32, name: &str) -> Vec<u8> {
        let (event, value, name) = match self {
            Message::Add => (DEVICE_ADD, 1u16, ""),
            Message::Console => (CONSOLE_PORT, 1, ""),
            Message::Name => (PORT_NAME, 1, name),
            Message::Open(open) => (PORT_OPEN, u16::from(open), ""),
        };
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes
    }
}

/// What a port and its driver agreed on. Messages are not queued: what is still to be said follows from what
/// was said, so that a driver that does not listen costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// It is a console.
    console: bool,
    /// It has a name.
    named: bool,
    /// What is saved of it.
    pub state: ConsolePortState,
    /// The host's side is open.
    pub host_open: bool,
}

impl Agreement {
    /// Nothing agreed on yet.
    pub fn new(console: bool, named: bool, host_open: bool) -> Self {
        Agreement {
            console,
            named,
            state: ConsolePortState::default(),
            host_open,
        }
    }

    /// The only port of a driver that knows no control queue: always open (§5.3.2).
    pub fn without_control(&mut self) {
        self.state.ready = true;
        self.state.guest_open = true;
        self.state.told_open = self.host_open;
    }

    /// The driver is ready for ports.
    pub fn device_ready(&mut self) {
        self.state.add_due = true;
    }

    /// The driver set the port up, or failed to.
    pub fn port_ready(&mut self, ready: bool) {
        self.state.ready = ready;
        self.state.console_due = ready && self.console;
        self.state.name_due = ready && self.named;
        self.state.told_open = false;
        self.state.guest_open &= ready;
    }

    /// A program in the guest opened or closed the port; `false` when there is none for the driver yet.
    pub fn port_open(&mut self, open: bool) -> bool {
        if self.state.ready {
            self.state.guest_open = open;
        }
        self.state.ready
    }

    /// What is to be said next.
    pub fn next(&self) -> Option<Message> {
        let state = &self.state;
        match () {
            () if state.add_due => Some(Message::Add),
            () if !state.ready => None,
            () if state.console_due => Some(Message::Console),
            () if state.name_due => Some(Message::Name),
            () if state.told_open != self.host_open => Some(Message::Open(self.host_open)),
            () => None,
        }
    }

    /// It was said.
    pub fn said(&mut self, message: Message) {
        match message {
            Message::Add => self.state.add_due = false,
            Message::Console => self.state.console_due = false,
            Message::Name => self.state.name_due = false,
            Message::Open(open) => self.state.told_open = open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(port: &mut Agreement) -> Vec<Message> {
        std::iter::from_fn(|| {
            let message = port.next()?;
            port.said(message);
            Some(message)
        })
        .collect()
    }

    #[test]
    fn a_drivers_message_is_understood_or_refused() {
        for (bytes, request) in [
            ([9, 9, 9, 9, 0, 0, 1, 0], Some(Request::DeviceReady(true))),
            ([1, 0, 0, 0, 3, 0, 0, 0], Some(Request::PortReady(1, false))),
            ([0, 1, 0, 0, 6, 0, 1, 0], Some(Request::PortOpen(256, true))),
            ([0, 0, 0, 0, 6, 0, 2, 0], None),
            ([0, 0, 0, 0, 1, 0, 1, 0], None),
            ([0, 0, 0, 0, 0xff, 0xff, 1, 0], None),
        ] {
            assert_eq!(Request::parse(bytes), request, "{bytes:?}");
        }
    }

    #[test]
    fn a_port_is_announced_then_described_once_the_driver_has_it() {
        let mut port = Agreement::new(true, true, true);
        assert_eq!(said(&mut port), []);
        port.device_ready();
        assert_eq!(said(&mut port), [Message::Add]);
        assert!(!port.port_open(true), "before it is ready");
        port.port_ready(true);
        assert_eq!(
            said(&mut port),
            [Message::Console, Message::Name, Message::Open(true)]
        );
        assert!(port.port_open(true));
        port.host_open = false;
        assert_eq!(said(&mut port), [Message::Open(false)]);
    }

    #[test]
    fn a_port_that_the_driver_cannot_set_up_is_left_alone() {
        let mut port = Agreement::new(false, true, true);
        port.device_ready();
        port.port_ready(true);
        port.port_open(true);
        port.port_ready(false);
        assert_eq!(said(&mut port), [Message::Add]);
        assert!(!port.state.guest_open);
    }

    #[test]
    fn a_message_is_laid_out_as_the_specification_says() {
        assert_eq!(Message::Name.bytes(2, "ab"), [2, 0, 0, 0, 7, 0, 1, 0, b'a', b'b']);
        assert_eq!(Message::Open(false).bytes(2, "ab"), [2, 0, 0, 0, 6, 0, 0, 0]);
    }
}
