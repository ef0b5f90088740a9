//! Our bare-metal guest (`tests/guest/payload`): built once, booted in milliseconds, heard line by line.

#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses its part")]
#![allow(unused_macros, unused_imports, reason = "each test program uses its part")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nacelle_vmm::config::{BootConfig, DeviceConfig, MemoryConfig, Transport};
use nacelle_vmm::migrate::{Cancel, Report};
use nacelle_vmm::snapshot::{self, Snapshot, Tracking};
use nacelle_vmm::{Result, Vm, VmConfig, VmEvent};

use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::migration::Route;
use super::{Said, eventually};

/// Far more than anything takes: the payload answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The payload's ELF file: from the environment, else built now if it is not there yet.
pub fn elf() -> PathBuf {
    static ELF: OnceLock<PathBuf> = OnceLock::new();
    ELF.get_or_init(|| match std::env::var_os("PAYLOAD") {
        Some(path) => path.into(),
        None => build(),
    })
    .clone()
}

/// Builds it with this toolchain, into a directory of its own; cargo does nothing where nothing has changed.
fn build() -> PathBuf {
    let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/payload");
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--target-dir",
            target,
        ])
        // Its settings count where cargo is started.
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/payload"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "the payload is not built: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(target).join("release/payload")
}

/// A machine of 64 MiB that runs the payload with this command line, and has nothing else.
pub fn config(cmdline: &str) -> VmConfig {
    VmConfig {
        memory: MemoryConfig {
            size: 64 << 20,
            ..Default::default()
        },
        boot: BootConfig {
            kernel: elf(),
            initrd: None,
            cmdline: cmdline.into(),
        },
        ..Default::default()
    }
}

/// The same with these devices.
pub fn with(transport: Transport, cmdline: &str, devices: Vec<DeviceConfig>) -> VmConfig {
    VmConfig {
        transport,
        devices,
        ..config(cmdline)
    }
}

/// What the payload writes to `len` bytes of a disk from byte `at` on.
pub fn pattern(at: u64, len: u64, seed: u64) -> Vec<u8> {
    let word = |at: u64| (at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    (at..at + len)
        .step_by(8)
        .flat_map(|at| word(at).to_le_bytes())
        .collect()
}

/// A machine that runs the payload.
pub struct Payload {
    pub vm: Vm,
    events: Receiver<VmEvent>,
    console: UnixStream,
    said: Arc<Said>,
    /// How much of what it said has been asked for.
    heard: usize,
    /// An event that came while lines were waited for.
    last: Option<VmEvent>,
}

impl Payload {
    /// Builds the machine and starts it.
    pub fn boot(config: VmConfig) -> Payload {
        let (sender, events) = channel();
        let mut vm = Vm::build(config, sender).unwrap();
        let console = vm.console(0).unwrap();
        let said = Said::listen(console.try_clone().unwrap());
        vm.start().unwrap();
        Payload {
            vm,
            events,
            console,
            said,
            heard: 0,
            last: None,
        }
    }

    /// Saves the machine wherever it is, and goes on in another one with the same memory.
    pub fn move_to(mut self, config: VmConfig) -> Payload {
        self.vm.pause().unwrap();
        // It may have got to its end before it was paused; that is told once.
        self.last = self.last.or_else(|| self.events.try_recv().ok());
        let state = serde_json::to_vec(&self.vm.save().unwrap()).unwrap();
        let memory = (*self.vm.memory().memory()).clone();
        drop(self.vm);
        drop(self.console);
        eventually("the end of the old console", || self.said.ended());

        let (sender, events) = channel();
        let state = serde_json::from_slice(&state).unwrap();
        let mut vm = Vm::restore(config, state, memory, sender).unwrap();
        let console = vm.console(0).unwrap();
        let said = Said::go_on(console.try_clone().unwrap(), self.said.text());
        vm.resume().unwrap();
        Payload {
            vm,
            events,
            console,
            said,
            ..self
        }
    }

    /// Moves it over `route` into a machine of `config`. What comes back is the guest wherever it runs now, or
    /// stands still, and how it went at either side.
    pub fn migrate(mut self, config: VmConfig, route: &Route) -> (Payload, Result<Report>, Result<Duration>) {
        let (sent, received) = route.travel(&mut self.vm, config);
        let (arrived, events) = match received {
            Ok(arrived) => arrived,
            Err(error) => return (self, sent, Err(error)),
        };
        let resumed = arrived.resumed;
        (self.became(arrived.vm, events), sent, Ok(resumed))
    }

    /// It goes on as `vm`.
    pub fn became(mut self, vm: Vm, events: Receiver<VmEvent>) -> Payload {
        // It may have got to its end before it was paused; that is told once.
        self.last = self.last.or_else(|| self.events.try_recv().ok());
        drop(self.vm);
        drop(self.console);
        eventually("the end of the old console", || self.said.ended());
        let console = vm.console(0).unwrap();
        Payload {
            said: Said::go_on(console.try_clone().unwrap(), self.said.text()),
            vm,
            events,
            console,
            ..self
        }
    }

    /// Takes a snapshot of it.
    pub fn snapshot(
        &mut self,
        directory: &Path,
        options: snapshot::Options,
        tracking: Option<Tracking>,
    ) -> Result<(snapshot::Report, Option<Tracking>)> {
        let port = self.vm.migration().unwrap();
        snapshot::save(&port, &mut self.vm, directory, options, tracking, &Cancel::new())
    }

    /// A machine that goes on from a snapshot.
    pub fn restore(directory: &Path, config: VmConfig) -> Result<Payload> {
        let (sender, events) = channel();
        let snapshot = Snapshot::open(directory)?;
        let memory = snapshot.memory(&config.memory)?;
        let mut vm = Vm::restore(config, snapshot.state(), memory, sender)?;
        let console = vm.console(0)?;
        let said = Said::listen(console.try_clone().unwrap());
        vm.resume()?;
        Ok(Payload {
            vm,
            events,
            console,
            said,
            heard: 0,
            last: None,
        })
    }

    /// Moves it over `route`, which must succeed.
    pub fn moved(self, config: VmConfig, route: &Route) -> (Payload, Report) {
        let (payload, sent, received) = self.migrate(config, route);
        match (sent, received) {
            (Ok(report), Ok(_)) => (payload, report),
            (sent, received) => panic!("source: {sent:?}, target: {received:?}"),
        }
    }

    /// The rest of the next line that begins with `ok NAME`; panics when the payload says `fail`, or ends.
    pub fn ok(&mut self, name: &str) -> String {
        let start = format!("ok {name}");
        let until = Instant::now() + PATIENCE;
        loop {
            while let Some(line) = self.line() {
                assert!(!line.starts_with("fail "), "{line}\n{}", self.said.text());
                if let Some(rest) = line.strip_prefix(&start)
                    && (rest.is_empty() || rest.starts_with(' '))
                {
                    return rest.trim().to_owned();
                }
            }
            // After the end, what it said before may still be on its way.
            let ended = self.last.as_ref().is_some_and(|_| !self.said.grows(self.heard));
            if ended {
                panic!(
                    "{:?} instead of `{start}`; it said:\n{}",
                    self.last,
                    self.said.text()
                );
            }
            if self.last.is_none() {
                self.last = self.events.recv_timeout(Duration::from_millis(2)).ok();
            }
            if Instant::now() >= until {
                panic!(
                    "no `{start}`; {}; it said:\n{}",
                    super::whereabouts(&mut self.vm),
                    self.said.text()
                );
            }
        }
    }

    /// The next whole line.
    fn line(&mut self) -> Option<String> {
        let text = self.said.text();
        let (line, _) = text.get(self.heard..)?.split_once('\n')?;
        self.heard += line.len() + 1;
        Some(line.to_owned())
    }

    /// Bytes of its memory that are in the host's RAM.
    pub fn resident(&self) -> u64 {
        let memory = self.vm.memory();
        let memory = memory.memory();
        let mut resident = 0;
        for region in memory.iter() {
            let len = region.len() as usize;
            let mut pages = vec![0u8; len.div_ceil(4096)];
            // SAFETY: the region is mapped, and `pages` has a byte for each page of it.
            let done = unsafe { libc::mincore(region.as_ptr().cast(), len, pages.as_mut_ptr()) };
            assert_eq!(done, 0);
            resident += pages.iter().filter(|page| **page & 1 != 0).count() as u64 * 4096;
        }
        resident
    }

    /// Everything it has said.
    pub fn said(&self) -> String {
        self.said.text()
    }

    /// Types on its serial line.
    pub fn type_text(&self, text: &str) {
        (&self.console).write_all(text.as_bytes()).unwrap();
    }

    /// Waits for what the machine tells its owner.
    pub fn event(&mut self) -> VmEvent {
        self.last
            .take()
            .map_or_else(|| self.events.recv_timeout(PATIENCE), Ok)
            .unwrap_or_else(|_| panic!("no event; it said:\n{}", self.said.text()))
    }

    /// Waits until it has powered off.
    pub fn end(mut self) {
        let event = self.event();
        assert!(
            matches!(event, VmEvent::Shutdown),
            "{event:?}; it said:\n{}",
            self.said.text()
        );
    }
}

/// Runs each of these functions, which take a [`nacelle_vmm::config::Transport`], as a test over either.
macro_rules! over_both_transports {
    ($($name:ident)*) => {
        mod pci {
            $(#[test] fn $name() { super::$name(nacelle_vmm::config::Transport::Pci); })*
        }
        mod mmio {
            $(#[test] fn $name() { super::$name(nacelle_vmm::config::Transport::Mmio); })*
        }
    };
}
pub(crate) use over_both_transports;
