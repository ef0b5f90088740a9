//! What is around an image, by its first bytes: gz, xz, zst, tar. Streams, in constant memory.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use crate::Result;
use crate::error::{io as doing, refused};
use crate::image::{Format, HEAD};

/// Wraps within wraps: `disk.tar.gz` has two.
const DEPTH: u8 = 3;
/// KiB of memory that an xz stream may ask for; `xz -9` needs 65 MiB.
const XZ_MEMORY: u32 = 128 << 10;
/// Bytes between two files of an archive: what the library keeps of them, long names among it, is this much at most.
pub(crate) const BETWEEN: u64 = 1 << 20;
/// Where tar says that it is tar.
const TAR: usize = 257;

/// A stream whose beginning was looked at.
pub struct Peeked<'a> {
    head: Vec<u8>,
    at: usize,
    rest: &'a mut dyn Read,
}

impl<'a> Peeked<'a> {
    /// Looks at the first bytes.
    ///
    /// # Errors
    /// The stream fails.
    pub fn new(rest: &'a mut dyn Read) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEAD);
        rest.take(HEAD as u64).read_to_end(&mut head)?;
        Ok(Peeked { head, at: 0, rest })
    }

    /// They.
    pub fn head(&self) -> &[u8] {
        &self.head
    }
}

impl Read for Peeked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut left = self.head.get(self.at..).unwrap_or_default();
        if left.is_empty() {
            return self.rest.read(buffer);
        }
        let count = left.read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// Takes off what is around the image, and gives it to `then`, once.
///
/// # Errors
/// The stream fails, is damaged, or has no image in it; or `then` fails.
pub fn unpack(stream: &mut dyn Read, then: &mut dyn FnMut(Peeked<'_>) -> Result<()>) -> Result<()> {
    layer(stream, DEPTH, then)
}

fn layer(stream: &mut dyn Read, depth: u8, then: &mut dyn FnMut(Peeked<'_>) -> Result<()>) -> Result<()> {
    let peeked = Peeked::new(stream).map_err(doing("read the source"))?;
    let head = peeked.head();
    let packed = kind(head);
    if packed.is_some() && depth == 0 {
        return refused(format!("it is packed more than {DEPTH} times"));
    }
    match packed {
        None => then(peeked),
        Some(Kind::Packed(by)) => unpacked(by, peeked, &mut |inner| layer(inner, depth - 1, then)),
        Some(Kind::Tar) => {
            let mut inside = |inner: &mut dyn Read| layer(inner, depth - 1, then);
            if files(peeked, &mut |_, head, len| is_disk(head, len), &mut inside)? {
                return Ok(());
            }
            refused("there is no disk image in the archive")
        }
    }
}

/// Gives what a compressed stream has in it to `then`.
fn unpacked<T>(
    by: Packing,
    packed: Peeked<'_>,
    then: &mut dyn FnMut(&mut dyn Read) -> Result<T>,
) -> Result<T> {
    let packed = BufReader::with_capacity(64 << 10, packed);
    match by {
        Packing::Gz => then(&mut flate2::bufread::MultiGzDecoder::new(packed)),
        Packing::Xz => then(&mut lzma_rust2::XzReader::new_mem_limit(packed, true, XZ_MEMORY)),
        Packing::Zst => then(&mut Frames(Frame::Between(Some(packed)))),
    }
}

/// Gives an archive, packed or not, to `then`.
///
/// # Errors
/// The stream fails, or is no archive; or `then` fails.
pub fn of_archive(stream: &mut dyn Read, then: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
    let mut peeked = Peeked::new(stream).map_err(doing("read the source"))?;
    match kind(peeked.head()) {
        Some(Kind::Tar) => then(&mut peeked),
        Some(Kind::Packed(by)) => unpacked(by, peeked, &mut |inner| {
            let mut inner = Peeked::new(inner).map_err(doing("read the source"))?;
            match kind(inner.head()) {
                Some(Kind::Tar) => then(&mut inner),
                _ => refused("what is packed in it is no archive (tar)"),
            }
        }),
        None => refused("it is no archive (tar)"),
    }
}

/// Gives the first file of an archive that is `wanted`, by its name, its beginning and its length, to `then`. Whether there
/// was one.
fn files(
    archive: Peeked<'_>,
    wanted: &mut dyn FnMut(&Path, &[u8], u64) -> bool,
    then: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<bool> {
    let left = Rc::new(Cell::new(u64::MAX));
    let mut archive = tar::Archive::new(Budget {
        inner: archive,
        left: left.clone(),
    });
    let mut entries = archive.entries().map_err(doing("read the archive"))?;
    loop {
        left.set(BETWEEN);
        let entry = entries.next();
        left.set(u64::MAX);
        let Some(entry) = entry else { return Ok(false) };
        let mut entry = entry.map_err(doing("read the archive"))?;
        let (len, kind) = (entry.size(), entry.header().entry_type());
        if len > 0 && (kind.is_file() || kind.is_gnu_sparse()) {
            let name = entry.path().map_err(doing("read the archive"))?.into_owned();
            let mut inner = Peeked::new(&mut entry).map_err(doing("read the archive"))?;
            if wanted(&name, inner.head(), len) {
                return then(&mut inner).map(|()| true);
            }
        }
        io::copy(&mut entry, &mut io::sink()).map_err(doing("read the archive"))?;
    }
}

/// Gives the disk in a layer of a container image, a file in `/disk`, to `then`. Whether there was one.
///
/// # Errors
/// The stream fails, or is no layer; or `then` fails.
pub fn of_layer(stream: &mut dyn Read, then: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<bool> {
    let peeked = Peeked::new(stream).map_err(doing("read the layer"))?;
    let in_disk = |name: &Path| name.strip_prefix(".").unwrap_or(name).starts_with("disk");
    let mut wanted = |name: &Path, _: &[u8], _| in_disk(name);
    match kind(peeked.head()) {
        Some(Kind::Tar) => files(peeked, &mut wanted, then),
        Some(Kind::Packed(by @ (Packing::Gz | Packing::Zst))) => unpacked(by, peeked, &mut |inner| {
            let inner = Peeked::new(inner).map_err(doing("read the layer"))?;
            files(inner, &mut wanted, then)
        }),
        Some(Kind::Packed(Packing::Xz)) | None => refused("a layer of the image is no archive"),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Packed(Packing),
    Tar,
}

#[derive(Clone, Copy)]
enum Packing {
    Gz,
    Xz,
    Zst,
}

fn kind(head: &[u8]) -> Option<Kind> {
    match () {
        () if head.starts_with(&[0x1f, 0x8b]) => Some(Kind::Packed(Packing::Gz)),
        () if head.starts_with(b"\xfd7zXZ\0") => Some(Kind::Packed(Packing::Xz)),
        () if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => Some(Kind::Packed(Packing::Zst)),
        () if head.get(TAR..).is_some_and(|rest| rest.starts_with(b"ustar")) => Some(Kind::Tar),
        () => None,
    }
}

/// A stream of which so many bytes may be read.
pub(crate) struct Budget<R: Read> {
    /// The stream.
    pub inner: R,
    /// So many.
    pub left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::other("there is too much between two of its files")),
        }
        Ok(count)
    }
}

/// Whether a file of an archive is its disk: of a format, packed, or whole sectors that are no text. Descriptions (OVF),
/// lists of checksums and keys are none.
fn is_disk(head: &[u8], len: u64) -> bool {
    kind(head).is_some()
        || Format::of(head).is_ok_and(|format| format != Format::Raw)
        || (len.is_multiple_of(512)
            && !head
                .iter()
                .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()))
}

/// Frames of zstd, one after the other (RFC 8878, section 3).
struct Frames<R: Read>(Frame<R>);

enum Frame<R: Read> {
    Between(Option<BufReader<R>>),
    In(Box<ruzstd::decoding::StreamingDecoder<BufReader<R>, ruzstd::decoding::FrameDecoder>>),
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::io::BufRead;
        loop {
            match &mut self.0 {
                Frame::Between(source) => {
                    let Some(mut source) = source.take() else {
                        return Ok(0);
                    };
                    if source.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder =
                        ruzstd::decoding::StreamingDecoder::new(source).map_err(io::Error::other)?;
                    self.0 = Frame::In(Box::new(decoder));
                }
                Frame::In(decoder) => {
                    let count = decoder.read(buffer)?;
                    if count > 0 || buffer.is_empty() {
                        return Ok(count);
                    }
                    let Frame::In(decoder) = std::mem::replace(&mut self.0, Frame::Between(None)) else {
                        return Ok(0);
                    };
                    self.0 = Frame::Between(Some(decoder.into_inner()));
                }
            }
        }
    }
}
