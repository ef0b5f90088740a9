//! Two hosts that are network namespaces, and a link between them. Needs root.

#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses its part")]

use std::process::Command;
use std::sync::mpsc::channel;

use super::network::in_namespace;

/// Where the second host is.
pub const THERE: &str = "10.8.0.2";

/// Runs a command of words.
pub fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs `here` at one host and `there` at the other. What leaves either by the link goes through `shape`, words for
/// `tc qdisc add dev DEVICE root`.
pub fn between(
    shape: &'static str,
    here: impl FnOnce() + Send + 'static,
    there: impl FnOnce() + Send + 'static,
) {
    let (hosts, other) = channel();
    let (laid, link) = channel();
    let (ready, up) = channel();
    let shaped = move |device: &str, address: &str| {
        run(&format!("tc qdisc add dev {device} root {shape}"));
        run(&format!("ip addr add {address}/24 dev {device}"));
        run(&format!("ip link set {device} up"));
    };
    let second = std::thread::spawn(move || {
        in_namespace(move || {
            // SAFETY: the call has no requirement.
            hosts.send(unsafe { libc::gettid() }).unwrap();
            link.recv().unwrap();
            shaped("link1", THERE);
            ready.send(()).unwrap();
            there();
        });
    });
    let first = std::thread::spawn(move || {
        in_namespace(move || {
            let peer: libc::pid_t = other.recv().unwrap();
            run(&format!(
                "ip link add link0 type veth peer name link1 netns {peer}"
            ));
            laid.send(()).unwrap();
            shaped("link0", "10.8.0.1");
            up.recv().unwrap();
            here();
        });
    });
    // The one whose end the other waits for says why.
    let ends = [first.join(), second.join()];
    for end in ends {
        if let Err(panic) = end {
            std::panic::resume_unwind(panic);
        }
    }
}
