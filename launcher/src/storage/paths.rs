//! Where the launcher keeps things: the directories of the XDG base directory specification.

use std::env;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const US: &str = "nacelle";

/// `variable`, else `below` in the home directory; then our own directory in it.
fn directory(variable: &str, below: &str) -> Result<PathBuf> {
    let given = env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(below));
    given.or_else(home).map(|path| path.join(US)).ok_or_else(|| {
        Error::Usage(format!(
            "neither {variable} nor HOME is set: there is no place for our files"
        ))
    })
}

/// Images and scratch disks: `nacelle` in the user's data directory.
///
/// # Errors
/// When the environment names no such directory.
pub fn data() -> Result<PathBuf> {
    directory("XDG_DATA_HOME", ".local/share")
}

/// What can be made again: `nacelle` in the user's cache directory.
///
/// # Errors
/// When the environment names no such directory.
pub fn cache() -> Result<PathBuf> {
    directory("XDG_CACHE_HOME", ".cache")
}

/// What the user set up: `nacelle` in the user's configuration directory.
///
/// # Errors
/// When the environment names no such directory.
pub fn config() -> Result<PathBuf> {
    directory("XDG_CONFIG_HOME", ".config")
}

/// The image layout: the one given, else `images` in [`data`].
///
/// # Errors
/// As [`data`].
pub fn images(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(directory) => Ok(directory.to_owned()),
        None => Ok(data()?.join("images")),
    }
}
