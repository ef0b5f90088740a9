//! Images for tests, made by the tools that make real ones.

extern crate std;

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::io::Source;

/// Files, and an image made of them.
pub struct Bed {
    directory: TempDir,
}

impl Bed {
    /// No files yet.
    pub fn new() -> Bed {
        let bed = Bed {
            directory: TempDir::new().unwrap(),
        };
        fs::create_dir(bed.root()).unwrap();
        bed
    }

    /// The directory that becomes the image's root.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Puts a file there.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Puts a symbolic link there.
    pub fn link(&self, path: &str, target: &str) {
        std::os::unix::fs::symlink(target, self.root().join(path.trim_start_matches('/'))).unwrap();
    }

    /// An image of `mib` MiB, of which a shell command makes a file system: `$image`, with the files of `$root`.
    pub fn image(&self, mib: u64, command: &str) -> Vec<u8> {
        let image = self.directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        shell(command, &[("image", &image), ("root", &self.root())]);
        fs::read(image).unwrap()
    }
}

/// A shell function that makes an XFS of a directory: a protofile says what is on it, directories, files, links.
pub const MKFS_XFS: &str = r#"
    walk() { for f in "$1"/*; do
        n=$(basename "$f")
        if [ -L "$f" ]; then echo "$n l--777 0 0 $(readlink "$f")"
        elif [ -d "$f" ]; then echo "$n d--755 0 0"; walk "$f"; echo '$'
        else echo "$n ---644 0 0 $f"; fi; done; }
    mkfs_xfs() {
        { echo /; echo 0 0; echo d--755 0 0; walk "$1"; echo '$'; } >"$image.proto"
        mkfs.xfs -q -p "$image.proto" "${@:2}"; }"#;

/// Runs a command that must succeed, with these variables.
pub fn shell(command: &str, variables: &[(&str, &Path)]) {
    let path = format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", command])
        .env("PATH", path)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command}: {said} (tests/deps names the tools)"
    );
}

/// Bytes that do not compress and are never the same twice.
pub fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for byte in &mut bytes {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = (seed >> 56) as u8;
    }
    bytes
}

/// Bytes as something to read from.
pub fn source(bytes: Vec<u8>) -> Source {
    Rc::new(bytes)
}
