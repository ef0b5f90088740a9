//! A machine of the small Linux that goes from one host to another: each host has directories of its own.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Bed, KERNEL_ARGS, Running, artefact};

/// A machine as it is at one host.
#[derive(Clone)]
pub struct Place<'a> {
    pub bed: &'a Bed,
    pub words: Vec<String>,
    pub vm: String,
}

impl<'a> Place<'a> {
    /// With a disk that every side reaches.
    pub fn new(bed: &'a Bed, name: &str) -> Place<'a> {
        fs::copy(artefact("DISK"), bed.path("root.img")).unwrap();
        let words = [
            "--kernel".to_owned(),
            artefact("LINUX_SMALL_VMLINUX").display().to_string(),
            "--cmdline".to_owned(),
            format!("{KERNEL_ARGS} clocksource=kvm-clock root=/dev/vda rw init=/init"),
        ];
        let vm = format!(
            "apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 600
  domain:
    memory: {{guest: 128Mi}}
    devices: {{autoattachPodInterface: false, rng: {{}}, disks: [{{name: root, disk: {{bus: virtio}}}}]}}
  volumes: [{{name: root, persistentVolumeClaim: {{claimName: root}}}}]
"
        );
        let words = words.to_vec();
        Place { bed, words, vm }.with("root", &bed.path("root.img"))
    }

    /// With one more disk: what its volume is.
    #[must_use]
    pub fn and_disk(mut self, name: &str, volume: &str) -> Self {
        self.vm = self
            .vm
            .replace(
                "}}]}\n",
                &format!("}}}}, {{name: {name}, disk: {{bus: virtio}}}}]}}\n"),
            )
            .replace("}}]\n", &format!("}}}}, {{name: {name}, {volume}}}]\n"));
        self
    }

    /// The same with one that ends with the machine.
    #[must_use]
    pub fn and_scratch(self) -> Self {
        self.and_disk("scratch", "emptyDisk: {capacity: 1Mi}")
    }

    /// The same machine at another host.
    pub fn at<'b>(&self, bed: &'b Bed) -> Place<'b> {
        Place {
            bed,
            words: self.words.clone(),
            vm: self.vm.clone(),
        }
    }

    /// Its volume `name` is this file.
    #[must_use]
    pub fn with(mut self, name: &str, file: &Path) -> Self {
        let volume = format!("{name}=");
        if let Some(at) = self.words.iter().position(|word| word.starts_with(&volume)) {
            self.words.drain(at - 1..=at);
        }
        self.words
            .extend(["--volume".to_owned(), format!("{volume}{}", file.display())]);
        self
    }

    pub fn run(&self) -> Running {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        Running::start(self.bed.nacelle(&self.vm, &words))
    }

    /// Waits for the machine at `address`; gives where that really is.
    pub fn receive(&self, address: &str) -> (Running, String) {
        let mut command = self.bed.command("receive");
        command.arg(self.bed.file("vm.yaml", &self.vm));
        command.args(["--listen", address]).args(&self.words);
        let mut waiting = Running::start(command);
        waiting.listen();
        let at = waiting.wait_for_log(" at ");
        (waiting, at)
    }

    /// As [`Place::receive`], at a socket of the host.
    pub fn receive_here(&self) -> (Running, String) {
        self.receive(&format!("unix:{}", self.bed.path("in").display()))
    }

    /// Status of a command that ends, and what it said.
    pub fn ask(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let output = self.bed.command(words[0]).args(&words[1..]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// A command that goes on beside.
    pub fn begin(&self, words: &[&str]) -> Running {
        let mut command = self.bed.command(words[0]);
        command.args(&words[1..]);
        Running::start(command)
    }

    /// What the machine is doing.
    pub fn state(&self, name: &str) -> String {
        let (code, said, log) = self.ask(&["status", name, "--output", "json"]);
        assert_eq!(code, Some(0), "{log}");
        let machine: serde_json::Value = serde_json::from_str(&said).unwrap();
        machine["state"].as_str().unwrap().to_owned()
    }
}

fn directory(bed: &Bed) -> PathBuf {
    let directory = bed.path("config/nacelle/tls");
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// An authority, and a certificate for `here`, the host 127.0.0.1; one for `there`, which is named localhost.
pub fn certificates(here: &Bed, there: Option<&Bed>) {
    let script = include_str!("../../../docs/migration-certificates.sh");
    let output = Command::new("sh")
        .args(["-c", script, "sh", "127.0.0.1"])
        .args(there.map(|_| "localhost"))
        .current_dir(directory(here))
        .output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    if let Some(there) = there {
        let to = directory(there);
        fs::remove_dir(&to).unwrap();
        fs::rename(directory(here).join("localhost"), to).unwrap();
    }
}
