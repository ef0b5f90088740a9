//! Volumes that are folders which all nodes share, and what is in them.

use std::io::Write;
use std::process::Stdio;

use super::{Person, output, script};

/// Runs a command in a node; what it printed.
pub fn in_node(command: &str) -> String {
    let done = output(script("in-node").args(["1", "sh", "-c", command]), "");
    assert!(
        done.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Writes a file there.
pub fn write(path: &str, content: &[u8]) {
    let mut command = script("in-node");
    command
        .args(["1", "sh", "-c", &format!("cat >{path}")])
        .stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(content).unwrap();
    assert!(child.wait().unwrap().success());
}

/// The SHA-256 of a file there.
pub fn sum(path: &str) -> String {
    in_node(&format!("sha256sum {path}"))
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

/// A volume of a folder for a claim to be bound to; the folder.
pub fn volume(me: &Person, name: &str, class: &str) -> String {
    let folder = format!("/mnt/shared/{name}");
    in_node(&format!("rm -rf {folder}; install -d -m 777 {folder}"));
    me.kubectl(&["delete", "pv", name, "--ignore-not-found"]);
    me.apply(&format!(
        "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: {name}}}, spec: {{capacity: {{storage: 80Mi}}, \
         accessModes: [ReadWriteMany], storageClassName: {class}, persistentVolumeReclaimPolicy: Retain, \
         hostPath: {{path: {folder}}}}}}}"
    ));
    folder
}

/// A DataVolume's spec.
pub fn spec(name: &str, source: &str, class: &str) -> String {
    format!(
        "{{source: {{{source}}}, pvc: {{accessModes: [ReadWriteMany], storageClassName: {class}, volumeName: {name}, \
         resources: {{requests: {{storage: 72Mi}}}}}}}}"
    )
}

/// A DataVolume for the volume of its name.
pub fn data_volume(name: &str, source: &str) -> String {
    let spec = spec(name, source, "by-hand");
    format!(
        "{{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataVolume, metadata: {{name: {name}}}, spec: {spec}}}"
    )
}

/// Bytes that do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}
