use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use super::*;
use crate::driver::{BUFFERS, Driver, eventually};
use crate::state::TransportState;

use crate::driver::EVENT_IDX;
const AGENT: &str = "org.qemu.guest_agent.0";
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
/// Queues of the agent's port, number 1.
const RECEIVE: u16 = 4;
const TRANSMIT: u16 = 5;

/// A terminal and the agent's channel, and the other ends of both.
fn console() -> (Console, UnixStream, UnixStream) {
    let (terminal, host0) = UnixStream::pair().unwrap();
    let (agent, host1) = UnixStream::pair().unwrap();
    for end in [&terminal, &agent] {
        end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let port = |name: &str, console, host| PortConfig {
        name: name.into(),
        console,
        host,
    };
    let config = ConsoleConfig {
        ports: vec![port("", true, host0), port(AGENT, false, host1)],
    };
    let console = Console::new(config, Worker::spawn("io0").unwrap()).unwrap();
    (console, terminal, agent)
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

fn say(driver: &mut Driver, id: u32, event: u16, value: u16) {
    driver.put(BUFFERS, &message(id, event, value));
    assert_eq!(driver.request(CONTROL_TRANSMIT, &[(BUFFERS, 8, false)]), 0);
}

/// The next thing that the device says.
fn hear(driver: &mut Driver) -> Vec<u8> {
    let at = BUFFERS + 0x1000;
    let len = driver.request(CONTROL_RECEIVE, &[(at, 256, true)]);
    driver.get(at, len as usize)
}

/// A guest whose agent has its port open.
fn with_agent(features: u64) -> (Driver, UnixStream, UnixStream) {
    let (console, terminal, agent) = console();
    let mut driver = Driver::new(console);
    driver.start(MULTIPORT | features);
    say(&mut driver, 0, 0, 1);
    assert_eq!(hear(&mut driver), message(0, 1, 1));
    assert_eq!(hear(&mut driver), message(1, 1, 1));
    say(&mut driver, 1, 3, 1);
    assert_eq!(hear(&mut driver), [&message(1, 7, 1), AGENT.as_bytes()].concat());
    assert_eq!(hear(&mut driver), message(1, 6, 1));
    say(&mut driver, 1, 6, 1);
    (driver, terminal, agent)
}

fn send(driver: &mut Driver, queue: u16, data: &[u8]) {
    driver.put(BUFFERS, data);
    assert_eq!(driver.request(queue, &[(BUFFERS, data.len() as u32, false)]), 0);
}

fn heard(end: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    end.read_exact(&mut data).unwrap();
    data
}

fn restored(driver: &mut Driver, state: TransportState) -> (UnixStream, UnixStream) {
    let (console, terminal, agent) = console();
    driver.move_to(console, state);
    (terminal, agent)
}

#[test]
fn a_driver_that_knows_one_port_has_a_terminal() {
    let (console, mut terminal, _agent) = console();
    let mut driver = Driver::new(console);
    driver.start(0);
    assert_eq!(driver.config(4), 2);

    send(&mut driver, 1, b"login: ");
    assert_eq!(heard(&mut terminal, 7), b"login: ");
    terminal.write_all(b"root\n").unwrap();
    assert_eq!(
        driver.request(0, &[(BUFFERS, 2, true), (BUFFERS + 2, 10, true)]),
        5
    );
    assert_eq!(driver.get(BUFFERS, 5), b"root\n");
}

#[test]
fn the_terminal_is_announced_as_one() {
    let (mut driver, ..) = with_agent(0);
    say(&mut driver, 0, 3, 1);
    assert_eq!(hear(&mut driver), message(0, 4, 1));
    assert_eq!(hear(&mut driver), message(0, 6, 1));
}

#[test]
fn the_agent_talks_through_its_port() {
    for event_idx in [0, EVENT_IDX] {
        let (mut driver, _terminal, mut agent) = with_agent(event_idx);
        for round in 0..200u32 {
            let question = format!("question {round}").into_bytes();
            agent.write_all(&question).unwrap();
            let len = driver.request(RECEIVE, &[(BUFFERS, 64, true)]);
            assert_eq!(driver.get(BUFFERS, len as usize), question);
            send(&mut driver, TRANSMIT, &question);
            assert_eq!(heard(&mut agent, question.len()), question);
        }
    }
}

#[test]
fn what_the_host_says_waits_until_a_program_listens_and_has_buffers() {
    let (mut driver, _terminal, mut agent) = with_agent(0);
    say(&mut driver, 1, 6, 0);
    let head = driver.offer(RECEIVE, &[(BUFFERS + 0x100, 64, true)]);
    driver.ring(RECEIVE);
    agent.write_all(b"early").unwrap();
    // The round trip shows that the device had its chance.
    say(&mut driver, 0, 6, 1);
    assert_eq!(driver.used(RECEIVE), None);

    say(&mut driver, 1, 6, 1);
    assert_eq!(driver.wait(RECEIVE), (head, 5));
    agent.write_all(b"more").unwrap();
    say(&mut driver, 0, 6, 1);
    assert_eq!(driver.request(RECEIVE, &[(BUFFERS, 64, true)]), 4);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let (mut driver, _terminal, mut agent) = with_agent(EVENT_IDX);
    let data: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 251) as u8).collect();
    // Not where `say` puts its words: the device may not have begun to read.
    let at = BUFFERS + 0x1000;
    driver.put(at, &data);
    let chunk = 256 * 1024;
    for i in 0..32 {
        driver.offer(TRANSMIT, &[(at + i * chunk, chunk as u32, false)]);
    }
    driver.ring(TRANSMIT);
    let mut done = 0;
    agent.set_nonblocking(true).unwrap();
    eventually("the socket is full", || {
        let before = done;
        done += std::iter::from_fn(|| driver.used(TRANSMIT)).count();
        std::thread::sleep(Duration::from_millis(20));
        before == done
    });
    assert!(done < 32, "8 MiB cannot be in a socket");

    // Others are served meanwhile.
    say(&mut driver, 0, 3, 1);
    agent.set_nonblocking(false).unwrap();
    assert!(heard(&mut agent, data.len()) == data);
    for _ in done..32 {
        driver.wait(TRANSMIT);
    }
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let (mut driver, _terminal, mut agent) = with_agent(0);
    agent.set_nonblocking(true).unwrap();
    let mut written = 0;
    let error = loop {
        match agent.write(&[7; 4096]) {
            Ok(len) => written += len,
            Err(error) => break error,
        }
        assert!(written < 64 << 20);
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);

    while written > 0 {
        written -= driver.request(RECEIVE, &[(BUFFERS, 0x1_0000, true)]) as usize;
    }
    assert_eq!(driver.get(BUFFERS, 4), [7; 4]);
}

#[test]
fn the_guest_is_told_when_the_host_hangs_up_and_may_go_on_sending() {
    let (mut driver, _terminal, mut agent) = with_agent(0);
    agent.write_all(b"bye").unwrap();
    agent.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.request(RECEIVE, &[(BUFFERS, 64, true)]), 3);
    driver.offer(RECEIVE, &[(BUFFERS, 64, true)]);
    driver.ring(RECEIVE);
    assert_eq!(hear(&mut driver), message(1, 6, 0));
    send(&mut driver, TRANSMIT, b"to nobody");
    assert_eq!(agent.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_host_that_hangs_up_while_it_is_full_frees_the_guest() {
    let (mut driver, _terminal, agent) = with_agent(0);
    for _ in 0..16 {
        driver.offer(TRANSMIT, &[(BUFFERS, 1 << 20, false)]);
    }
    driver.ring(TRANSMIT);
    drop(agent);
    for _ in 0..16 {
        driver.wait(TRANSMIT);
    }
    assert_eq!(hear(&mut driver), message(1, 6, 0));
}

#[test]
fn control_messages_that_make_no_sense_are_ignored() {
    let (mut driver, _terminal, mut agent) = with_agent(0);
    for (id, event, value) in [
        (2, 3, 1),
        (u32::MAX, 6, 1),
        (0, 6, 1),
        (1, 6, 77),
        (1, 1, 1),
        (1, 0xffff, 1),
        (0, 0, 0),
    ] {
        say(&mut driver, id, event, value);
    }
    for buffer in [(BUFFERS, 7, false), (BUFFERS, 8, true), (u64::MAX - 4, 8, false)] {
        assert_eq!(driver.request(CONTROL_TRANSMIT, &[buffer]), 0);
    }
    agent.write_all(b"still here").unwrap();
    assert_eq!(driver.request(RECEIVE, &[(BUFFERS, 64, true)]), 10);
}

#[test]
fn a_message_that_does_not_fit_is_said_again_in_the_next_buffer() {
    let (console, ..) = console();
    let mut driver = Driver::new(console);
    driver.start(MULTIPORT);
    say(&mut driver, 0, 0, 1);
    assert_eq!(driver.request(CONTROL_RECEIVE, &[(BUFFERS, 7, true)]), 0);
    assert_eq!(driver.request(CONTROL_RECEIVE, &[(BUFFERS, 8, false)]), 0);
    assert_eq!(hear(&mut driver), message(0, 1, 1));
}

#[test]
fn a_driver_that_repeats_itself_makes_nothing_pile_up() {
    let (mut driver, ..) = with_agent(0);
    for _ in 0..1000 {
        say(&mut driver, 0, 0, 1);
    }
    assert_eq!(hear(&mut driver), message(0, 1, 1));
    assert_eq!(hear(&mut driver), message(1, 1, 1));
    driver.offer(CONTROL_RECEIVE, &[(BUFFERS, 256, true)]);
    driver.ring(CONTROL_RECEIVE);
    say(&mut driver, 1, 6, 1);
    assert_eq!(driver.used(CONTROL_RECEIVE), None);
}

#[test]
fn bad_data_buffers_are_given_back() {
    let (mut driver, _terminal, mut agent) = with_agent(0);
    agent.write_all(b"x").unwrap();
    for buffer in [(BUFFERS, 8, false), (BUFFERS, 0, true), (u64::MAX - 4, 8, true)] {
        assert_eq!(driver.request(RECEIVE, &[buffer]), 0, "{buffer:x?}");
    }
    for buffer in [(BUFFERS, 8, true), (BUFFERS, 0, false), (u64::MAX - 4, 8, false)] {
        assert_eq!(driver.request(TRANSMIT, &[buffer]), 0, "{buffer:x?}");
    }
    assert_eq!(driver.request(RECEIVE, &[(BUFFERS, 8, true)]), 1);
}

#[test]
fn a_device_stopped_in_the_middle_of_a_chain_goes_on_there_elsewhere() {
    let (mut driver, _terminal, mut agent) = with_agent(EVENT_IDX);
    let data: Vec<u8> = (0..4 << 20).map(|i: u32| (i / 251) as u8).collect();
    driver.put(BUFFERS, &data);
    let head = driver.offer(TRANSMIT, &[(BUFFERS, 4 << 20, false)]);
    driver.ring(TRANSMIT);
    let mut received = heard(&mut agent, 100_000);
    driver.transport.registers().pause().unwrap();
    let state = driver.transport.save();
    agent.set_nonblocking(true).unwrap();
    let _ = agent.read_to_end(&mut received);
    assert!(received.len() < data.len());
    assert_eq!(driver.used(TRANSMIT), None);

    let (_terminal, mut agent) = restored(&mut driver, state);

    received.extend(heard(&mut agent, data.len() - received.len()));
    assert!(received == data);
    assert_eq!(driver.wait(TRANSMIT), (head, 0));
    agent.write_all(b"welcome").unwrap();
    assert_eq!(driver.request(RECEIVE, &[(BUFFERS, 64, true)]), 7);
}

#[test]
fn a_restored_driver_is_told_what_it_was_not_told_before() {
    let (console, ..) = console();
    let mut driver = Driver::new(console);
    driver.start(MULTIPORT);
    say(&mut driver, 0, 0, 1);
    assert_eq!(hear(&mut driver), message(0, 1, 1));
    driver.transport.registers().pause().unwrap();
    let state = driver.transport.save();
    let _ends = restored(&mut driver, state);
    assert_eq!(hear(&mut driver), message(1, 1, 1));
}

#[test]
fn a_state_of_other_ports_is_refused() {
    let (mut console, ..) = console();
    assert!(
        console
            .restore(DeviceState::Console(ConsoleState::default()))
            .is_err()
    );
    assert!(console.restore(DeviceState::Stateless).is_err());
}

#[test]
fn ports_that_cannot_be_told_apart_are_refused() {
    let port = |name: &str| PortConfig {
        name: name.into(),
        console: false,
        host: UnixStream::pair().unwrap().0,
    };
    let make = |ports| Console::new(ConsoleConfig { ports }, Worker::spawn("io0").unwrap()).is_ok();
    assert!(make(vec![port(""), port("")]));
    assert!(!make(vec![]));
    assert!(!make(vec![port("a"), port("a")]));
    assert!(!make(vec![port("a\0b")]));
    assert!(!make((0..33).map(|i| port(&i.to_string())).collect()));
}
