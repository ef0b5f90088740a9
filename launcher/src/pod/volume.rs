//! `pod volume`: what runs in an attachment pod. It has a claim, and hands it over to who knows its word; that word is told
//! on the pod's loopback, which the controller reaches by the pod's `portforward` subresource, and nobody else.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{Root, runtime, storage};
use crate::node::volumes;
use crate::{Error, Result};

/// Where the word is told.
const PORT: u16 = 22483;
/// Until the node agent is looked for again.
const AGAIN: Duration = Duration::from_millis(200);
/// Time for who asks for the word.
const PATIENCE: Duration = Duration::from_secs(5);

/// Offers the claim at `path` until SIGTERM.
pub(super) fn run(root: &Root, path: &Path, read_only: bool) -> Result<()> {
    let path = find(path)?;
    open(&path, read_only).map_err(Error::file("open the volume", &path))?;
    let word = word()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT));
    let listener = listener.map_err(Error::io("listen on port 22483 of the pod's loopback address"))?;
    let runtime = runtime()?;
    let terminate = runtime.block_on(async { signal(SignalKind::terminate()) });
    let mut terminate = terminate.map_err(Error::io("handle signals"))?;
    let (told, agent) = (word.clone(), root.volumes());
    let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        thread.map(drop).map_err(Error::io("start a thread"))
    };
    start("word", Box::new(move || tell(&listener, &told)))?;
    start(
        "offer",
        Box::new(move || {
            let open = || open(&path, read_only).map_err(|error| format!("{}: {error}", path.display()));
            loop {
                if let Err(error) = volumes::offer(&agent, &word, &open) {
                    log::info!("the node agent at {}: {error}", agent.display());
                }
                thread::sleep(AGAIN);
            }
        }),
    )?;
    runtime.block_on(terminate.recv());
    Ok(())
}

fn tell(listener: &TcpListener, word: &str) {
    for stream in listener.incoming() {
        let told = stream.and_then(|mut stream| {
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(format!("{word}\n").as_bytes())
        });
        if let Err(error) = told {
            log::info!("the word is not told: {error}");
            thread::sleep(AGAIN);
        }
    }
}

/// The block device, or the disk in the directory, which is made where there is none.
fn find(path: &Path) -> Result<PathBuf> {
    let kind = fs::metadata(path).map_err(Error::file("use", path))?.file_type();
    match kind.is_block_device() {
        true => Ok(path.to_owned()),
        false => storage::disk_in(path),
    }
}

fn open(path: &Path, read_only: bool) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(!read_only).open(path)
}

/// A secret.
fn word() -> Result<String> {
    let mut bytes = [0; volumes::WORD / 2];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(Error::io("read /dev/urandom"))?;
    Ok(bytes.iter().fold(String::new(), |mut word, byte| {
        let _ = write!(word, "{byte:02x}");
        word
    }))
}
