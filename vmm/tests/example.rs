//! The example is what an embedder begins with: it boots a real guest.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A file that `tests/guest/build` made.
fn guest(key: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(key) {
        return path.into();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guest/build");
    let output = Command::new(script).arg("small").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix(&format!("{key}=")))
        .unwrap()
        .into()
}

/// The example, which `cargo test --workspace` builds beside us. Cargo asked again from within a test would build much anew.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().with_file_name("examples").join("boot");
    assert!(
        example.exists(),
        "{} is missing: cargo test --workspace --no-run builds it",
        example.display()
    );
    example
}

#[test]
fn the_embedding_example_boots_linux_and_ends_when_the_guest_powers_off() {
    let words = "console=ttyS0 quiet panic=-1 noreplace-smp mitigations=off rodata=off random.trust_cpu=on \
                 no_timer_check noxsave clearcpuid=smap,smep,popcnt,erms,fsrm,fsgsbase,invpcid,umip,cx16,rdpid,pku";
    let mut child = Command::new(example())
        .args([
            guest("LINUX_SMALL_VMLINUX"),
            guest("LINUX_SMALL_INITRD"),
            words.into(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Typed before the guest listens: it waits on the line.
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"echo $((6 * 7)) is it; poweroff -f\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("42 is it"), "{said}");
}
