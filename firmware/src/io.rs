//! What is read from: disks, their partitions, files.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use crate::{Error, Result};

/// Something of a known length that is read at any place.
pub trait ReadAt {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Fills `into` with what is at `at`.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()>;

    /// Whether nothing is in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `len` bytes at `at` are within it.
    ///
    /// # Errors
    /// When they are not.
    fn check(&self, at: u64, len: usize) -> Result<()> {
        let (len, end) = (len as u64, self.len());
        match at.checked_add(len) {
            Some(last) if last <= end => Ok(()),
            _ => Err(Error::beyond(at, len, end)),
        }
    }

    /// The `len` bytes at `at`; the caller has seen to it that this is not too much.
    ///
    /// # Errors
    /// As for [`ReadAt::read_at`].
    fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        self.check(at, len)?;
        let mut bytes = vec![0; len];
        self.read_at(at, &mut bytes)?;
        Ok(bytes)
    }
}

/// What is read from, shared by those who read.
pub type Source = Rc<dyn ReadAt>;

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        let from = self.get(at as usize..).unwrap_or_default();
        into.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

/// A part of something.
pub struct Part {
    of: Source,
    start: u64,
    len: u64,
}

impl Part {
    /// The `len` bytes of `of` from `start` on.
    ///
    /// # Errors
    /// When they are not within it.
    pub fn new(of: &Source, start: u64, len: u64) -> Result<Part> {
        match start.checked_add(len) {
            Some(end) if end <= of.len() => Ok(Part {
                of: Rc::clone(of),
                start,
                len,
            }),
            _ => Err(Error::beyond(start, len, of.len())),
        }
    }
}

impl ReadAt for Part {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        self.of.read_at(self.start + at, into)
    }
}

/// Bytes that are read at once for a small read, and how many such pieces are kept.
const PIECE: u64 = 128 << 10;
const PIECES: usize = 16;
/// What is at least as long, and begins on a sector, goes straight to where it is wanted.
const LARGE: usize = 64 << 10;
const SECTOR: u64 = 512;

/// A disk of which what was read last is kept: file systems read a little here and a little there.
pub struct Cached {
    disk: Source,
    /// Offset and bytes, the one used last in front.
    pieces: RefCell<VecDeque<(u64, Vec<u8>)>>,
}

impl Cached {
    /// `disk`, with nothing read yet.
    pub fn new(disk: Source) -> Cached {
        Cached {
            disk,
            pieces: RefCell::default(),
        }
    }
}

impl ReadAt for Cached {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, mut at: u64, mut into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        if into.len() >= LARGE && at.is_multiple_of(SECTOR) {
            return self.disk.read_at(at, into);
        }
        let mut pieces = self.pieces.borrow_mut();
        while !into.is_empty() {
            let start = at - at % PIECE;
            match pieces.iter().position(|(offset, _)| *offset == start) {
                Some(0) => {}
                Some(i) => {
                    let piece = pieces.remove(i);
                    piece.into_iter().for_each(|piece| pieces.push_front(piece));
                }
                None => {
                    // The one that was not used for longest makes room, and gives its memory.
                    let mut bytes = match pieces.len() {
                        PIECES => pieces.pop_back().map(|(_, bytes)| bytes).unwrap_or_default(),
                        _ => Vec::new(),
                    };
                    bytes.resize(PIECE.min(self.disk.len() - start) as usize, 0);
                    self.disk.read_at(start, &mut bytes)?;
                    pieces.push_front((start, bytes));
                }
            }
            let piece = pieces
                .front()
                .and_then(|(_, bytes)| bytes.get((at - start) as usize..));
            let piece = piece.unwrap_or_default();
            let len = piece.len().min(into.len());
            let (now, rest) = into.split_at_mut(len);
            now.copy_from_slice(piece.get(..len).unwrap_or_default());
            at += len as u64;
            into = rest;
        }
        Ok(())
    }
}

/// Most bytes of a file of text: what configures a boot loader is shorter.
const MAX_TEXT: u64 = 1 << 20;

/// All of a file of text; what is no UTF-8 in it is replaced.
///
/// # Errors
/// When it is longer than 1 MiB, or cannot be read.
pub fn text(file: &dyn ReadAt) -> Result<String> {
    if file.len() > MAX_TEXT {
        return Err(Error::unsupported(format_args!(
            "a configuration of more than 1 MiB"
        )));
    }
    let bytes = file.bytes(0, file.len() as usize)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(Vec<u8>, RefCell<Vec<(u64, usize)>>);

    impl ReadAt for Counting {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
            self.1.borrow_mut().push((at, into.len()));
            self.0.read_at(at, into)
        }
    }

    fn disk(len: usize) -> (Rc<Counting>, Cached) {
        let bytes = (0..len).map(|i| (i / 7) as u8).collect();
        let disk = Rc::new(Counting(bytes, RefCell::default()));
        (disk.clone(), Cached::new(disk))
    }

    #[test]
    fn small_reads_share_a_piece_and_large_ones_go_straight() {
        let (disk, cached) = disk(300 << 10);
        for at in [0, 5, 1000, 100 << 10] {
            let bytes = cached.bytes(at, 100).unwrap();
            assert_eq!(bytes, disk.0[at as usize..at as usize + 100]);
        }
        assert_eq!(*disk.1.borrow(), [(0, 128 << 10)]);
        let large = cached.bytes(512, 200 << 10).unwrap();
        assert_eq!(large, disk.0[512..512 + (200 << 10)]);
        assert_eq!(disk.1.borrow().last(), Some(&(512, 200 << 10)));
    }

    #[test]
    fn a_read_over_pieces_and_at_the_end_is_whole() {
        let (disk, cached) = disk(300 << 10);
        let at = (128 << 10) - 10;
        assert_eq!(
            cached.bytes(at, 20).unwrap(),
            disk.0[at as usize..at as usize + 20]
        );
        let last = cached.bytes((300 << 10) - 3, 3).unwrap();
        assert_eq!(last, disk.0[(300 << 10) - 3..]);
        assert_eq!(
            cached.bytes((300 << 10) - 3, 4),
            Err(Error::beyond((300 << 10) - 3, 4, 300 << 10))
        );
    }

    #[test]
    fn what_was_not_used_for_longest_is_read_again() {
        let (disk, cached) = disk(20 * PIECE as usize);
        for piece in 0..=PIECES as u64 {
            cached.bytes(piece * PIECE, 1).unwrap();
        }
        let reads = disk.1.borrow().len();
        cached.bytes(PIECE, 1).unwrap();
        assert_eq!(disk.1.borrow().len(), reads);
        cached.bytes(0, 1).unwrap();
        assert_eq!(disk.1.borrow().len(), reads + 1);
    }

    #[test]
    fn a_part_ends_where_it_ends() {
        let whole: Source = Rc::new((0..100).collect::<Vec<u8>>());
        let part = Part::new(&whole, 10, 5).unwrap();
        assert_eq!(part.bytes(1, 4).unwrap(), [11, 12, 13, 14]);
        assert!(part.bytes(1, 5).is_err());
        assert!(part.bytes(u64::MAX, 5).is_err());
        assert!(Part::new(&whole, 96, 5).is_err() && Part::new(&whole, u64::MAX, 5).is_err());
    }
}
