//! What a machine was made of: kept with its snapshots, so that they can be restored without being told again.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::RunArgs;
use crate::{Error, Result};

/// Beside the snapshot's own files.
const FILE: &str = "machine.json";
/// More is none of ours.
const MOST: u64 = 8 << 20;

/// A manifest, and what `nacelle run` was told beside it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The manifest's name, for messages.
    pub name: String,
    /// Its text.
    pub manifest: String,
    /// The rest.
    pub arguments: RunArgs,
    /// Where paths in it begin.
    pub directory: PathBuf,
}

impl Origin {
    /// Writes it to a snapshot's directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| Error::io("keep the manifest")(error.into()))?;
        fs::write(&path, text).map_err(Error::file("write", &path))
    }

    /// Reads it from a snapshot's directory.
    ///
    /// # Errors
    /// When it is not there, or not what it must be.
    pub fn read(directory: &Path) -> Result<Origin> {
        let path = directory.join(FILE);
        let mut text = Vec::new();
        let file = fs::File::open(&path).map_err(Error::file("read", &path))?;
        let read = file.take(MOST).read_to_end(&mut text);
        read.map_err(Error::file("read", &path))?;
        serde_json::from_slice(&text).map_err(|error| Error::file("read", &path)(error.into()))
    }
}
