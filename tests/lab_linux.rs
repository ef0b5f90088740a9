//! What only a host with all of KVM shows: huge pages, vhost, large and wide guests. In the lab, with Debian's
//! own kernel as guest: `tests/lab/guests` runs them there, elsewhere they are ignored.

mod support;

use std::fs::read_to_string;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

use nacelle_vmm::config::{CpuConfig, DeviceKind, NetConfig, PageSize, VsockConfig, VsockHost};
use support::{Guest, Namespace, config, device, tap};

/// Free pages of this size, in KiB.
fn free_huge_pages(size: u64) -> u64 {
    let free = format!("/sys/kernel/mm/hugepages/hugepages-{size}kB/free_hugepages");
    read_to_string(free).unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "needs the lab: tests/lab/guests"]
fn a_guest_lives_in_pages_of_2_mib() {
    let free = free_huge_pages(2048);
    let mut config = config();
    config.memory.pages = PageSize::Huge2M;
    let guest = Guest::boot(config);
    guest.run("echo alive");
    let used = free - free_huge_pages(2048);
    assert!(used > 20, "{used} pages used");
    drop(guest);
    assert_eq!(free_huge_pages(2048), free);
}

#[test]
#[ignore = "needs the lab: tests/lab/guests"]
fn a_guest_lives_in_a_page_of_1_gib() {
    let free = free_huge_pages(1 << 20);
    let mut config = config();
    config.memory.size = 1 << 30;
    config.memory.pages = PageSize::Huge1G;
    let guest = Guest::boot(config);
    guest.run("echo alive");
    assert_eq!(free_huge_pages(1 << 20), free - 1);
    drop(guest);
    assert_eq!(free_huge_pages(1 << 20), free);
}

#[test]
#[ignore = "needs the lab: tests/lab/guests"]
fn a_guest_pings_the_host_through_the_hosts_kernel() {
    let namespace = Namespace::enter();
    let mut config = config();
    config.boot.cmdline.push_str(" nacelle.ip=10.77.0.2/24");
    let DeviceKind::Net(net) = tap("tap0") else {
        unreachable!()
    };
    config.devices = vec![device("net", DeviceKind::Net(NetConfig { vhost: true, ..net }))];
    let guest = Guest::boot(config);
    namespace.run("ip address add 10.77.0.1/24 dev tap0");
    namespace.run("ip link set tap0 up");
    guest.run("ping -c 3 -W 20 10.77.0.1");
    let threads = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with("vhost-"))
    });
    assert!(threads.count() > 0, "no vhost thread moves the packets");
}

#[test]
#[ignore = "needs the lab: tests/lab/guests"]
fn a_guest_echoes_over_the_hosts_own_vsock() {
    let mut config = config();
    let vsock = VsockConfig {
        cid: 42,
        host: VsockHost::Vhost,
    };
    config.devices = vec![device("vsock", DeviceKind::Vsock(vsock))];
    let guest = Guest::boot(config);
    guest.run("(vsock listen 5000 &)");
    let mut stream = None;
    support::eventually("a connection to the guest", || {
        stream = connect_vsock(42, 5000).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    stream.write_all(b"hello").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
}

fn connect_vsock(cid: u32, port: u32) -> std::io::Result<std::fs::File> {
    let last = std::io::Error::last_os_error;
    // SAFETY: plain system calls; the descriptor is owned by the file from the first line on.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(last());
        }
        let file = std::fs::File::from_raw_fd(fd);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as u16;
        (address.svm_cid, address.svm_port) = (cid, port);
        let size = size_of::<libc::sockaddr_vm>() as u32;
        match libc::connect(fd, (&raw const address).cast(), size) {
            0 => Ok(file),
            _ => Err(last()),
        }
    }
}

#[test]
#[ignore = "needs the lab: tests/lab/guests"]
fn a_guest_of_8_gib_has_them_all() {
    let mut config = config();
    config.memory.size = 8 << 30;
    let guest = Guest::boot(config);
    let kib: u64 = guest
        .run("awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .unwrap();
    assert!(kib > 7900 << 10, "{kib} KiB");
    // Memory on both sides of the devices below 4 GiB is really there.
    assert_eq!(guest.run("grep -c 'System RAM' /proc/iomem"), "3");
}

#[test]
#[ignore = "needs the lab: tests/lab/guests"]
fn a_guest_of_16_vcpus_sees_the_topology_asked_for() {
    let mut config = config();
    config.cpus = CpuConfig {
        sockets: 2,
        cores: 4,
        threads: 2,
    };
    let guest = Guest::boot(config);
    assert_eq!(guest.run("nproc"), "16");
    let count = |file: &str| {
        let distinct = format!("cat /sys/devices/system/cpu/cpu*/topology/{file} | sort -u | wc -l");
        guest.run(&distinct)
    };
    assert_eq!(count("physical_package_id"), "2");
    assert_eq!(count("core_cpus_list"), "8");
    assert_eq!(count("thread_siblings_list"), "8");
    assert_eq!(
        guest.run("cat /sys/devices/system/cpu/cpu0/topology/core_cpus_list"),
        "0-1"
    );
}
