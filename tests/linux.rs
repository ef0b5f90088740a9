//! What a person does with a Linux guest, done to a real one: the small kernel on this machine's KVM, Debian's
//! own kernel in the lab (`NACELLE_KERNEL=debian`).

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nacelle_vmm::VmEvent;
use nacelle_vmm::config::{BalloonConfig, CpuConfig, DeviceKind, Transport, VsockConfig, VsockHost};
use support::{Guest, Namespace, config, device, disk, empty_disk, eventually, resident, tap};

#[test]
fn a_guest_keeps_on_its_disk_what_it_wrote_before_a_reset() {
    let (file, source) = (empty_disk(96), empty_disk(64));
    let mut data = vec![0; 64 << 20];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut data)
        .unwrap();
    source.as_file().write_all(&data).unwrap();
    let mut config = config();
    config.devices = vec![
        device("root", disk(file.as_path())),
        device("source", disk(source.as_path())),
    ];
    let mut guest = Guest::boot(config);
    assert_eq!(guest.run("nproc"), "1");
    assert_eq!(guest.run("cat /sys/block/vda/size"), (96 * 2048).to_string());
    assert_eq!(guest.run("cat /sys/block/vda/serial"), "nacelle-test");
    guest.run("dd if=/dev/vdb of=/dev/vda bs=1M iflag=direct oflag=direct conv=fsync 2>/dev/null");

    let from = guest.said.len();
    guest.type_line("reboot -f");
    assert!(matches!(guest.event(), VmEvent::Reset));
    guest.vm.reset().unwrap();
    guest.wait_for_shell(from);

    let hash = guest.run("dd if=/dev/vda bs=1M count=64 2>/dev/null | sha256sum");
    assert_eq!(hash, sha256(source.as_path()));
    let stats = guest.vm.stats();
    assert!(
        stats.disks[0].write.bytes >= 64 << 20 && stats.disks[0].read.bytes >= 64 << 20,
        "{stats:?}"
    );
}

/// As `sha256sum` on the host says it of a stream.
fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum")
        .stdin(std::fs::File::open(path).unwrap())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn guest_and_host_ping_each_other_over_a_tap() {
    let namespace = Namespace::enter();
    let mut config = config();
    config.boot.cmdline.push_str(" nacelle.ip=10.77.0.2/24");
    config.devices = vec![device("net", tap("tap0"))];
    let guest = Guest::boot(config);
    namespace.run("ip address add 10.77.0.1/24 dev tap0");
    namespace.run("ip link set tap0 up");

    guest.run("ping -c 3 -W 20 10.77.0.1");
    namespace.run("ping -c 3 -W 20 10.77.0.2");

    let net = &guest.vm.stats().nets[0];
    assert!(net.rx.packets >= 6 && net.tx.packets >= 6, "{net:?}");
}

#[test]
fn a_guest_echoes_what_a_host_program_sends_over_a_socket() {
    let directory = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let path = directory.as_path().join("vsock");
    let mut config = config();
    let vsock = VsockConfig {
        cid: 3,
        host: VsockHost::Unix(path.clone()),
    };
    config.devices = vec![device("vsock", DeviceKind::Vsock(vsock))];
    let guest = Guest::boot(config);
    guest.run("(vsock listen 5000 &)");

    let mut answer = String::new();
    let mut host = None;
    eventually("the guest's answer to CONNECT", || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"CONNECT 5000\n").unwrap();
        let mut reader = BufReader::new(stream);
        answer.clear();
        // Refused as long as nobody listens.
        let accepted = reader.read_line(&mut answer).is_ok() && answer.starts_with("OK ");
        host = Some(reader);
        accepted
    });
    let mut host = host.unwrap();
    host.get_mut().write_all(b"through the looking glass").unwrap();
    let mut echo = [0; 25];
    host.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"through the looking glass");
}

#[test]
fn a_guest_of_two_vcpus_uses_both_and_powers_off_at_the_button() {
    let mut config = config();
    config.cpus = CpuConfig {
        sockets: 1,
        cores: 2,
        threads: 1,
    };
    let mut guest = Guest::boot(config);
    assert_eq!(guest.run("nproc"), "2");
    let interrupts = guest.run("grep LOC /proc/interrupts");
    let counts: Vec<u64> = interrupts
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(
        counts.len() == 2 && counts.iter().all(|count| *count > 0),
        "{interrupts}"
    );

    guest.vm.power_button().unwrap();
    assert!(matches!(guest.event(), VmEvent::Shutdown));
}

#[test]
fn pause_stops_a_guests_clock_and_resume_lets_it_go_on() {
    let mut guest = Guest::boot(config());
    guest.type_line("while :; do cat /proc/uptime; sleep 1; done");
    let ticks = |guest: &Guest| -> Vec<f64> {
        let text = guest.said.text();
        let lines = text.lines().filter(|line| line.split_whitespace().count() == 2);
        lines
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect()
    };
    eventually("a tick", || ticks(&guest).len() >= 2);
    let (began, first) = (Instant::now(), ticks(&guest));

    guest.vm.pause().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = ticks(&guest).len();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(ticks(&guest).len(), before, "it ticks while it is paused");
    guest.vm.resume().unwrap();
    eventually("a tick", || ticks(&guest).len() >= before + 2);

    // A busy host makes a guest slow, but never its clock faster than the host's.
    let host = began.elapsed().as_secs_f64();
    let passed = ticks(&guest).last().unwrap() - first.last().unwrap();
    assert!(
        passed < host - 4.0,
        "for the guest {passed} s passed in {host} s, 8 of which it was paused"
    );
}

#[test]
fn a_balloon_gives_memory_back_to_the_host_and_tells_of_the_guests() {
    let mut config = config();
    let balloon = BalloonConfig {
        free_page_reporting: false,
        statistics_interval: 1,
        ..Default::default()
    };
    config.devices = vec![device("balloon", DeviceKind::Balloon(balloon))];
    let guest = Guest::boot(config);
    eventually("statistics", || guest.vm.stats().balloon.unwrap().total.is_some());
    let said = guest.vm.stats().balloon.unwrap();
    assert!(
        said.total.unwrap() > 100 << 20 && said.free.unwrap() > 0,
        "{said:?}"
    );

    guest.run(
        "mount -t tmpfs -o size=200M none /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=32 && rm /mnt/x",
    );
    let before = resident(&guest.vm);
    guest.vm.balloon(64 << 20).unwrap();
    eventually("the balloon's growth", || {
        guest.vm.stats().balloon.unwrap().actual == 64 << 20
    });
    let after = resident(&guest.vm);
    assert!(
        before > after + (10 << 20),
        "{before} bytes resident before, {after} after"
    );

    guest.vm.balloon(0).unwrap();
    eventually("the balloon's end", || {
        guest.vm.stats().balloon.unwrap().actual == 0
    });
    assert_eq!(guest.run("echo alive"), "alive");
}

#[test]
fn a_guest_finds_its_devices_on_virtio_mmio_too() {
    let file = empty_disk(8);
    let mut config = config();
    config.transport = Transport::Mmio;
    config.devices = vec![
        device("root", disk(file.as_path())),
        device("rng", DeviceKind::Rng),
    ];
    let guest = Guest::boot(config);
    assert_eq!(guest.run("cat /sys/block/vda/size"), (8 * 2048).to_string());
    guest.run("head -c 16 /dev/hwrng | hexdump");
}

#[test]
fn a_guest_that_stops_feeding_its_watchdog_is_told_of_and_its_next_life_finds_why() {
    let watched = || {
        let mut config = config();
        config.watchdog = true;
        config
    };
    let guest = Guest::boot(watched());
    let why = "cat /sys/class/watchdog/watchdog0/bootstatus";
    assert_eq!(guest.run(why), "0");
    guest.run("watchdog -t 1 -T 8 /dev/watchdog");
    // It is fed elsewhere, too, and stays as it was set.
    let mut guest = guest.moved_to(watched());
    assert_eq!(guest.run("cat /sys/class/watchdog/watchdog0/timeout"), "8");
    assert!(guest.events.try_recv().is_err());

    guest.run("kill -9 $(pidof watchdog)");
    assert!(matches!(guest.event(), VmEvent::Watchdog));
    let from = guest.said.len();
    guest.vm.reset().unwrap();
    guest.wait_for_shell(from);
    const CARD_RESET: &str = "32";
    assert_eq!(guest.run(why), CARD_RESET);
}

#[test]
fn a_saved_guest_goes_on_in_another_machine() {
    let file = empty_disk(8);
    let machine = || {
        let mut config = config();
        config.devices = vec![
            device("root", disk(file.as_path())),
            device("rng", DeviceKind::Rng),
        ];
        config
    };
    let guest = Guest::boot(machine());
    guest.run("mark=kept; echo hello >/tmp/file; dd if=/tmp/file of=/dev/vda conv=fsync 2>/dev/null");
    let guest = guest.moved_to(machine());
    assert_eq!(
        guest.run("echo $mark; cat /tmp/file; head -c 5 /dev/vda"),
        "kept\nhello\nhello"
    );
}
