//! Entries of the boot loader specification (UAPI.1, type 1), `loader/entries/*.conf`, as systemd-boot and Fedora's
//! GRUB have them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::{Entry, File, Kind, Volume, version};

/// An entry, with what it is sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specified {
    /// The entry.
    pub entry: Entry,
    version: String,
    sort_key: String,
    machine: String,
    /// Whether every attempt that was allowed to boot it was made.
    exhausted: bool,
}

/// Reads an entry, whose file has the name `name`, of `volume`. `None` where it is not for a kernel on this processor.
///
/// `variable` is what GRUB would put for `$name` in its options.
pub fn parse(
    name: &str,
    text: &str,
    volume: usize,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<Specified> {
    let (id, exhausted) = attempts(name.strip_suffix(".conf")?);
    let mut found = Specified {
        entry: Entry {
            title: String::new(),
            id: id.into(),
            kind: Kind::Specification,
            kernel: File {
                volume,
                path: String::new(),
            },
            initrds: Vec::new(),
            options: String::new(),
        },
        version: String::new(),
        sort_key: String::new(),
        machine: String::new(),
        exhausted,
    };
    let file = |path: &str| File {
        volume,
        path: if path.starts_with('/') {
            path.into()
        } else {
            ["/", path].concat()
        },
    };
    for line in text.lines() {
        let line = line.trim();
        let Some((key, value)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let value = value.trim();
        let entry = &mut found.entry;
        match key {
            "title" => entry.title = value.into(),
            "version" => found.version = value.into(),
            "sort-key" => found.sort_key = value.into(),
            "machine-id" => found.machine = value.to_ascii_lowercase(),
            "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
            "linux" => entry.kernel = file(value),
            "initrd" => {
                // GRUB's form has several in a line, and variables among them.
                let words = expand(value, &variable);
                entry.initrds.extend(words.split_whitespace().map(file));
            }
            "options" => {
                if !entry.options.is_empty() {
                    entry.options.push(' ');
                }
                entry.options.push_str(expand(value, &variable).trim());
            }
            _ => {}
        }
    }
    if found.entry.kernel.path.is_empty() {
        return None;
    }
    if found.entry.title.is_empty() {
        found.entry.title = id.into();
    }
    Some(found)
}

/// Puts values for `$name` and `${name}`; GRUB's variables are of letters, digits and `_`.
fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let mut pieces = text.split('$');
    let mut out = String::from(pieces.next().unwrap_or_default());
    for piece in pieces {
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, rest) = match piece.strip_prefix('{').and_then(|piece| piece.split_once('}')) {
            Some(found) => found,
            None => piece.split_at(piece.find(|c| !inside(c)).unwrap_or(piece.len())),
        };
        out.push_str(&variable(name).unwrap_or_default());
        out.push_str(rest);
    }
    out
}

/// The entries in a directory, sorted. One that cannot be read is noted and left out.
pub fn read(
    volumes: &[Volume],
    volume: usize,
    directory: &str,
    variable: impl Fn(&str) -> Option<String>,
    notes: &mut Vec<String>,
) -> Vec<Specified> {
    let Some(fs) = volumes.get(volume).map(|volume| &volume.fs) else {
        return Vec::new();
    };
    let names = match fs.list(directory) {
        Ok(names) => names,
        Err(error) if error.is_not_found() => return Vec::new(),
        Err(error) => {
            notes.push(format!("{directory}: {error}"));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".conf")) {
        match fs.text(&format!("{directory}/{name}")) {
            Ok(text) => {
                if let Some(new) = parse(name, &text, volume, &variable) {
                    let at = found.partition_point(|other| order(other, &new).is_le());
                    found.insert(at, new);
                }
            }
            Err(error) => notes.push(format!("{directory}/{name}: {error}")),
        }
    }
    found
}

/// The id of an entry without its counter of attempts, `+LEFT` or `+LEFT-DONE`, and whether none is left.
pub fn attempts(id: &str) -> (&str, bool) {
    let Some((name, counter)) = id.rsplit_once('+') else {
        return (id, false);
    };
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match number(left) && number(done) {
        true => (name, left.bytes().all(|byte| byte == b'0')),
        false => (id, false),
    }
}

/// The order of a menu: what is to be booted first comes first.
pub fn order(a: &Specified, b: &Specified) -> Ordering {
    let newest = version::compare(&b.version, &a.version);
    let by_name = || version::compare(&b.entry.id, &a.entry.id);
    a.exhausted
        .cmp(&b.exhausted)
        .then_with(|| match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
            (false, false) => a
                .sort_key
                .cmp(&b.sort_key)
                .then_with(|| a.machine.cmp(&b.machine))
                .then(newest)
                .then_with(by_name),
            (false, true) => Ordering::Less,
            (true, false) => Ordering::Greater,
            (true, true) => by_name(),
        })
}

/// What `loader.conf` says to boot: a pattern for an entry's id, with or without `.conf`.
pub fn loader_default(text: &str) -> Option<&str> {
    let value = |line: &&str| {
        line.trim()
            .strip_prefix("default")
            .filter(|rest| rest.starts_with(char::is_whitespace))
            .is_some()
    };
    let line = text.lines().rev().find(value)?;
    line.trim()
        .split_once(char::is_whitespace)
        .map(|(_, value)| value.trim())
}

/// Whether `text` is as the shell pattern says, of which `*` and `?` are known.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how far it has been made to reach.
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(wanted) if *wanted == '?' || wanted == c => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, reached)) => {
                    star = Some((at, reached + 1));
                    (p, t) = (at + 1, reached + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

#[cfg(test)]
#[path = "bls/tests.rs"]
mod tests;
