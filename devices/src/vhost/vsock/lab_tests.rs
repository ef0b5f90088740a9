//! The device in the kernel, where there is one: `tests/lab/devices` runs these in the lab. The programs of the
//! host are this test's own AF_VSOCK sockets.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, getsockname, listen,
    socket,
};

use super::*;
use crate::driver::{Driver, Over, eventually, over_both_transports};
use crate::virtio::vsock::packet::{Op, SHUT_RECEIVE, SHUT_SEND};
use crate::virtio::vsock::testbed::{EVENT_IDX, Guest, SEND_FROM};

over_both_transports! { in the lab:
    a_program_of_the_guest_reaches_one_of_the_host_and_a_mebibyte_is_echoed
    a_program_of_the_host_reaches_one_of_the_guest
    a_pause_loses_nothing
    a_restored_guest_is_told_that_its_streams_are_gone_and_connects_again
    a_malformed_ring_asks_for_a_reset_and_a_reset_heals
}

/// Each test has its own context, since the kernel has one of each.
fn context(test: u64, over: Over) -> u64 {
    match over {
        Over::Mmio => 1000 + test,
        Over::Pci => 2000 + test,
    }
}

fn device(cid: u64) -> VhostVsock {
    VhostVsock::new(cid, Worker::spawn("io0").unwrap()).unwrap()
}

fn guest(test: u64, over: Over) -> Guest {
    let cid = context(test, over);
    let mut driver = Driver::over(over, device(cid));
    driver.start(EVENT_IDX);
    let mut guest = Guest::new(driver, cid);
    guest.offer_all();
    guest
}

fn vsock_socket() -> OwnedFd {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap()
}

/// A program of the host that listens, and its port.
fn listener() -> (OwnedFd, u32) {
    let socket = vsock_socket();
    bind(
        socket.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_ANY, libc::VMADDR_PORT_ANY),
    )
    .unwrap();
    listen(&socket, Backlog::new(8).unwrap()).unwrap();
    let address: VsockAddr = getsockname(socket.as_raw_fd()).unwrap();
    (socket, address.port())
}

fn accept(listener: &OwnedFd) -> File {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
    // SAFETY: the descriptor was just made and is nobody else's.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

/// A stream from the guest's port 1000 to a program of the host.
fn connected(guest: &mut Guest) -> (File, u32) {
    let (listener, port) = listener();
    guest.send(1000, port, Op::Request);
    guest.expect(1000, port, Op::Response);
    (accept(&listener), port)
}

fn a_program_of_the_guest_reaches_one_of_the_host_and_a_mebibyte_is_echoed(over: Over) {
    let mut guest = guest(1, over);
    let (mut program, port) = connected(&mut guest);
    let echo =
        std::thread::spawn(move || std::io::copy(&mut program.try_clone().unwrap(), &mut program).unwrap());
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 241) as u8).collect();
    for part in data.chunks(8192) {
        guest.write(1000, port, part);
        assert!(guest.read(part.len()) == part);
    }
    guest.shutdown(1000, port, SHUT_SEND | SHUT_RECEIVE);
    eventually("the stream ends", || guest.wait().0.op == Some(Op::Rst));
    assert_eq!(echo.join().unwrap(), 1 << 20);
    assert!(guest.driver.interrupts() > 0);
}

fn a_program_of_the_host_reaches_one_of_the_guest(over: Over) {
    let mut guest = guest(2, over);
    let address = VsockAddr::new(guest.cid as u32, 52);
    let program = std::thread::spawn(move || {
        let socket = vsock_socket();
        connect(socket.as_raw_fd(), &address).unwrap();
        let mut program = File::from(socket);
        program.write_all(b"question").unwrap();
        let mut answer = [0; 6];
        program.read_exact(&mut answer).unwrap();
        answer
    });
    let (request, _) = guest.wait();
    assert_eq!((request.op, request.dst_port), (Some(Op::Request), 52));
    guest.send(52, request.src_port, Op::Response);
    assert_eq!(guest.read(8), b"question");
    guest.write(52, request.src_port, b"answer");
    assert_eq!(&program.join().unwrap(), b"answer");
}

fn a_pause_loses_nothing(over: Over) {
    let mut guest = guest(3, over);
    let (mut program, port) = connected(&mut guest);
    for round in 0..20u8 {
        program.write_all(&[round; 1000]).unwrap();
        guest.driver.transport.pause().unwrap();
        guest.driver.transport.resume().unwrap();
        assert_eq!(guest.read(1000), [round; 1000]);
        guest.write(1000, port, &[round]);
        let mut byte = [0];
        program.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [round]);
    }
}

fn a_restored_guest_is_told_that_its_streams_are_gone_and_connects_again(over: Over) {
    let mut guest = guest(4, over);
    let (program, _) = connected(&mut guest);
    guest.driver.transport.pause().unwrap();
    let state = guest.driver.transport.save();
    let head = guest.driver.offer(EVENT, &[(SEND_FROM + 0x10_0000, 4, true)]);

    guest.cid = context(5, over);
    guest.driver.move_to(device(guest.cid), state);

    assert_eq!(guest.driver.wait(EVENT), (head, 4));
    assert_eq!(u64::from(guest.driver.config(0)), guest.cid);
    drop(program);
    let (mut program, port) = connected(&mut guest);
    guest.write(1000, port, b"again");
    let mut data = [0; 5];
    program.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"again");
}

fn a_malformed_ring_asks_for_a_reset_and_a_reset_heals(over: Over) {
    for queue in [1, EVENT] {
        let mut guest = guest(6, over);
        if queue == EVENT {
            // Looked at only when there is an event.
            guest.driver.transport.pause().unwrap();
            let state = guest.driver.transport.save();
            guest.driver.transport.restore(state).unwrap();
            guest.driver.transport.resume().unwrap();
        }
        guest.driver.set_avail_index(queue, 1000);
        guest.driver.ring(queue);
        guest.driver.wait_needs_reset();

        guest.driver.start(0);
        guest.buffers.clear();
        guest.offer_all();
        connected(&mut guest);
    }
}

#[test]
#[ignore = "needs the lab: tests/lab/devices"]
fn two_guests_cannot_have_the_same_context() {
    let first = device(1007);
    let Err(error) = VhostVsock::new(1007, Worker::spawn("io1").unwrap()) else {
        panic!("two guests have context 1007");
    };
    assert_eq!(
        error.to_string(),
        "cannot take the context id 1007 (another guest of this host has it)"
    );
    drop(first);
    device(1007);
    assert!(VhostVsock::new(2, Worker::spawn("io1").unwrap()).is_err());
}
