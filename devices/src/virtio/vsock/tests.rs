use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::tempdir::TempDir;

use super::packet::{BUFFER, HEADER, Header, Op, SHUT_RECEIVE, SHUT_SEND};
use super::testbed::{CID, EVENT, EVENT_IDX, Guest, RECEIVE, SEND_FROM, TRANSMIT};
use super::*;
use crate::driver::{BUFFERS, Driver};

/// The host of a test: the directory of its sockets.
struct Host(TempDir);

impl Host {
    fn device(&self, name: &str, limit: usize) -> Vsock {
        let config = VsockConfig {
            guest_cid: CID,
            uds_path: self.0.as_path().join(name),
        };
        Vsock::with_limit(config, Worker::spawn("io0").unwrap(), limit).unwrap()
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.0.as_path().join(format!("v.sock_{port}"))).unwrap()
    }

    /// A stream from the guest's port 1000 to a program of the host at port 80.
    fn connect(&self, guest: &mut Guest) -> UnixStream {
        let listener = self.listen(80);
        guest.send(1000, 80, Op::Request);
        guest.expect(1000, 80, Op::Response);
        let (stream, _) = listener.accept().unwrap();
        std::fs::remove_file(self.0.as_path().join("v.sock_80")).unwrap();
        limited(stream)
    }

    /// A program of the host that wants to be connected to a port of the guest.
    fn caller(&self, name: &str, greeting: &str) -> UnixStream {
        let mut caller = limited(UnixStream::connect(self.0.as_path().join(name)).unwrap());
        caller.write_all(greeting.as_bytes()).unwrap();
        caller
    }
}

/// A guest without buffers.
fn bare() -> (Guest, Host) {
    let host = Host(TempDir::new().unwrap());
    let mut driver = Driver::new(host.device("v.sock", 8));
    driver.start(EVENT_IDX);
    (Guest::new(driver, CID), host)
}

fn guest() -> (Guest, Host) {
    let (mut guest, host) = bare();
    guest.offer_all();
    (guest, host)
}

/// A test that would hang fails instead.
fn limited(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn heard(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    stream.read_exact(&mut data).unwrap();
    data
}

fn hung_up(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(len) => len == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 241) as u8).collect()
}

#[test]
fn a_driver_finds_its_context() {
    let (guest, _host) = guest();
    assert_eq!((guest.driver.config(0), guest.driver.config(4)), (CID as u32, 0));
    assert_eq!(guest.driver.offered() & 0xff_ffff, STREAM);
}

#[test]
fn ten_mebibytes_are_echoed_intact_with_little_credit() {
    let (mut guest, host) = guest();
    guest.buf_alloc = 10_000;
    let listener = host.listen(80);
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap()
    });
    guest.send(1000, 80, Op::Request);
    let mut credit = guest.expect(1000, 80, Op::Response);
    let data = pattern(10 << 20);
    let (mut sent, mut told, mut back) = (0, 0, Vec::new());
    while back.len() < data.len() {
        let underway = (sent as u32).wrapping_sub(credit.fwd_cnt);
        let room = credit.buf_alloc - underway;
        let len = (room as usize).min(20_000).min(data.len() - sent);
        if len > 0 {
            guest.write(1000, 80, &data[sent..sent + len]);
            sent += len;
            told = guest.fwd_cnt;
        }
        while let Some((header, part)) = guest.poll() {
            credit = header;
            match header.op {
                Some(Op::Rw) => {
                    back.extend(part);
                    guest.fwd_cnt = back.len() as u32;
                    assert!(
                        guest.fwd_cnt - told <= guest.buf_alloc,
                        "more than we have room for"
                    );
                    if guest.fwd_cnt - told > 6_000 {
                        guest.send(1000, 80, Op::CreditUpdate);
                        told = guest.fwd_cnt;
                    }
                }
                Some(Op::CreditRequest) => {
                    guest.send(1000, 80, Op::CreditUpdate);
                    told = guest.fwd_cnt;
                }
                op => assert_eq!(op, Some(Op::CreditUpdate)),
            }
        }
    }
    assert!(back == data);
    guest.shutdown(1000, 80, SHUT_SEND | SHUT_RECEIVE);
    assert_eq!(echo.join().unwrap(), 10 << 20);
}

#[test]
fn a_program_of_the_host_reaches_a_port_of_the_guest() {
    let (mut guest, host) = guest();
    let mut caller = host.caller("v.sock", "CONNECT 52\nearly");
    let port = guest.wait().0.src_port;
    guest.expect_nothing();
    guest.send(52, port, Op::Response);
    let line = format!("OK {port}\n");
    assert_eq!(heard(&mut caller, line.len()), line.as_bytes());

    assert_eq!(guest.read(5), b"early");
    guest.write(52, port, b"welcome");
    assert_eq!(heard(&mut caller, 7), b"welcome");
}

#[test]
fn a_caller_that_the_guest_refuses_or_does_not_understand_is_hung_up() {
    let (mut guest, host) = guest();
    let mut caller = host.caller("v.sock", "CONNECT 52\n");
    let port = guest.wait().0.src_port;
    guest.send(52, port, Op::Rst);
    assert!(hung_up(&mut caller));
    assert!(hung_up(&mut host.caller("v.sock", "HELLO\n")));
    guest.expect_nothing();
}

#[test]
fn a_caller_that_gives_up_frees_the_guest() {
    let (mut guest, host) = guest();
    let caller = host.caller("v.sock", "CONNECT 52\n");
    let port = guest.wait().0.src_port;
    drop(caller);
    guest.expect(52, port, Op::Rst);
}

#[test]
fn a_port_that_nobody_takes_is_refused() {
    let (mut guest, _host) = guest();
    guest.send(1000, 81, Op::Request);
    guest.expect(1000, 81, Op::Rst);
}

#[test]
fn a_guest_that_sends_no_more_still_gets_its_answer() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    guest.write(1000, 80, b"request");
    guest.shutdown(1000, 80, SHUT_SEND);
    let mut request = Vec::new();
    program.read_to_end(&mut request).unwrap();
    assert_eq!(request, b"request");

    program.write_all(b"answer").unwrap();
    assert_eq!(guest.read(6), b"answer");
    drop(program);
    assert_ne!(guest.expect(1000, 80, Op::Shutdown).flags & SHUT_SEND, 0);
    guest.shutdown(1000, 80, SHUT_SEND | SHUT_RECEIVE);
    guest.expect(1000, 80, Op::Rst);
}

#[test]
fn a_program_that_sends_no_more_still_gets_its_answer() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    program.write_all(b"request").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.read(7), b"request");
    assert_eq!(guest.expect(1000, 80, Op::Shutdown).flags, SHUT_SEND);

    guest.write(1000, 80, b"answer");
    guest.shutdown(1000, 80, SHUT_SEND | SHUT_RECEIVE);
    guest.expect(1000, 80, Op::Rst);
    let mut answer = Vec::new();
    program.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
}

#[test]
fn a_program_that_leaves_is_noticed_after_what_it_said() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    program.write_all(b"bye").unwrap();
    drop(program);
    assert_eq!(guest.read(3), b"bye");
    assert_eq!(
        guest.expect(1000, 80, Op::Shutdown).flags,
        SHUT_SEND | SHUT_RECEIVE
    );
    guest.write(1000, 80, b"to nobody");
    guest.send(1000, 80, Op::Rst);
    guest.expect_nothing();
    host.connect(&mut guest);
}

#[test]
fn a_program_that_does_not_read_stops_the_guest_and_gets_all_in_the_end() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    let data = pattern(8 << 20);
    let mut sent = 0u32;
    let mut fwd_cnt = 0;
    // The host says how much room there is; once it says nothing more, it is full.
    while sent - fwd_cnt < BUFFER {
        let len = 16_384.min(BUFFER - (sent - fwd_cnt));
        guest.write(1000, 80, &data[sent as usize..(sent + len) as usize]);
        sent += len;
        std::thread::sleep(Duration::from_millis(1));
        while let Some((header, _)) = guest.poll() {
            fwd_cnt = header.fwd_cnt;
        }
        assert!((sent as usize) < data.len(), "no socket holds that much");
    }
    guest.shutdown(1000, 80, SHUT_SEND | SHUT_RECEIVE);
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    assert!(got == data[..sent as usize]);
    guest.expect(1000, 80, Op::Rst);
}

#[test]
fn a_guest_that_sends_beyond_its_credit_loses_the_stream() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    let len = BUFFER + 1;
    guest.write(1000, 80, &vec![7; len as usize]);
    guest.expect(1000, 80, Op::Rst);
    assert!(hung_up(&mut program));
}

#[test]
fn headers_out_of_order_end_the_stream() {
    type Spoil = fn(&mut Header);
    let wrong: [(&str, Spoil); 6] = [
        ("a length that lies", |h| h.len = 5),
        ("the longest length", |h| h.len = u32::MAX),
        ("a request again", |h| h.op = Some(Op::Request)),
        ("a response", |h| h.op = Some(Op::Response)),
        ("an unknown operation", |h| h.op = None),
        ("a credit that overflows", |h| h.fwd_cnt = 0x8000_0000),
    ];
    for (what, spoil) in wrong {
        let (mut guest, host) = guest();
        let mut program = host.connect(&mut guest);
        let mut header = guest.header(1000, 80, Op::Rw, 4);
        spoil(&mut header);
        guest.send_raw(&header.bytes(), b"data");
        if what == "a credit that overflows" {
            // It leaves us no credit; the guest harms itself.
            program.write_all(b"x").unwrap();
            assert_eq!(heard(&mut program, 4), b"data");
            guest.expect_nothing();
            continue;
        }
        guest.expect(1000, 80, Op::Rst);
        assert!(hung_up(&mut program), "{what}");
    }
}

#[test]
fn packets_of_no_stream_are_refused_or_dropped() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.send(1001, 80, op);
        guest.expect(1001, 80, Op::Rst);
    }
    let header = guest.header(1000, 80, Op::Rw, 4);
    let datagram = Header { kind: 3, ..header };
    guest.send_raw(&datagram.bytes(), b"data");
    assert_eq!(guest.expect(1000, 80, Op::Rst).kind, 3);
    for dropped in [
        Header {
            src_cid: 43,
            ..header
        },
        Header { src_cid: 2, ..header },
        Header {
            dst_cid: 43,
            ..header
        },
        Header {
            src_cid: CID | 1 << 32,
            ..header
        },
    ] {
        guest.send_raw(&dropped.bytes(), b"data");
    }
    guest.send(1001, 80, Op::Rst);
    guest.send_raw(&header.bytes()[..43], &[]);
    for buffer in [
        (BUFFERS, 64, true),
        (u64::MAX - 8, 64, false),
        (SEND_FROM, 0, false),
    ] {
        assert_eq!(guest.driver.request(TRANSMIT, &[buffer]), 0);
    }
    guest.expect_nothing();
    guest.write(1000, 80, b"still here");
    assert_eq!(heard(&mut program, 10), b"still here");
}

#[test]
fn a_guest_has_a_limited_number_of_streams() {
    let (mut guest, host) = guest();
    let listener = host.listen(80);
    let mut programs = Vec::new();
    for port in 0..8 {
        guest.send(port, 80, Op::Request);
        guest.expect(port, 80, Op::Response);
        programs.push(listener.accept().unwrap().0);
    }
    guest.send(8, 80, Op::Request);
    guest.expect(8, 80, Op::Rst);
    let mut caller = host.caller("v.sock", "CONNECT 52\n");
    guest.expect_nothing();

    guest.send(0, 80, Op::Rst);
    let (request, _) = guest.wait();
    assert_eq!((request.op, request.dst_port), (Some(Op::Request), 52));
    guest.send(52, request.src_port, Op::Response);
    assert_eq!(heard(&mut caller, 3), b"OK ");
}

#[test]
fn a_guest_that_does_not_listen_makes_nothing_pile_up() {
    let (mut guest, _host) = bare();
    let header = guest.header(5, 6, Op::Rw, 0).bytes();
    guest.driver.put(SEND_FROM, &header);
    for _ in 0..200 {
        guest.driver.offer(TRANSMIT, &[(SEND_FROM, HEADER as u32, false)]);
    }
    guest.driver.ring(TRANSMIT);
    for _ in 0..64 {
        guest.driver.wait(TRANSMIT);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.driver.used(TRANSMIT), None);

    guest.offer_all();
    for _ in 0..200 {
        guest.expect(5, 6, Op::Rst);
    }
    for _ in 64..200 {
        guest.driver.wait(TRANSMIT);
    }
}

#[test]
fn buffers_without_room_are_given_back() {
    let (mut guest, _host) = bare();
    for (buffer, written) in [
        ((BUFFERS, HEADER as u32 - 1, true), 0),
        ((BUFFERS, 4096, false), 0),
        ((u64::MAX - 8, 4096, true), 0),
        ((BUFFERS, HEADER as u32, true), HEADER as u32),
    ] {
        // There is something to be said each time.
        guest.send(5, 6, Op::Rw);
        assert_eq!(guest.driver.request(RECEIVE, &[buffer]), written, "{buffer:x?}");
    }
}

#[test]
fn a_pause_in_the_middle_of_streams_loses_nothing() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    let mut idle = host.caller("v.sock", "CONNE");
    let data = pattern(1 << 20);
    let writer = {
        let (mut program, data) = (program.try_clone().unwrap(), data.clone());
        std::thread::spawn(move || program.write_all(&data).unwrap())
    };
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(guest.read(1));
        if got.len() % 7 == 0 {
            guest.driver.transport.registers().pause().unwrap();
            guest.driver.transport.registers().resume().unwrap();
        }
        guest.send(1000, 80, Op::CreditUpdate);
    }
    writer.join().unwrap();
    assert!(got == data);
    guest.write(1000, 80, b"done");
    assert_eq!(heard(&mut program, 4), b"done");
    idle.write_all(b"CT 52\n").unwrap();
    assert_eq!(guest.wait().0.op, Some(Op::Request));
}

#[test]
fn a_restored_guest_is_told_that_its_streams_are_gone_and_connects_again() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    guest.driver.transport.registers().pause().unwrap();
    let state = guest.driver.transport.save();
    let head = guest.driver.offer(EVENT, &[(SEND_FROM + 0x10_0000, 4, true)]);
    let other = host.device("w.sock", 8);

    guest.driver.move_to(other, state);

    assert_eq!(guest.driver.wait(EVENT), (head, 4));
    assert_eq!(guest.driver.get(SEND_FROM + 0x10_0000, 4), [0; 4]);
    assert!(hung_up(&mut program));
    guest.write(1000, 80, b"old");
    guest.expect(1000, 80, Op::Rst);
    let _caller = host.caller("w.sock", "CONNECT 52\n");
    assert_eq!(guest.wait().0.op, Some(Op::Request));
}

#[test]
fn a_reset_hangs_up() {
    let (mut guest, host) = guest();
    let mut program = host.connect(&mut guest);
    guest.driver.start(0);
    assert!(hung_up(&mut program));
}

#[test]
fn a_caller_waits_while_the_guest_must_reset_and_is_heard_after_it() {
    for queue in [RECEIVE, TRANSMIT] {
        let (mut guest, host) = guest();
        let mut program = host.connect(&mut guest);
        guest.driver.set_avail_index(queue, 5000);
        program.write_all(b"x").unwrap();
        guest.driver.ring(queue);
        guest.driver.wait_needs_reset();
        // What waits at the sockets does not keep the thread busy; a reset hangs up.
        let _caller = host.caller("v.sock", "CONNECT 52\n");

        guest.driver.start(0);
        guest.buffers.clear();
        guest.offer_all();
        assert_eq!(guest.wait().0.op, Some(Op::Request));
    }
}

#[test]
fn contexts_that_are_reserved_and_sockets_that_cannot_be_made_are_refused() {
    let dir = TempDir::new().unwrap();
    let make = |guest_cid, name: &str| {
        let config = VsockConfig {
            guest_cid,
            uds_path: dir.as_path().join(name),
        };
        Vsock::new(config, Worker::spawn("io0").unwrap())
    };
    for cid in [0, 1, 2, 0xffff_ffff, 1 << 32] {
        assert!(make(cid, "a").is_err(), "{cid}");
    }
    let first = make(3, "a").unwrap();
    assert!(make(4, "a").is_err());
    drop(first);
    assert!(make(4, "a").is_ok(), "the socket is removed with its device");
}
