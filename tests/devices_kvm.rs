//! Every virtio device on /dev/kvm, driven by a bare-metal guest over both transports.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};

use nacelle_vmm::config::{
    BalloonConfig, ConsoleConfig, ConsolePort, DeviceKind, IoThreads, Transport, VsockConfig, VsockHost,
};
use support::network::{Host, in_namespace};
use support::payload::{Payload, over_both_transports, pattern, with};
use support::{device, disk, empty_disk, eventually};
use vmm_sys_util::tempdir::TempDir;

const MIB: u64 = 1 << 20;

over_both_transports! {
    what_a_guest_writes_is_on_the_disk_and_is_read_back
    a_hostile_driver_is_refused_and_the_disk_lives_on
    discarded_blocks_go_back_to_the_host_and_zeroes_are_zeroes
    a_guest_gets_entropy
    datagrams_are_echoed_over_a_tap
    a_guest_echoes_what_the_host_writes_to_its_ports
    a_balloon_takes_memory_from_the_guest_and_gives_it_back
    a_guest_answers_the_hosts_socket_and_calls_a_program_of_the_host
    all_devices_work_at_once_on_two_threads
}

fn what_a_guest_writes_is_on_the_disk_and_is_read_back(transport: Transport) {
    let file = empty_disk(9);
    let mut guest = Payload::boot(with(transport, "blk", vec![device("root", disk(file.as_path()))]));
    assert_eq!(
        guest.ok("blk"),
        "18432 sectors, 8388608 bytes, named nacelle-test"
    );
    let stats = guest.vm.stats().disks.remove(0);
    assert_eq!(
        (stats.write.bytes, stats.read.bytes, stats.flush.operations),
        (8 * MIB, 8 * MIB, 1)
    );
    guest.end();
    let mut written = vec![0; 8 << 20];
    file.as_file().read_exact_at(&mut written, 0).unwrap();
    assert!(written == pattern(0, 8 << 20, 0));
}

fn a_hostile_driver_is_refused_and_the_disk_lives_on(transport: Transport) {
    let file = empty_disk(1);
    let mut guest = Payload::boot(with(
        transport,
        "blk-hostile",
        vec![device("root", disk(file.as_path()))],
    ));
    for step in ["refused", "loop", "needs-reset", "alive"] {
        assert_eq!(guest.ok("blk-hostile"), step);
    }
    guest.end();
}

fn discarded_blocks_go_back_to_the_host_and_zeroes_are_zeroes(transport: Transport) {
    let file = empty_disk(8);
    let mut guest = Payload::boot(with(
        transport,
        "blk-discard",
        vec![device("root", disk(file.as_path()))],
    ));
    assert_eq!(guest.ok("blk-discard"), "written");
    let blocks = || file.as_file().metadata().unwrap().blocks();
    let before = blocks();
    assert!(before >= 2 * MIB / 512, "{before} blocks of 512 bytes");
    guest.type_text("x");
    assert_eq!(guest.ok("blk-discard"), "done");
    guest.end();
    assert!(
        blocks() <= before - 2 * MIB / 512,
        "{before} blocks before, {} after",
        blocks()
    );
}

fn a_guest_gets_entropy(transport: Transport) {
    let mut guest = Payload::boot(with(transport, "rng=20", vec![device("rng", DeviceKind::Rng)]));
    for round in 1..=20 {
        assert_eq!(guest.ok("rng"), format!("{round} len 256"));
    }
    guest.end();
}

fn datagrams_are_echoed_over_a_tap(transport: Transport) {
    in_namespace(move || {
        let host = Host::new();
        let mut guest = Payload::boot(with(transport, "serve", vec![device("net", host.interface())]));
        guest.ok("serving");
        for round in 0..50 {
            host.send(round);
            assert_eq!(host.receive(), round);
        }
        // One for the address, 50 for the datagrams.
        eventually("all frames are counted", || {
            let stats = guest.vm.stats().nets.remove(0);
            stats.rx.packets >= 51 && stats.tx.packets == 51
        });
        guest.type_text("bye\n");
        guest.end();
    });
}

fn ports() -> DeviceKind {
    let port = |name: &str, console| ConsolePort {
        name: name.into(),
        console,
    };
    DeviceKind::Console(ConsoleConfig {
        ports: vec![port("org.qemu.guest_agent.0", false), port("shell", true)],
    })
}

fn echoed(stream: &UnixStream, text: &str) {
    (&*stream).write_all(text.as_bytes()).unwrap();
    let mut heard = vec![0; text.len()];
    (&*stream).read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), text);
}

fn a_guest_echoes_what_the_host_writes_to_its_ports(transport: Transport) {
    let mut guest = Payload::boot(with(transport, "serve", vec![device("console", ports())]));
    let (agent, shell) = (guest.vm.console(1).unwrap(), guest.vm.console(2).unwrap());
    guest.ok("serving");
    echoed(&agent, "{\"execute\":\"guest-ping\"}\n");
    echoed(&shell, "ls\n");
    echoed(&agent, &"long ".repeat(1000));
    let said = guest.said();
    for line in [
        "ok port 0 added",
        "ok port 0 named org.qemu.guest_agent.0",
        "ok port 1 named shell",
    ] {
        assert!(said.contains(&format!("{line}\n")), "{line} is not in:\n{said}");
    }
    guest.type_text("bye\n");
    guest.end();
}

fn balloon() -> DeviceKind {
    DeviceKind::Balloon(BalloonConfig {
        statistics_interval: 1,
        ..Default::default()
    })
}

fn a_balloon_takes_memory_from_the_guest_and_gives_it_back(transport: Transport) {
    let mut guest = Payload::boot(with(transport, "serve", vec![device("balloon", balloon())]));
    guest.ok("serving");
    let before = guest.resident();
    guest.vm.balloon(24 * MIB).unwrap();
    assert_eq!(guest.ok("balloon"), (24 * MIB / 4096).to_string());
    let during = guest.resident();
    assert!(
        during + 24 * MIB <= before,
        "{before} bytes resident before, {during} during"
    );
    eventually("statistics of the guest", || {
        let stats = guest.vm.stats().balloon.unwrap();
        (stats.total, stats.free) == (Some(32 * MIB), Some(8 * MIB))
    });
    assert_eq!(guest.vm.stats().balloon.unwrap().actual, 24 * MIB);

    guest.vm.balloon(0).unwrap();
    assert_eq!(guest.ok("balloon"), "0");
    assert!(guest.resident() >= before);
    guest.type_text("bye\n");
    guest.end();
}

fn sockets(directory: &TempDir) -> DeviceKind {
    DeviceKind::Vsock(VsockConfig {
        cid: 42,
        host: VsockHost::Unix(directory.as_path().join("vsock")),
    })
}

fn call(directory: &TempDir) -> UnixStream {
    let mut stream = UnixStream::connect(directory.as_path().join("vsock")).unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
    stream
}

fn a_guest_answers_the_hosts_socket_and_calls_a_program_of_the_host(transport: Transport) {
    let directory = TempDir::new().unwrap();
    let listener = UnixListener::bind(directory.as_path().join("vsock_1234")).unwrap();
    let mut guest = Payload::boot(with(
        transport,
        "serve",
        vec![device("vsock", sockets(&directory))],
    ));
    guest.ok("serving");
    let stream = call(&directory);
    echoed(&stream, "from the host");
    // More than both buffers hold: credit must flow.
    for _ in 0..100 {
        echoed(&stream, &"0123456789".repeat(500));
    }
    drop(stream);
    assert_eq!(guest.ok("vsock"), "closed 7");

    guest.type_text("dial\n");
    let (mut stream, _) = listener.accept().unwrap();
    let mut hello = [0; 20];
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello from the guest");
    echoed(&stream, "welcome");
    guest.type_text("bye\n");
    guest.end();
}

fn all_devices_work_at_once_on_two_threads(transport: Transport) {
    in_namespace(move || {
        let (directory, host) = (TempDir::new().unwrap(), Host::new());
        let mut config = with(
            transport,
            "serve",
            vec![
                device("net", host.interface()),
                device("console", ports()),
                device("balloon", balloon()),
                device("vsock", sockets(&directory)),
                device("rng", DeviceKind::Rng),
            ],
        );
        config.io_threads = IoThreads::Pool(2);
        let mut guest = Payload::boot(config);
        guest.ok("serving");
        let (agent, stream) = (guest.vm.console(1).unwrap(), call(&directory));
        guest.vm.balloon(16 * MIB).unwrap();
        for round in 0..10 {
            host.send(round);
            echoed(&agent, "agent");
            echoed(&stream, "stream");
            assert_eq!(host.receive(), round);
        }
        guest.ok("balloon");
        guest.type_text("bye\n");
        guest.end();
    });
}

#[test]
fn masked_messages_wait_and_are_delivered_when_unmasked() {
    let mut guest = Payload::boot(with(Transport::Pci, "msix", vec![device("rng", DeviceKind::Rng)]));
    assert_eq!(guest.ok("msix"), "one");
    assert_eq!(guest.ok("msix"), "all");
    guest.end();
}
