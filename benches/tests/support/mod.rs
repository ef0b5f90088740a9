//! The harness as a person starts it, in a place that is looked at afterwards.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A place of a test's own, which must be as empty afterwards as before.
pub struct Place {
    directory: TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(place.path("memory")).unwrap();
        fs::create_dir(place.path("disk")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacelle-bench"));
        command
            .args(words.split_whitespace())
            .arg("--memory-dir")
            .arg(self.path("memory"))
            .arg("--disk-dir")
            .arg(self.path("disk"))
            .arg(format!(
                "--peer-path=nacelle-slim={}",
                env!("CARGO_BIN_EXE_nacelle-slim")
            ))
            .stdin(Stdio::null());
        command
    }

    pub fn bench(&self, words: &str) -> Ran {
        let output = self.command(words).output().unwrap();
        self.is_clean();
        Ran::new(&output)
    }

    /// Nothing of a run is left: no file, no process that was started in these directories.
    pub fn is_clean(&self) {
        for name in ["memory", "disk"] {
            let left: Vec<_> = fs::read_dir(self.path(name))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let mine = self.directory.path().to_str().unwrap();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            assert!(!command.contains(mine), "still running: {command}");
        }
    }
}

pub struct Ran {
    pub status: i32,
    pub said: String,
    pub errors: String,
}

impl Ran {
    pub fn new(output: &Output) -> Ran {
        Ran {
            status: output.status.code().unwrap_or(-1),
            said: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn is(&self, status: i32) -> &Ran {
        assert_eq!(self.status, status, "{}{}", self.said, self.errors);
        self
    }
}

/// `nacelle` itself, which `cargo test --workspace` builds beside us. Cargo asked again from within a test would build all anew:
/// it has other variables there, which some build scripts look at.
pub fn nacelle() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_nacelle-bench")).with_file_name("nacelle");
    assert!(
        program.exists(),
        "{} is missing: cargo test --workspace --no-run builds it",
        program.display()
    );
    program
}

/// The values of a metric.
pub fn values<'a>(report: &'a Value, measure: &str, peer: &str, metric: &str) -> Vec<&'a Value> {
    let find = |list: &'a Value, key: &str, name: &str| {
        let found = list.as_array().unwrap().iter().find(|item| item[key] == name);
        found.unwrap_or_else(|| panic!("no {name} in {list}"))
    };
    let measure = find(&report["measures"], "measure", measure);
    let peer = find(&measure["peers"], "peer", peer);
    assert_eq!(peer["failed"], Value::Null);
    find(&peer["metrics"], "name", metric)["values"]
        .as_array()
        .unwrap()
        .iter()
        .collect()
}
