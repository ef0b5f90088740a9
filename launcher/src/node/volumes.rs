//! Brings together who has a volume and who wants it: pods share no file by which they could meet.
//!
//! ```text
//!   attachment pod ── offer WORD ──▶ agent ◀── want WORD ── compute
//!        ▲                             │ the connection of who wants it, as a descriptor
//!        └─────────────────────────────┘
//!   attachment pod ── the volume's descriptor, over that connection ──▶ compute
//! ```
//! The word is a secret of 256 bits that who has the volume makes and the controller passes on: who does not know it gets
//! nothing, and the agent itself never has a volume.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::sockets;
use crate::Result;

/// The socket's name ([`super::sockets`]).
pub const SOCKET: &str = "volumes.sock";
/// Characters of a word.
pub const WORD: usize = 64;
/// Bytes of a request: a verb of five characters and a space, the word, an end of line.
const REQUEST: usize = 6 + WORD + 1;
/// Time for a request, and for what is sent to who asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for the descriptor, from who has it.
const HANDOVER: Duration = Duration::from_secs(10);
/// Bytes of a reason that are read.
const REASON: u64 = 1024;
/// Pause where no connection can be taken.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn listen(plugins: &Path) -> Result<UnixListener> {
    sockets::listen(plugins, SOCKET)
}

/// Who offers what, by its word.
#[derive(Clone, Default)]
struct Offers(Arc<Mutex<HashMap<String, Arc<UnixStream>>>>);

impl Offers {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<UnixStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves for ever, `most` connections at once.
pub(crate) async fn serve(listener: UnixListener, most: usize) {
    let (offers, places) = (Offers::default(), Arc::new(Semaphore::new(most)));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, most likely: others may close theirs.
            Err(error) => {
                log::warn!("volumes: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let offers = offers.clone();
        tokio::spawn(async move {
            if let Err(error) = attend(stream, &offers).await {
                log::debug!("volumes: {error}");
            }
            drop(place);
        });
    }
}

async fn attend(mut stream: UnixStream, offers: &Offers) -> io::Result<()> {
    let mut request = [0; REQUEST];
    timeout(PATIENCE, stream.read_exact(&mut request)).await??;
    let request = String::from_utf8_lossy(&request);
    match request.trim_end().split_once(' ') {
        Some(("offer", word)) if is_word(word) => {
            let stream = Arc::new(stream);
            offers.all().insert(word.to_owned(), Arc::clone(&stream));
            gone(&stream).await;
            let mut all = offers.all();
            if all.get(word).is_some_and(|there| Arc::ptr_eq(there, &stream)) {
                all.remove(word);
            }
            Ok(())
        }
        // One more space, so that both are of one length.
        Some(("want", word)) if is_word(word.trim_start()) => {
            let offer = offers.all().get(word.trim_start()).cloned();
            match offer {
                Some(offer) => timeout(PATIENCE, introduce(&offer, &stream)).await?,
                None => Ok(()),
            }
        }
        _ => Err(io::Error::new(ErrorKind::InvalidData, "a request that is none")),
    }
}

fn is_word(word: &str) -> bool {
    word.len() == WORD && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns when who offered something has gone, or says what nobody asked for.
async fn gone(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Gives the connection of who wants a volume to who offers it.
async fn introduce(offer: &UnixStream, wants: &UnixStream) -> io::Result<()> {
    let send = || {
        let fds = [wants.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(offer, &[IoSlice::new(b"w")], &mut rights, SendFlags::NOSIGNAL)?;
        Ok(())
    };
    offer.async_io(Interest::WRITABLE, send).await
}

/// Offers what `open` opens to who knows `word`, until the agent is another: each gets it opened anew, or the reason why it
/// is not to be had.
///
/// # Errors
/// When the agent is not there, or goes.
pub fn offer(socket: &Path, word: &str, open: &dyn Fn() -> Result<File, String>) -> io::Result<()> {
    let mut agent = Blocking::connect(socket)?;
    agent.write_all(format!("offer {word}\n").as_bytes())?;
    loop {
        let (byte, wants) = receive(&agent)?;
        let Some(wants) = wants.filter(|_| byte == Some(b'w')) else {
            return Err(ErrorKind::UnexpectedEof.into());
        };
        if let Err(error) = hand_over(wants.into(), open()) {
            log::warn!("the volume is not handed over: {error}");
        }
    }
}

fn hand_over(mut stream: Blocking, file: Result<File, String>) -> io::Result<()> {
    // It came from a program that does not block.
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let file = match file {
        Ok(file) => file,
        Err(reason) => return stream.write_all(format!("e{reason}").as_bytes()),
    };
    let fds = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(b"f")], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The volume that is offered to who knows `word`, or why it is not to be had; `None` where nobody offers it (yet).
///
/// # Errors
/// When the agent is not there, or who has the volume says nothing.
pub fn want(socket: &Path, word: &str) -> io::Result<Option<Result<File, String>>> {
    if !is_word(word) {
        return Ok(Some(Err(
            "this is no word by which a volume is handed over".into()
        )));
    }
    let mut agent = Blocking::connect(socket)?;
    agent.set_read_timeout(Some(HANDOVER))?;
    agent.write_all(format!("want  {word}\n").as_bytes())?;
    match receive(&agent)? {
        (Some(b'f'), Some(file)) => Ok(Some(Ok(file.into()))),
        (Some(b'e'), _) => {
            let mut reason = Vec::new();
            agent.take(REASON).read_to_end(&mut reason)?;
            Ok(Some(Err(String::from_utf8_lossy(&reason).into_owned())))
        }
        _ => Ok(None),
    }
}

/// A byte, and the descriptor that came with it.
fn receive(stream: &Blocking) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut byte)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fd = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(((got.bytes > 0).then_some(byte[0]), fd))
}

#[cfg(test)]
mod tests {
    use std::io::Seek;
    use std::path::PathBuf;
    use std::thread;

    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    /// An agent that serves as long as the test.
    fn agent() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let plugins = home.path().to_owned();
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = listen(&plugins).unwrap();
                ready.send(()).unwrap();
                serve(listener, 4).await;
            });
        });
        is_ready.recv().unwrap();
        let socket = home.path().join("nacelle").join(SOCKET);
        (home, socket)
    }

    fn offers(socket: &Path, word: &'static str, open: fn() -> Result<File, String>) {
        let socket = socket.to_owned();
        thread::spawn(move || offer(&socket, word, &open));
    }

    fn wanted(socket: &Path, word: &str) -> Result<File, String> {
        loop {
            if let Some(got) = want(socket, word).unwrap() {
                return got;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_knows_the_word_gets_the_volume_each_time_opened_anew() {
        let (_home, socket) = agent();
        offers(&socket, SECRET, || {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"volume").unwrap();
            file.rewind().unwrap();
            Ok(file)
        });
        for _ in 0..3 {
            let mut said = String::new();
            wanted(&socket, SECRET)
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
            assert_eq!(said, "volume");
        }
        let other = SECRET.replace("00", "01");
        assert!(want(&socket, &other).unwrap().is_none());
    }

    #[test]
    fn who_has_none_says_why_and_what_is_no_request_ends() {
        let (_home, socket) = agent();
        offers(&socket, SECRET, || Err("no such file".into()));
        assert_eq!(wanted(&socket, SECRET).unwrap_err(), "no such file");
        let word = SECRET.get(1..).unwrap();
        assert!(want(&socket, word).unwrap().unwrap().is_err());
        let mut odd = Blocking::connect(&socket).unwrap();
        odd.write_all(&[b'x'; REQUEST]).unwrap();
        assert_eq!(odd.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn an_offer_ends_with_who_made_it() {
        let (_home, socket) = agent();
        let mut here = Blocking::connect(&socket).unwrap();
        here.write_all(format!("offer {SECRET}\n").as_bytes()).unwrap();
        // Nobody answers it, so that it is there when this wish is not answered at once.
        let wish = {
            let socket = socket.clone();
            thread::spawn(move || {
                loop {
                    match want(&socket, SECRET) {
                        Ok(None) => thread::sleep(Duration::from_millis(1)),
                        other => return other,
                    }
                }
            })
        };
        let (byte, connection) = receive(&here).unwrap();
        assert_eq!(byte, Some(b'w'));
        drop(here);
        hand_over(connection.unwrap().into(), Err("gone".into())).unwrap();
        assert_eq!(wish.join().unwrap().unwrap().unwrap().unwrap_err(), "gone");
        while want(&socket, SECRET).is_ok_and(|got| got.is_some()) {}
        assert!(want(&socket, SECRET).unwrap().is_none());
    }
}
