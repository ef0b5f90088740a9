//! `nacelle` as a person or a script uses it, with the small Linux guest: what its tests share.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, each of which uses its part"
)]

pub mod place;
pub mod relay;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What software KVM lacks (docs/testing.md), told to the kernel; harmless elsewhere.
pub const KERNEL_ARGS: &str = "console=ttyS0 quiet reboot=k panic=-1 mitigations=off rodata=off random.trust_cpu=on noreplace-smp \
    no_timer_check noxsave clearcpuid=smap,smep,popcnt,erms,fsrm,fsgsbase,invpcid,umip,cx16,rdpid,pku";

/// Where `tests/guest/build` put a thing: from the environment as `tests/run` sets it, else asked for.
pub fn artefact(key: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(key) {
        return path.into();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guest/build");
    let output = Command::new(script).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key}=")));
    path.unwrap_or_else(|| panic!("{script} knows no {key}")).into()
}

/// A machine named after its test: what of the spec is not the kernel.
pub fn manifest(name: &str, domain: &str, devices: &str, volumes: &str) -> String {
    format!(
        "apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 600
  domain:
    memory: {{guest: 128Mi}}
    firmware:
      kernelBoot:
        kernelArgs: {KERNEL_ARGS}
        container: {{image: 'nacelle.local/linux-small:6.1', kernelPath: /boot/vmlinux, initrdPath: /boot/initrd}}
{domain}
    devices: {{autoattachPodInterface: false, rng: {{}}{devices}}}
  volumes: [{volumes}]
"
    )
}

/// A directory for all files of a test's machines.
pub struct Bed(TempDir);

impl Bed {
    pub fn new() -> Bed {
        Bed(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn nacelle(&self, manifest: &str, words: &[&str]) -> Command {
        let mut command = self.command("run");
        command.arg(self.file("vm.yaml", manifest)).args(words);
        command
    }

    /// A subcommand with directories of this test's own.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacelle"));
        command.arg(subcommand);
        for (variable, directory) in [
            ("XDG_DATA_HOME", "data"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CONFIG_HOME", "config"),
        ] {
            command.env(variable, self.path(directory));
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// With the guests' images.
    pub fn guest(&self, manifest: &str, words: &[&str]) -> Command {
        let mut command = self.nacelle(manifest, words);
        command.arg("--images").arg(artefact("IMAGES"));
        command
    }

    /// Status and standard error of a command that ends by itself.
    pub fn fails(&self, manifest: &str, words: &[&str]) -> (Option<i32>, String) {
        let output = self.guest(manifest, words).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

/// A command that runs, and what it printed so far.
pub struct Running {
    pub child: Child,
    pub said: String,
    /// How much of that was waited for.
    seen: usize,
    /// What comes on standard error, where somebody listens, and what has come.
    lines: Option<Receiver<String>>,
    log: String,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        Running {
            child: command.spawn().unwrap(),
            said: String::new(),
            seen: 0,
            lines: None,
            log: String::new(),
        }
    }

    /// Hears what it says on standard error from now on.
    pub fn listen(&mut self) {
        let log = BufReader::new(self.child.stderr.take().unwrap());
        let (lines, heard) = channel();
        self.lines = Some(heard);
        // It must not be stopped by a pipe that nobody reads.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = lines.send(line + "\n");
            }
        });
    }

    /// Waits for the next line on standard error that has `text`; gives what follows that.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        loop {
            let Ok(line) = self.lines.as_ref().unwrap().recv() else {
                panic!("no {text:?} in {}", self.log);
            };
            self.log.push_str(&line);
            if let Some((_, rest)) = line.split_once(text) {
                return rest.trim().to_owned();
            }
        }
    }

    pub fn type_in(&mut self, text: &str) {
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Reads on until `text` was printed after what was waited for before; gives what was printed until then.
    pub fn wait_for(&mut self, text: &str) -> String {
        let out = self.child.stdout.as_mut().unwrap();
        let mut bytes = [0; 1024];
        loop {
            if let Some((before, _)) = self.said[self.seen..].split_once(text) {
                let before = before.to_owned();
                self.seen += before.len() + text.len();
                return before;
            }
            let count = out.read(&mut bytes).unwrap();
            assert!(count > 0, "no {text:?} in {}", self.said);
            self.said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    /// The end: all that was printed, on standard error too.
    pub fn end(mut self) -> (ExitStatus, String, String) {
        let (mut rest, mut log) = (String::new(), std::mem::take(&mut self.log));
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut rest)
            .unwrap();
        match (self.lines.take(), self.child.stderr.take()) {
            (Some(lines), _) => log.extend(lines),
            (None, Some(mut stderr)) => drop(stderr.read_to_string(&mut log).unwrap()),
            (None, None) => {}
        }
        (
            self.child.wait().unwrap(),
            std::mem::take(&mut self.said) + &rest,
            log,
        )
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

/// What a test that fails leaves running would be in others' way.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let left = fs::read_dir(self.path("data/nacelle/scratch")).map_or(0, Iterator::count);
        if !std::thread::panicking() {
            assert_eq!(left, 0, "scratch files are left");
        }
    }
}
