//! A real Linux guest on the monitor, driven over its serial console.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod link;
pub mod migration;
pub mod network;
pub mod payload;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nacelle_vmm::config::{
    BootConfig, DeviceConfig, DeviceKind, DiskConfig, DiskFormat, MemoryConfig, NetConfig, TapConfig,
};
use nacelle_vmm::{Vm, VmConfig, VmEvent};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::tempfile::TempFile;

/// Far more than anything takes; a guest in software is slow and the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What software KVM lacks (docs/testing.md), told to the kernel; harmless elsewhere.
const SOFTWARE_KVM: &str = "clocksource=kvm-clock noreplace-smp mitigations=off rodata=off random.trust_cpu=on no_timer_check noxsave \
    clearcpuid=smap,smep,popcnt,erms,fsrm,fsgsbase,invpcid,umip,cx16,rdpid,pku";

/// Where `tests/guest/build` put the guests: from the environment as `tests/run` sets it, else asked for.
pub fn artefact(key: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(key) {
        return path.into();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/build");
    let output = Command::new(script).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key}=")));
    line.unwrap_or_else(|| panic!("{script} knows no {key}")).into()
}

/// The kernel under test: the small one, or with `NACELLE_KERNEL=debian` (in the lab) Debian's own.
pub fn kernel() -> BootConfig {
    match std::env::var("NACELLE_KERNEL").as_deref() {
        Ok("debian") => BootConfig {
            kernel: artefact("LINUX_DEBIAN_VMLINUZ"),
            initrd: Some(artefact("LINUX_DEBIAN_INITRD")),
            cmdline: "console=ttyS0 quiet panic=-1".into(),
        },
        _ => BootConfig {
            kernel: artefact("LINUX_SMALL_VMLINUX"),
            initrd: Some(artefact("LINUX_SMALL_INITRD")),
            cmdline: format!("console=ttyS0 quiet reboot=k panic=-1 {SOFTWARE_KVM}"),
        },
    }
}

/// A machine of 192 MiB with the kernel under test and nothing else.
pub fn config() -> VmConfig {
    VmConfig {
        memory: MemoryConfig {
            size: 192 << 20,
            ..Default::default()
        },
        boot: kernel(),
        ..Default::default()
    }
}

/// A device with this id.
pub fn device(id: &str, kind: DeviceKind) -> DeviceConfig {
    DeviceConfig::new(id, kind)
}

/// A file of this many MiB, with nothing in it.
pub fn empty_disk(mib: u64) -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(mib << 20).unwrap();
    file
}

/// A raw disk in a file.
pub fn disk(path: impl Into<PathBuf>) -> DeviceKind {
    DeviceKind::Disk(DiskConfig {
        path: path.into(),
        format: DiskFormat::Raw,
        read_only: false,
        ephemeral: false,
        local: false,
        cache: Default::default(),
        serial: "nacelle-test".into(),
        queues: 1,
        block_size: None,
        discard_granularity: None,
        io: Default::default(),
        shared: false,
        limit: None,
        on_error: Default::default(),
    })
}

/// An interface on a tap of this name, which is made if it is not there.
pub fn tap(name: &str) -> DeviceKind {
    DeviceKind::Net(NetConfig {
        tap: TapConfig::Name(name.into()),
        mac: [0x02, 0, 0, 0, 0, 2],
        mtu: None,
        queue_pairs: 1,
        vhost: false,
        limit: None,
    })
}

/// A network namespace of this test's own: its thread is in it, and what it starts.
pub struct Namespace;

impl Namespace {
    pub fn enter() -> Namespace {
        // SAFETY: only the calling thread changes its namespace.
        assert_eq!(
            unsafe { libc::unshare(libc::CLONE_NEWNET) },
            0,
            "{}",
            std::io::Error::last_os_error()
        );
        let namespace = Namespace;
        namespace.run("ip link set lo up");
        namespace
    }

    /// Runs a program in the namespace, which must succeed.
    pub fn run(&self, command: &str) {
        let mut words = command.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// What a console said, growing.
#[derive(Default)]
pub struct Said {
    text: Mutex<Vec<u8>>,
    more: Condvar,
    ended: AtomicBool,
}

impl Said {
    /// Collects what comes from `stream` until it ends.
    pub fn listen(stream: UnixStream) -> Arc<Said> {
        Said::go_on(stream, String::new())
    }

    /// The same, after what was said before.
    pub fn go_on(mut stream: UnixStream, before: String) -> Arc<Said> {
        let said = Arc::new(Said {
            text: Mutex::new(before.into_bytes()),
            ..Said::default()
        });
        let heard = said.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut bytes) {
                heard.text.lock().unwrap().extend(&bytes[..n]);
                heard.more.notify_all();
            }
            heard.ended.store(true, Ordering::SeqCst);
        });
        said
    }

    /// Whether nobody is there to say more.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    pub fn len(&self) -> usize {
        self.text.lock().unwrap().len()
    }

    /// Whether it becomes longer than `len` in the next moments.
    pub fn grows(&self, len: usize) -> bool {
        let text = self.text.lock().unwrap();
        let moment = Duration::from_millis(200);
        let shorter = |text: &mut Vec<u8>| text.len() <= len;
        let (text, _) = self.more.wait_timeout_while(text, moment, shorter).unwrap();
        text.len() > len
    }

    /// Waits until `found` finds something in what was said from `from` on.
    pub fn wait<T>(&self, from: usize, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut text = self.text.lock().unwrap();
        loop {
            if let Some(result) = found(&String::from_utf8_lossy(&text[from..])) {
                return result;
            }
            let now = Instant::now();
            assert!(
                now < until,
                "waited for {what}; the console said:\n{}",
                String::from_utf8_lossy(&text)
            );
            text = self.more.wait_timeout(text, until - now).unwrap().0;
        }
    }
}

/// A guest with a shell on its serial console.
pub struct Guest {
    pub vm: Vm,
    pub events: Receiver<VmEvent>,
    pub console: UnixStream,
    pub said: Arc<Said>,
}

impl Guest {
    /// Boots `config` to its shell.
    pub fn boot(config: VmConfig) -> Guest {
        let guest = Guest::start(config);
        guest.wait_for_shell(0);
        guest
    }

    /// Starts `config`.
    pub fn start(config: VmConfig) -> Guest {
        let (sender, events) = channel();
        let vm = Vm::build(config, sender).unwrap();
        let mut guest = Guest::of(vm, events);
        guest.vm.start().unwrap();
        guest
    }

    /// The guest of a machine that is there.
    pub fn of(vm: Vm, events: Receiver<VmEvent>) -> Guest {
        let console = vm.console(0).unwrap();
        let said = Said::listen(console.try_clone().unwrap());
        Guest {
            vm,
            events,
            console,
            said,
        }
    }

    /// Ends it and goes on with it in another machine, made of `config`.
    pub fn moved_to(mut self, config: VmConfig) -> Guest {
        self.vm.pause().unwrap();
        let state = serde_json::to_vec(&self.vm.save().unwrap()).unwrap();
        let memory = self.vm.memory();
        drop(self.vm);
        let (sender, events) = channel();
        let state = serde_json::from_slice(&state).unwrap();
        let vm = Vm::restore(config, state, (*memory.memory()).clone(), sender).unwrap();
        let mut guest = Guest::of(vm, events);
        guest.vm.resume().unwrap();
        guest
    }

    /// Waits for init's line and the prompt after position `from` of what the console said.
    pub fn wait_for_shell(&self, from: usize) {
        let shell = |text: &str| {
            text.split_once("nacelle-guest ready")
                .and_then(|(_, rest)| rest.find("# "))
        };
        let until = Instant::now() + PATIENCE;
        loop {
            if shell(&self.said.text()[from..]).is_some() {
                break;
            }
            match self.events.recv_timeout(Duration::from_millis(200)) {
                Err(RecvTimeoutError::Timeout) => {}
                event => panic!(
                    "{event:?} instead of a shell; the console said:\n{}",
                    self.said.text()
                ),
            }
            assert!(
                Instant::now() < until,
                "no shell; the console said:\n{}",
                self.said.text()
            );
        }
        // So that a command is not mistaken for its answer.
        self.run("stty -echo");
    }

    /// Types a line.
    pub fn type_line(&self, line: &str) {
        (&self.console).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Runs a command in the guest's shell; gives its output and status.
    pub fn try_run(&self, command: &str) -> (String, i32) {
        let from = self.said.len();
        self.type_line(&format!("echo @@'BEGIN'; {command}; echo @@'END' $?."));
        self.said.wait(from, command, |text| {
            let (_, rest) = text.split_once("@@BEGIN\r\n")?;
            let (output, rest) = rest.split_once("@@END ")?;
            let (status, _) = rest.split_once('.')?;
            Some((output.replace('\r', ""), status.parse().unwrap()))
        })
    }

    /// Runs a command that must succeed; gives its output without the last line's end.
    pub fn run(&self, command: &str) -> String {
        let (output, status) = self.try_run(command);
        assert_eq!(status, 0, "{command}: {output}");
        output.trim_end().to_owned()
    }

    /// Waits for what the machine tells its owner.
    pub fn event(&mut self) -> VmEvent {
        self.events.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!(
                "no event; {}; it said:\n{}",
                whereabouts(&mut self.vm),
                self.said.text()
            )
        })
    }
}

/// Where a machine's processors are, for who waited for something else.
pub fn whereabouts(vm: &mut Vm) -> String {
    let place = |vcpu: &nacelle_vmm::vcpu::state::VcpuState| {
        let (regs, sregs) = (&vcpu.regs, &vcpu.sregs);
        format!(
            "at {:#x} in ring {}, rflags {:#x}, rsp {:#x}",
            regs.rip, sregs.cs.dpl, regs.rflags, regs.rsp
        )
    };
    let state = vm.pause().and_then(|()| vm.save());
    state.map_or_else(
        |error| error.to_string(),
        |state| state.vcpus.iter().map(place).collect::<Vec<_>>().join(", "),
    )
}

/// Waits until `true`.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes of the guest's memory that the host has in RAM, as the kernel says of this process.
pub fn resident(vm: &Vm) -> u64 {
    use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend};
    let start = vm.memory().memory().get_host_address(GuestAddress(0)).unwrap() as u64;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut resident) = (false, 0);
    for line in maps.lines() {
        let range = line
            .split_whitespace()
            .next()
            .and_then(|word| word.split_once('-'));
        if let Some((Ok(from), Ok(to))) =
            range.map(|(from, to)| (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)))
        {
            // The kernel may have joined it with a neighbour; what matters is how it changes.
            inside = from <= start && start < to;
        } else if let (true, Some(kib)) = (inside, line.strip_prefix("Rss:")) {
            resident = kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        }
    }
    resident
}
