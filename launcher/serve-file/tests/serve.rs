//! `serve-file` as a pod runs it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve_file(words: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_serve-file"));
    command.args(words);
    command
}

fn connect(socket: &Path) -> UnixStream {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn receive(socket: &Path) -> String {
    let stream = connect(socket);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut byte)],
        &mut rights,
        RecvFlags::empty(),
    )
    .unwrap();
    let fd = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    // All have the same open file, and so its offset: who reads says where.
    let mut bytes = [0; 16];
    let count = File::from(fd.unwrap()).read_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[test]
fn whoever_connects_gets_the_file_as_often_as_it_asks() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::create_dir(at("disk")).unwrap();
    fs::write(at("disk/root.img"), "root").unwrap();
    fs::write(at("vmlinux"), "kernel").unwrap();
    let words = [
        at("machine.sock").display().to_string(),
        format!("{}={}/", at("files/root.sock").display(), at("disk").display()),
        format!(
            "{}={}",
            at("files/kernel.sock").display(),
            at("vmlinux").display()
        ),
    ];
    let mut running = Running(serve_file(&words).spawn().unwrap());
    for _ in 0..2 {
        assert_eq!(receive(&at("files/kernel.sock")), "kernel");
    }
    assert_eq!(receive(&at("files/root.sock")), "root");
    // Names that the file loses do not matter to who has it.
    fs::remove_file(at("disk/root.img")).unwrap();
    assert_eq!(receive(&at("files/root.sock")), "root");
    // As the kubelet ends it.
    let pid = Pid::from_child(&running.0);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn it_ends_with_the_machine() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::write(at("disk"), "disk").unwrap();
    let words = [
        at("machine.sock").display().to_string(),
        format!("{}={}", at("s").display(), at("disk").display()),
    ];
    let mut running = Running(serve_file(&words).spawn().unwrap());
    assert_eq!(receive(&at("s")), "disk");
    let machine = UnixListener::bind(at("machine.sock")).unwrap();
    let (_looks, _) = machine.accept().unwrap();
    assert_eq!(running.0.try_wait().unwrap(), None);
    drop((machine, _looks));
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_served_is_told_to_the_machine() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    for file in ["two/a", "two/b"] {
        fs::create_dir_all(at("two")).unwrap();
        fs::write(at(file), "").unwrap();
    }
    fs::create_dir(at("none")).unwrap();
    let cases = [
        (at("absent"), "No such file"),
        (format!("{}/", at("none")), "holds 0 files"),
        (format!("{}/", at("two")), "name it by the volume's path"),
        ("/dev/null".to_owned(), "it is no file"),
    ];
    for (path, reason) in cases {
        let (machine, socket) = (at("machine"), at("s"));
        let mut running = Running(
            serve_file(&[machine, format!("{socket}={path}")])
                .spawn()
                .unwrap(),
        );
        let mut said = String::new();
        connect(Path::new(&socket)).read_to_string(&mut said).unwrap();
        assert!(said.starts_with('e') && said.contains(reason), "{path}: {said}");
        kill_process(Pid::from_child(&running.0), Signal::TERM).unwrap();
        assert_eq!(running.0.wait().unwrap().code(), Some(5));
        fs::remove_file(socket).unwrap();
    }
}

#[test]
fn who_does_not_know_how_it_is_called_is_told() {
    for words in [
        vec![],
        vec!["machine".to_owned()],
        vec!["machine".to_owned(), "word".to_owned()],
    ] {
        let Output { status, stderr, .. } = serve_file(&words).output().unwrap();
        assert_eq!(status.code(), Some(2));
        assert!(String::from_utf8_lossy(&stderr).contains("usage:"));
    }
}
