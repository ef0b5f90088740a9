//! The lab: this program runs itself there, and what it measures lies in the lab's memory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::peer::Found;
use crate::process::ends_with_us;
use crate::record::Report;

/// What QEMU reads besides its program: firmware.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];
/// Files there that no machine of ours needs, and that are large.
const LARGE: u64 = 1 << 20;

/// Options that are for this side only, each with a value: where reports go, and places of this machine; the guest's
/// files are told as they were found here.
const OURS: [&str; 7] = [
    "--json",
    "--plot",
    "--output",
    "--memory-dir",
    "--disk-dir",
    "--kernel",
    "--initrd",
];

/// What of a command line is for the lab.
pub fn arguments(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut skip = false;
    let kept = words.filter(|word| {
        let word = word.to_string_lossy();
        let ours = OURS.iter().any(|option| word.split('=').next() == Some(option));
        let drop = skip || ours || word == "--lab" || word == "--debian";
        skip = ours && !word.contains('=');
        !drop
    });
    kept.collect()
}

/// Runs the same measures in the lab, with the guest that was found here.
///
/// # Errors
/// When the lab fails, or what is measured in it.
pub fn run(arguments: Vec<OsString>, seconds: u64) -> Result<Report> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/lab/run");
    let program = std::env::current_exe().map_err(Error::io("find this program's file"))?;
    let mut command = Command::new(&lab);
    command
        .args(["--count", "--memory", "4096", "--timeout", &seconds.to_string()])
        .arg(program)
        .args(arguments)
        .args(["--in-lab", "--output", "json"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        // A group of its own, which ends as a whole when we are interrupted.
        .process_group(0);
    ends_with_us(&mut command, libc::SIGTERM);
    let output = command
        .output()
        .map_err(Error::io(format!("run {}", lab.display())))?;
    serde_json::from_slice(&output.stdout).map_err(|error| Error::Tool {
        command: lab.display().to_string(),
        said: format!(
            "it ended with {}, and what came from it is no report: {error}",
            output.status
        ),
    })
}

/// Brings programs and what they need into this lab's memory: waiting for the files of the machine outside would jump
/// the clock. The lab's root is an overlay in memory, to which a file is copied when anything of it is changed.
///
/// # Errors
/// When something cannot be copied.
pub fn stage(peers: &[Found]) -> Result<()> {
    // Every program looks for these two; the second is empty, but not to be missed outside.
    let preload = Path::new("/etc/ld.so.preload");
    if !preload.exists() {
        fs::write(preload, "").map_err(Error::io(format!("write {}", preload.display())))?;
    }
    let mut files = BTreeSet::from([PathBuf::from("/etc/ld.so.cache")]);
    for found in peers {
        files.insert(found.program.clone());
        let output = Command::new("ldd")
            .arg(&found.program)
            .output()
            .map_err(Error::io("run ldd"))?;
        files.extend(libraries(&String::from_utf8_lossy(&output.stdout)));
        if found.peer.program.starts_with("qemu") {
            for directory in FIRMWARE {
                let entries = fs::read_dir(directory).map_err(Error::io(format!("read {directory}")))?;
                let paths = entries
                    .flatten()
                    .filter_map(|entry| fs::canonicalize(entry.path()).ok());
                files.extend(paths.filter(|path| {
                    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() < LARGE)
                }));
            }
        }
    }
    for file in &files {
        let copied = fs::metadata(file).and_then(|meta| fs::set_permissions(file, meta.permissions()));
        copied.map_err(Error::io(format!("copy {}", file.display())))?;
    }
    // For the numbers of exits; where it cannot be mounted the report says that they are missing.
    let _ = Command::new("mount")
        .args(["-t", "debugfs", "none", "/sys/kernel/debug"])
        .status();
    Ok(())
}

/// The files that `ldd` names: libraries, and what loads them.
fn libraries(said: &str) -> Vec<PathBuf> {
    let words = said
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.filter_map(|file| fs::canonicalize(file).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_is_told_what_is_measured_and_not_where_the_report_goes() {
        let words = "boot --lab --debian --json a.json --runs 2 --plot=b.svg --memory-dir /x --peer qemu-q35";
        let told = arguments(words.split(' ').map(OsString::from));
        assert_eq!(told, ["boot", "--runs", "2", "--peer", "qemu-q35"]);
    }

    #[test]
    fn libraries_are_what_ldd_names() {
        let said =
            "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /proc/self/exe (0x7f)\n\t/proc/self/exe (0x7f)\n";
        let exe = fs::canonicalize("/proc/self/exe").unwrap();
        assert_eq!(libraries(said), [exe.clone(), exe]);
    }
}
