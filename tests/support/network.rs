//! A network of the test's own: a namespace that one thread is in, and a tap with the kernel's stack behind it.
//! Needs root.

#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses its part")]

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use nacelle_devices::net::tap::Tap;
use nacelle_vmm::config::{DeviceKind, NetConfig, TapConfig};

/// Runs `test` on a thread that is alone in a new network namespace.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: it changes the namespace of this thread and touches no memory.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "a network namespace of the test's own needs root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The host's end: a tap with an address, which stays when a machine goes, and a socket to the payload's echo.
pub struct Host {
    tap: Tap,
    socket: UdpSocket,
}

impl Host {
    pub fn new() -> Host {
        let tap = Tap::open("payload0", 1).unwrap().remove(0);
        for command in ["addr add 10.9.0.1/24 dev payload0", "link set payload0 up"] {
            let done = Command::new("ip").args(command.split(' ')).status().unwrap();
            assert!(done.success(), "ip {command}");
        }
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        socket.connect("10.9.0.2:7").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Host { tap, socket }
    }

    /// A network interface at the other end of the tap.
    pub fn interface(&self) -> DeviceKind {
        DeviceKind::Net(NetConfig {
            tap: TapConfig::Fds(vec![self.tap.as_fd().try_clone_to_owned().unwrap()]),
            mac: [2, 0, 0, 0xaa, 0xbb, 0xcc],
            mtu: None,
            queue_pairs: 1,
            vhost: false,
            limit: None,
        })
    }

    /// Sends a datagram with this number and some more.
    pub fn send(&self, number: u32) {
        let mut datagram = number.to_le_bytes().to_vec();
        datagram.resize(1000, number as u8);
        self.socket.send(&datagram).unwrap();
    }

    /// The number of the next datagram that comes back.
    pub fn receive(&self) -> u32 {
        let mut datagram = [0; 2000];
        let len = self.socket.recv(&mut datagram).unwrap();
        assert_eq!(len, 1000);
        let number = u32::from_le_bytes(datagram[..4].try_into().unwrap());
        assert!(datagram[4..len].iter().all(|byte| *byte == number as u8));
        number
    }
}
