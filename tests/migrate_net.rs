//! Live migration over a network: two hosts that are network namespaces, a link of 1 Gbit/s between them; and what
//! the guest's own network hears of a move. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::channel;
use std::time::Duration;

use nacelle_vmm::Vm;
use nacelle_vmm::config::Transport;
use nacelle_vmm::migrate::{Cancel, Compression, Options, Stream, receive, send};
use support::device;
use support::link::{THERE, between};
use support::migration::Route;
use support::network::{Host, in_namespace};
use support::payload::{Payload, config, with};

fn prepared(stream: TcpStream) -> io::Result<Box<dyn Stream>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    Ok(Box::new(stream))
}

/// Moves a guest that was told `how` to write from one host to another.
fn over_a_link(how: &'static str, options: Options) {
    let machine = || config("dirty=6000");
    let (addresses, address) = channel();
    let (moved, arrived) = channel::<(Vm, std::sync::mpsc::Receiver<nacelle_vmm::VmEvent>)>();
    let target_options = options.clone();
    let target = move || {
        let listener = TcpListener::bind((THERE, 0)).unwrap();
        addresses.send(listener.local_addr().unwrap()).unwrap();
        let (sender, events) = channel();
        let mut accept = || prepared(listener.accept()?.0);
        let cancel = Cancel::new();
        let here = receive(machine(), sender, &mut accept, &target_options, &cancel, &mut ()).unwrap();
        moved.send((here.vm, events)).unwrap();
    };
    let source = move || {
        let to = address.recv().unwrap();
        let mut guest = Payload::boot(machine());
        guest.ok("dirty");
        guest.ok("written");
        guest.type_text(&format!("{how}m"));
        guest.ok("mark");
        let port = guest.vm.migration().unwrap();
        let mut connect = |_| prepared(TcpStream::connect(to)?);
        let cancel = Cancel::new();
        let report = send(port, &mut guest.vm, &mut connect, &options, &cancel, &mut ()).unwrap();
        let memory = report.wire as f64 / 125e6;
        println!(
            "{how}, {} streams: {:.0} ms in all, {:.1} ms still, {} rounds, {} MiB: the link needs {:.0} ms for that",
            options.streams,
            report.total.as_secs_f64() * 1e3,
            report.downtime.as_secs_f64() * 1e3,
            report.rounds,
            report.wire >> 20,
            memory * 1e3
        );
        let (vm, events) = arrived.recv().unwrap();
        let mut guest = guest.became(vm, events);
        guest.type_text("c");
        guest.ok("checked");
        guest.type_text("q");
        guest.end();
    };
    between("tbf rate 1gbit burst 128kb latency 50ms", source, target);
}

fn options(streams: u16) -> Options {
    Options {
        streams,
        compression: Compression::Never,
        ..Options::default()
    }
}

#[test]
fn an_idle_guest_crosses_a_link_of_a_gigabit() {
    over_a_link("i", options(1));
}

#[test]
fn a_guest_that_writes_slowly_crosses_it_over_several_streams() {
    over_a_link("s", options(4));
}

#[test]
fn a_guest_that_writes_as_fast_as_it_can_is_slowed_until_it_crosses() {
    let mut options = options(1);
    options.limits.downtime = Duration::from_millis(150);
    over_a_link("w", options);
}

/// Frames of a type that come to a network interface of this namespace.
struct Frames(OwnedFd);

impl Frames {
    fn of(kind: u16) -> Frames {
        // SAFETY: the call has no requirement; its result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(kind.to_be())) };
        assert!(fd >= 0);
        // SAFETY: the descriptor was made just now and is nobody else's.
        Frames(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn next(&self) -> Vec<u8> {
        let mut frame = vec![0u8; 2000];
        // SAFETY: the buffer is as long as the call is told.
        let len = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        assert!(len > 0, "{}", io::Error::last_os_error());
        frame.truncate(len as usize);
        frame
    }
}

#[test]
fn a_guest_that_has_moved_is_made_known_on_its_network_and_loses_no_datagram() {
    in_namespace(|| {
        let host = Host::new();
        let machine = || with(Transport::Pci, "serve", vec![device("net", host.interface())]);
        let reverse_arp = Frames::of(0x8035);
        let mut guest = Payload::boot(machine());
        guest.ok("serving");
        host.send(0);
        assert_eq!(host.receive(), 0);
        for round in 1..4 {
            for number in 0..10 {
                host.send(round * 100 + number);
            }
            (guest, _) = guest.moved(machine(), &Route::verified());
            for number in 0..10 {
                assert_eq!(host.receive(), round * 100 + number);
            }
            let frame = reverse_arp.next();
            assert_eq!(&frame[..6], [0xff; 6]);
            assert_eq!(&frame[6..12], [2, 0, 0, 0xaa, 0xbb, 0xcc]);
        }
        guest.type_text("bye\n");
        guest.end();
    });
}
