//! The frames of a migration: a header of 16 bytes, then what it says.
//!
//! ```text
//!   0      2       4           8                16
//!   | kind | flags | checksum  | length          | payload ...      all little-endian
//! ```
//! The checksum (CRC-32) is over the rest of the header and the payload. Every kind has a largest length, and
//! memory is taken as bytes arrive, not as a length promises. A kind that is not known is skipped when its frame
//! is flagged [`OPTIONAL`], else it ends the migration.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::memory::dirty::{PAGE, Run};
use crate::{Error, Result};

/// Bytes of a header.
pub const HEADER: usize = 16;
/// Whoever does not know the kind may skip the frame.
pub const OPTIONAL: u16 = 1;
/// The pages are compressed, one zstd frame.
pub const ZSTD: u16 = 2;
/// There is nothing but zeroes in that part of the disk.
pub const ZEROES: u16 = 4;
/// Most pages of one frame.
pub const MOST_PAGES: u64 = 256;
/// Most runs of zero pages of one frame.
pub const MOST_RUNS: usize = 4096;
/// Largest frame that is skipped.
const MOST_SKIPPED: u64 = 1 << 20;
/// What is taken for a payload at a time.
const STEP: u64 = 1 << 20;

/// The kinds of frames with their numbers and the largest payload of each, in one list.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $most:expr;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The longest payload, in bytes.
            pub fn most(self) -> u64 {
                match self {
                    $(Kind::$name => $most,)*
                }
            }

            fn from_number(number: u16) -> Option<Kind> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Who speaks, and which protocol: the first frame on every stream, both ways.
    Hello = 1, 4 << 10;
    /// What the machine is made of.
    Config = 2, 1 << 20;
    /// The machine can be taken.
    Accept = 3, 4 << 10;
    /// An address, then pages from there on.
    Pages = 4, 8 + MOST_PAGES * PAGE;
    /// Runs of pages that are zero.
    Zero = 5, 16 * MOST_RUNS as u64;
    /// The end of a round on this stream.
    Round = 6, 8;
    /// All of the round has arrived.
    RoundDone = 7, 8;
    /// All of the machine but its memory.
    State = 8, 64 << 20;
    /// The machine can go on here.
    Ready = 9, 4 << 10;
    /// It shall. The sender never runs it again.
    Resume = 10, 4 << 10;
    /// It runs.
    Running = 11, 4 << 10;
    /// The sender of this gives up, and says why.
    Abort = 12, 4 << 10;
    /// Pages that the target needs now (post-copy).
    Fault = 13, 8;
    /// Part of a disk that moves too: which, where, what.
    Disk = 14, 32 + (1 << 20);
    /// Runs of pages that the target does not have when it goes on (post-copy); an empty one ends them.
    Missing = 15, 16 * MOST_RUNS as u64;
}

/// A frame that has arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// [`ZSTD`].
    pub flags: u16,
}

/// A frame that is not what it must be.
pub fn wrong(reason: impl Into<String>) -> Error {
    Error::Protocol(reason.into())
}

fn lost(source: io::Error) -> Error {
    Error::Io {
        what: "go on with the migration: the connection is lost",
        source,
    }
}

fn checksum(kind: u16, flags: u16, payload: &[&[u8]]) -> u32 {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&kind.to_le_bytes());
    hasher.update(&flags.to_le_bytes());
    hasher.update(&(len as u64).to_le_bytes());
    for part in payload {
        hasher.update(part);
    }
    hasher.finalize()
}

/// The header of a frame with this payload, which may be in parts.
pub fn header(kind: Kind, flags: u16, payload: &[&[u8]]) -> [u8; HEADER] {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let number = kind as u16;
    let sum = checksum(number, flags, payload);
    let bytes = u128::from(number) | u128::from(flags) << 16 | u128::from(sum) << 32 | (len as u128) << 64;
    bytes.to_le_bytes()
}

/// Writes a frame; it may still be in buffers.
///
/// # Errors
/// When the connection is lost.
pub fn write(to: &mut (impl Write + ?Sized), kind: Kind, flags: u16, payload: &[&[u8]]) -> Result<()> {
    to.write_all(&header(kind, flags, payload)).map_err(lost)?;
    payload
        .iter()
        .try_for_each(|part| to.write_all(part))
        .map_err(lost)
}

/// Reads the next frame, its payload into `payload`; `None` where the stream ends between two frames.
///
/// # Errors
/// When the connection is lost, or what comes is no frame.
pub fn read(from: &mut (impl Read + ?Sized), payload: &mut Vec<u8>) -> Result<Option<Frame>> {
    loop {
        let mut header = [0; HEADER];
        let first = from.read(&mut header).map_err(lost)?;
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(header.get_mut(first..).unwrap_or_default())
            .map_err(lost)?;
        let bits = u128::from_le_bytes(header);
        let (number, flags, sum, len) = (
            bits as u16,
            (bits >> 16) as u16,
            (bits >> 32) as u32,
            (bits >> 64) as u64,
        );
        let kind = Kind::from_number(number);
        let most = match kind {
            Some(kind) => kind.most(),
            None if flags & OPTIONAL != 0 => MOST_SKIPPED,
            None => return Err(wrong(format!("a frame of the unknown kind {number}"))),
        };
        if len > most {
            return Err(wrong(format!(
                "a frame of kind {number} with {len} bytes, more than {most}"
            )));
        }
        payload.clear();
        while (payload.len() as u64) < len {
            let step = (len - payload.len() as u64).min(STEP);
            let before = payload.len();
            payload.resize(before + step as usize, 0);
            from.read_exact(payload.get_mut(before..).unwrap_or_default())
                .map_err(lost)?;
        }
        if checksum(number, flags, &[payload.as_slice()]) != sum {
            return Err(wrong(format!(
                "the checksum of a frame of kind {number} is wrong"
            )));
        }
        if let Some(kind) = kind {
            return Ok(Some(Frame { kind, flags }));
        }
    }
}

/// `value` as a payload: a CBOR map, so that fields may be added.
///
/// # Errors
/// When it has what CBOR cannot say.
pub fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes)
        .map_err(|error| wrong(format!("a message cannot be written: {error}")))?;
    Ok(bytes)
}

/// The value of a payload; fields that are not known are skipped.
///
/// # Errors
/// When it is none.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    ciborium::from_reader(payload).map_err(|error| wrong(format!("a message cannot be read: {error}")))
}

/// The runs of zero pages of a payload.
///
/// # Errors
/// When it is none.
pub fn zero_runs(payload: &[u8]) -> Result<impl Iterator<Item = Run>> {
    let (runs, []) = payload.as_chunks::<16>() else {
        return Err(wrong("a run of zero pages is cut off"));
    };
    runs.iter().try_for_each(|run| {
        let run = zero_run(run);
        let end = run
            .pages
            .checked_mul(PAGE)
            .and_then(|len| run.address.checked_add(len));
        match run.address.is_multiple_of(PAGE) && end.is_some() {
            true => Ok(()),
            false => Err(wrong(format!("zero pages at {:#x}", run.address))),
        }
    })?;
    Ok(runs.iter().map(zero_run))
}

fn zero_run(bytes: &[u8; 16]) -> Run {
    let bits = u128::from_le_bytes(*bytes);
    Run {
        address: bits as u64,
        pages: (bits >> 64) as u64,
    }
}

/// Runs of zero pages as a payload.
pub fn zero_payload(runs: &[Run]) -> Vec<u8> {
    let bits = |run: &Run| u128::from(run.address) | u128::from(run.pages) << 64;
    runs.iter().flat_map(|run| bits(run).to_le_bytes()).collect()
}

/// The address and the whole pages of a payload; `plain` is where compressed ones are unpacked.
///
/// # Errors
/// When it is none.
pub fn pages<'a>(flags: u16, payload: &'a [u8], plain: &'a mut Vec<u8>) -> Result<(u64, &'a [u8])> {
    let Some((address, data)) = payload.split_first_chunk::<8>() else {
        return Err(wrong("pages without an address"));
    };
    let address = u64::from_le_bytes(*address);
    let data = match flags & ZSTD {
        0 => data,
        _ => {
            plain.resize((MOST_PAGES * PAGE) as usize, 0);
            let len = zstd::bulk::decompress_to_buffer(data, plain.as_mut_slice())
                .map_err(|error| wrong(format!("compressed pages: {error}")))?;
            plain.get(..len).unwrap_or_default()
        }
    };
    let len = data.len() as u64;
    let whole = address.is_multiple_of(PAGE) && len > 0 && len.is_multiple_of(PAGE);
    if !whole || address.checked_add(len).is_none() {
        return Err(wrong(format!("{len} bytes at {address:#x} are not whole pages")));
    }
    Ok((address, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, kind, 0, &[payload]).unwrap();
        bytes
    }

    fn error(bytes: &[u8]) -> String {
        read(&mut &bytes[..], &mut Vec::new()).unwrap_err().to_string()
    }

    #[test]
    fn a_frame_arrives_as_it_was_sent_whatever_its_kind() {
        for &kind in Kind::ALL {
            let bytes = frame(kind, b"12345678");
            let mut payload = Vec::new();
            let mut from = &bytes[..];
            let arrived = read(&mut from, &mut payload).unwrap().unwrap();
            assert_eq!((arrived.kind, &payload[..]), (kind, &b"12345678"[..]));
            assert_eq!(read(&mut from, &mut payload).unwrap(), None);
        }
    }

    #[test]
    fn one_wrong_bit_is_noticed() {
        let good = frame(Kind::Ready, b"payload");
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut &bytes[..], &mut Vec::new()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_it_is_believed() {
        for &kind in Kind::ALL {
            let mut bytes = frame(kind, b"");
            bytes[8..].copy_from_slice(&(kind.most() + 1).to_le_bytes());
            assert!(error(&bytes).contains("more than"), "{kind:?}");
        }
        // Within the limit, and nothing follows: what is taken is what came.
        let mut bytes = frame(Kind::State, b"");
        bytes[8..].copy_from_slice(&Kind::State.most().to_le_bytes());
        let mut payload = Vec::new();
        assert!(read(&mut &bytes[..], &mut payload).is_err());
        assert!(payload.capacity() <= 2 << 20);
    }

    #[test]
    fn an_unknown_frame_is_skipped_when_it_says_that_it_may_be() {
        let unknown = |flags: u16| {
            let payload: &[u8] = b"from the future";
            let mut bytes = Vec::new();
            bytes.extend(9999u16.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(checksum(9999, flags, &[payload]).to_le_bytes());
            bytes.extend((payload.len() as u64).to_le_bytes());
            bytes.extend(payload);
            bytes.extend(frame(Kind::Ready, b""));
            bytes
        };
        let read = |bytes: &[u8]| read(&mut &bytes[..], &mut Vec::new());
        assert_eq!(read(&unknown(OPTIONAL)).unwrap().unwrap().kind, Kind::Ready);
        assert!(error(&unknown(0)).contains("unknown kind 9999"));
    }

    #[test]
    fn pages_are_whole_and_compressed_ones_are_bounded() {
        let mut plain = Vec::new();
        let of = |address: u64, data: &[u8]| [&address.to_le_bytes(), data].concat();
        let page = vec![7; PAGE as usize];
        let payload = of(0x3000, &page);
        assert_eq!(pages(0, &payload, &mut plain).unwrap(), (0x3000, &page[..]));
        let packed = of(0x3000, &zstd::bulk::compress(&page, 1).unwrap());
        assert_eq!(pages(ZSTD, &packed, &mut plain).unwrap(), (0x3000, &page[..]));
        let bomb = vec![0; (MOST_PAGES as usize + 1) * PAGE as usize];
        let bomb = of(0, &zstd::bulk::compress(&bomb, 1).unwrap());
        for (flags, payload) in [
            (0, of(0x3001, &page)),
            (0, of(!0xfff, &page)),
            (0, of(0x3000, &page[1..])),
            (0, of(0x3000, &[])),
            (0, vec![0; 7]),
            (ZSTD, bomb),
            (ZSTD, of(0, b"no zstd frame")),
        ] {
            assert!(pages(flags, &payload, &mut plain).is_err());
        }
    }

    #[test]
    fn zero_runs_are_told_exactly() {
        let runs = [
            Run { address: 0, pages: 3 },
            Run {
                address: 1 << 32,
                pages: 1 << 20,
            },
        ];
        let payload = zero_payload(&runs);
        assert_eq!(zero_runs(&payload).unwrap().collect::<Vec<_>>(), runs);
        assert!(zero_runs(&payload[1..]).is_err());
        for (address, pages) in [(1, 1), (0x1000, u64::MAX), (!0xfff, 2)] {
            assert!(zero_runs(&zero_payload(&[Run { address, pages }])).is_err());
        }
    }
}
