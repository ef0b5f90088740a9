//! Open files over a unix socket: a document, and the descriptors that it speaks of (SCM_RIGHTS, unix(7)).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Most descriptors of a message; the kernel takes 253.
const MOST: usize = 250;
/// The longest document; a manifest is shorter.
const LONGEST: u64 = 16 << 20;

/// Sends `document` with `descriptors`.
///
/// # Errors
/// When there are too many of them, or the socket fails.
pub fn send(stream: &UnixStream, document: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    if descriptors.len() > MOST {
        let reason = format!(
            "{} open files, at most {MOST} can be handed over",
            descriptors.len()
        );
        return Err(io::Error::new(ErrorKind::InvalidInput, reason));
    }
    let borrowed: Vec<BorrowedFd> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        rights.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    // They travel with its first byte.
    let header = (document.len() as u64).to_le_bytes();
    let sent = sendmsg(stream, &[IoSlice::new(&header)], &mut rights, SendFlags::NOSIGNAL)?;
    let mut stream = stream;
    stream.write_all(header.get(sent..).unwrap_or_default())?;
    stream.write_all(document)
}

/// What [`send`] sent.
///
/// # Errors
/// When the socket fails or ends, or it is something else.
pub fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut header = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut header)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    let mut stream = stream;
    stream.read_exact(header.get_mut(got.bytes..).unwrap_or_default())?;
    let len = u64::from_le_bytes(header);
    if got.bytes == 0 || len > LONGEST {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "it is no handover of a machine",
        ));
    }
    let mut document = vec![0; len as usize];
    stream.read_exact(&mut document)?;
    Ok((document, descriptors))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Seek;

    use super::*;

    #[test]
    fn open_files_arrive_in_their_order_with_the_document() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let document = vec![7; 1 << 20];
        let files: Vec<File> = (0..3)
            .map(|number| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[number]).unwrap();
                file.rewind().unwrap();
                file
            })
            .collect();
        let sent = document.clone();
        let sender = std::thread::spawn(move || {
            let descriptors: Vec<OwnedFd> = files.into_iter().map(OwnedFd::from).collect();
            send(&ours, &sent, &descriptors).unwrap();
        });
        let (arrived, descriptors) = receive(&theirs).unwrap();
        sender.join().unwrap();
        assert!(arrived == document);
        let first = |file: OwnedFd| {
            let mut byte = [0];
            File::from(file).read_exact(&mut byte).unwrap();
            byte[0]
        };
        assert_eq!(descriptors.into_iter().map(first).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn what_is_no_handover_is_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&u64::MAX.to_le_bytes()).unwrap();
        assert!(receive(&theirs).is_err());
        drop(ours);
        assert!(receive(&theirs).is_err());
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let many: Vec<OwnedFd> = (0..=MOST).map(|_| tempfile::tempfile().unwrap().into()).collect();
        assert!(send(&ours, b"", &many).is_err());
    }
}
