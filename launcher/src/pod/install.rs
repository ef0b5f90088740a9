//! `pod init`: the one program that containers of other images run.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

/// Where our own image has it.
const PROGRAM: &str = "/usr/bin/serve-file";

pub(super) fn run(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(Error::file("make the directory", directory))?;
    // Renamed into place, so that nobody runs half of it; the mode is copied too.
    let (new, program) = (directory.join(".serve-file"), directory.join("serve-file"));
    fs::copy(PROGRAM, &new).map_err(Error::file("copy to", &new))?;
    fs::rename(&new, &program).map_err(Error::file("make", &program))
}
