//! Hosts and guests of the test's own: network namespaces that threads are in. Needs root.
#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nacelle_devices::net::tap::Tap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What udhcpc runs at its events: tells them and takes the address.
const UDHCPC_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/net/tests/udhcpc");

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, with a thread in it that does what it is told.
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: u32,
}

impl Namespace {
    pub fn new() -> Namespace {
        let (jobs, to_do) = channel::<Job>();
        let (tell, tid) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: it changes the namespace of this thread and touches no memory.
            let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(unshared, 0, "a network namespace of the test's own needs root");
            // SAFETY: it takes nothing and always succeeds.
            tell.send(unsafe { libc::gettid() } as u32).unwrap();
            to_do.into_iter().for_each(|job| job());
        });
        let namespace = Namespace {
            jobs: Some(jobs),
            thread: Some(thread),
            tid: tid.recv().unwrap(),
        };
        namespace.ip("link set lo up");
        namespace
    }

    /// Does `job` in there.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, result) = channel();
        let job = move || {
            let _ = tell.send(job());
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        result.recv().expect("the job in the namespace panicked")
    }

    /// Drives a future on a runtime in there, as the launcher has one.
    pub fn block_on<T: Send + 'static, F: Future<Output = T>>(
        &self,
        future: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            runtime_of(runtime).block_on(future())
        })
    }

    /// Runs a command in there; gives what it says and whether it succeeded.
    pub fn try_sh(&self, command: &str) -> (String, bool) {
        let command = command.to_owned();
        self.run(move || sh(&command))
    }

    /// Runs a command in there that must succeed.
    pub fn sh(&self, command: &str) -> String {
        let (said, ok) = self.try_sh(command);
        assert!(ok, "{command}: {said}");
        said
    }

    pub fn ip(&self, arguments: &str) {
        self.sh(&format!("ip {arguments}"));
    }

    /// Whether an answer comes from there.
    pub fn pings(&self, address: &str) -> bool {
        self.try_sh(&format!("busybox ping -c 1 -W 2 {address}")).1
    }

    /// Lays a cable to another namespace: an interface `name` with this address at either end.
    pub fn connect(&self, name: &str, address: &str, other: &Namespace, its_name: &str, its_address: &str) {
        let its_tid = other.tid;
        self.ip(&format!(
            "link add {name} type veth peer name {its_name} netns {its_tid}"
        ));
        for (namespace, name, address) in [(self, name, address), (other, its_name, its_address)] {
            namespace.ip(&format!("address add {address} dev {name}"));
            namespace.ip(&format!("link set {name} up"));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn runtime_of(mut builder: tokio::runtime::Builder) -> tokio::runtime::Runtime {
    builder.enable_io().enable_time().build().unwrap()
}

/// Runs a shell command in this thread's namespace.
fn sh(command: &str) -> (String, bool) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        String::from_utf8_lossy(&said).into_owned(),
        output.status.success(),
    )
}

/// A guest in the shape of a namespace: its interface `eth0` is a tap, whose frames go to and from the host's.
pub struct Guest {
    pub inside: Namespace,
    unplugged: Arc<AtomicBool>,
    cable: Option<JoinHandle<()>>,
}

impl Guest {
    /// With this MAC address, on a tap of the host.
    pub fn on(tap: OwnedFd, mac: &str) -> Guest {
        let inside = Namespace::new();
        let own = inside.run(|| {
            let tap = Tap::open("eth0", 1).unwrap().remove(0);
            tap.as_fd().try_clone_to_owned().unwrap()
        });
        inside.ip(&format!("link set eth0 address {mac} up"));
        // As the monitor does: it sets the length of the headers.
        drop(Tap::from_fd(tap.try_clone().unwrap()).unwrap());
        let unplugged = Arc::new(AtomicBool::new(false));
        let cable = std::thread::spawn({
            let unplugged = unplugged.clone();
            move || {
                while !unplugged.load(Ordering::Relaxed) {
                    carry(&tap, &own);
                }
            }
        });
        Guest {
            inside,
            unplugged,
            cable: Some(cable),
        }
    }

    /// Asks for a lease as a real client does; gives what it was told as `name=value` lines.
    pub fn dhcp(&self) -> String {
        self.inside.sh(&format!(
            "busybox udhcpc -f -n -q -t 5 -T 1 -i eth0 -O search -O mtu -s {UDHCPC_SCRIPT}"
        ))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.unplugged.store(true, Ordering::Relaxed);
        if let Some(cable) = self.cable.take() {
            let _ = cable.join();
        }
    }
}

/// Carries the frames that wait at either end to the other.
fn carry(one: &OwnedFd, other: &OwnedFd) {
    let mut fds = [one, other].map(|fd| PollFd::new(fd, PollFlags::IN));
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    let _ = poll(&mut fds, Some(&timeout));
    let mut frame = [0; 70_000];
    for (from, to) in [(one, other), (other, one)] {
        while let Ok(len) = rustix::io::read(from, &mut frame[..]) {
            let _ = rustix::io::write(to, &frame[..len]);
        }
    }
}
