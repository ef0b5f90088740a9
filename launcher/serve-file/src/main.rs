//! `serve-file MACHINE SOCKET=PATH...`: hands a descriptor of each file to whoever connects to its socket, until the
//! machine has ended.
//!
//! It runs in containers of images that are not ours and may hold nothing but a disk: it is copied there, so it is
//! linked statically and needs no other file. The descriptor alone leaves the container: who receives it may read the
//! file (not by its offset, which all share), and sees nothing else of the image.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::OFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A file is not there: the status that `nacelle` has for it.
const NOT_FOUND: u8 = 5;
/// The command line is wrong.
const USAGE: u8 = 2;
/// How long a neighbour may take to accept the descriptor.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the machine is looked for that is not there yet.
const LOOK: Duration = Duration::from_millis(20);
/// Each thread only accepts and sends.
const STACK: usize = 64 << 10;

const HELP: &str = "\
usage: serve-file MACHINE SOCKET=PATH...
Opens each PATH for reading, listens on each unix SOCKET, and sends one descriptor (SCM_RIGHTS, with the byte f) to
whoever connects; where PATH cannot be opened, the byte e and the reason. A PATH that ends in / is a directory with
exactly one file. It ends when whoever listens on the unix socket MACHINE has come and gone, and by SIGTERM.
example: serve-file /run/nacelle/machine.sock /run/nacelle/files/root.sock=/disk/";

/// A file that is served at a socket, or why it is not.
struct Served {
    file: Result<File, String>,
    listener: UnixListener,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let machine = words.next().map(PathBuf::from);
    let words: Vec<String> = words.collect();
    let pairs: Option<Vec<_>> = words.iter().map(|word| word.split_once('=')).collect();
    let (Some(machine), Some(pairs)) = (machine, pairs.filter(|pairs| !pairs.is_empty())) else {
        eprintln!("{HELP}");
        return ExitCode::from(USAGE);
    };
    let served = pairs
        .into_iter()
        .map(|(socket, path)| serve(Path::new(socket), path))
        .collect::<Result<Vec<_>, _>>()
        .and_then(|served| attend(served, machine));
    served.unwrap_or_else(|reason| {
        eprintln!("serve-file: {reason}");
        ExitCode::FAILURE
    })
}

/// Serves on a thread for each file, until SIGTERM or the machine's end. The first process of a container ignores that
/// signal if it does not ask for it.
fn attend(served: Vec<Served>, machine: PathBuf) -> Result<ExitCode, String> {
    let status = match served.iter().all(|served| served.file.is_ok()) {
        true => 0,
        false => NOT_FOUND,
    };
    let end = SigSet::from(Signal::SIGTERM);
    // Threads inherit it.
    let ended = end.thread_block().map_err(io::Error::from).and_then(|()| {
        for served in served {
            spawn(move || hand_out(&served))?;
        }
        spawn(move || {
            outlive(&machine);
            std::process::exit(i32::from(status));
        })?;
        Ok(end.wait()?)
    });
    ended
        .map(|_| ExitCode::from(status))
        .map_err(|error| error.to_string())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(work).map(drop)
}

/// Returns when the machine has ended: when it begins it listens, and it never answers.
fn outlive(machine: &Path) {
    let mut stream = loop {
        match UnixStream::connect(machine) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(LOOK),
        }
    };
    let _ = stream.read(&mut [0]);
}

/// Opens the file, as far as it can, and takes the socket.
fn serve(socket: &Path, path: &str) -> Result<Served, String> {
    let file = open(path).inspect_err(|reason| eprintln!("serve-file: {reason}"));
    let said = |error| format!("cannot listen on {}: {error}", socket.display());
    if let Some(directory) = socket.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o770)
            .create(directory)
            .map_err(said)?;
    }
    // Left by the container's last run.
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(said)?;
    Ok(Served { file, listener })
}

/// Opens a file, or the only file of a directory.
fn open(path: &str) -> Result<File, String> {
    let path = match path.strip_suffix('/') {
        Some(_) => only_file(Path::new(path))?,
        None => PathBuf::from(path),
    };
    let failed = |reason: &dyn std::fmt::Display| format!("cannot serve {}: {reason}", path.display());
    let file = OpenOptions::new()
        .read(true)
        // A fifo must not hold us up, a terminal not become ours.
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
        .open(&path)
        .map_err(|error| failed(&error))?;
    let kind = file.metadata().map_err(|error| failed(&error))?.file_type();
    if !kind.is_file() {
        return Err(failed(&"it is no file"));
    }
    Ok(file)
}

fn only_file(directory: &Path) -> Result<PathBuf, String> {
    let failed = |reason: &dyn std::fmt::Display| format!("cannot use {}: {reason}", directory.display());
    let entries = fs::read_dir(directory).map_err(|error| failed(&error))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(&error))?.path();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            files.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(files) => Err(failed(&format!(
            "it holds {} files, and nothing says which is the disk: name it by the volume's path",
            files.len()
        ))),
    }
}

fn hand_out(served: &Served) {
    for stream in served.listener.incoming() {
        if let Err(error) = stream.and_then(|stream| send(stream, &served.file)) {
            eprintln!("serve-file: {error}");
            // Out of descriptors, most likely.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn send(mut stream: UnixStream, file: &Result<File, String>) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let file = match file {
        Ok(file) => file,
        Err(reason) => return stream.write_all(format!("e{reason}").as_bytes()),
    };
    let fds = [file.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(b"f")], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}
