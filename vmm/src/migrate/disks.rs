//! Disks that the target does not share: their content goes along, first all of it, then what was changed.
//!
//! ```text
//!   Disk:  | number of the disk (4) | 0 (4) | offset (8) | content, or with the flag ZEROES their length (8) |
//! ```

use std::sync::Arc;

use nacelle_devices::disk::{Changes, Copier, Disk, PIECE};
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::pages::Pace;
use super::wire::{self, Kind, ZEROES};
use crate::memory::dirty::PAGE;
use crate::{Error, Result, Vm};

/// Zeroes are found in steps of this many bytes.
const STEP: usize = 4096;
/// Bytes before the content.
const HEADER: usize = 16;

/// What the target is told of a disk whose content comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskDescription {
    /// Its device.
    pub id: String,
    /// Its length in bytes.
    pub len: u64,
}

/// A disk that goes along.
pub(crate) struct Local {
    pub id: String,
    pub disk: Arc<dyn Disk>,
    pub changes: Changes,
}

/// The source's side of one.
pub(super) struct Sending {
    number: u32,
    len: u64,
    copier: Copier,
    changes: Changes,
    /// So far all of it has been sent once.
    sent: u64,
    piece: Vec<u8>,
}

fn failed(id: &str) -> impl FnOnce(nacelle_devices::Error) -> Error {
    let id = id.to_owned();
    move |source| Error::Device { id, source }
}

impl Sending {
    /// Those of `disks`; what is changed on them is noted from now on.
    pub fn begin(disks: &[Local]) -> Result<Vec<Sending>> {
        let begin = |(number, local): (u32, &Local)| {
            let len = local.disk.len();
            local.changes.begin(len);
            Ok(Sending {
                number,
                len,
                copier: Copier::new(&*local.disk).map_err(failed(&local.id))?,
                changes: local.changes.clone(),
                sent: 0,
                piece: Vec::new(),
            })
        };
        (0..).zip(disks).map(begin).collect()
    }

    /// Bytes of it that were not sent yet.
    pub fn left(&self) -> u64 {
        self.len - self.sent
    }

    /// Bytes of it that are to be sent, some of them again.
    pub fn due(&self) -> u64 {
        self.left() + self.changes.bytes()
    }

    /// Sends all of it that is left, until time is over; gives the bytes that are not zero.
    pub fn send_all(
        &mut self,
        connection: &mut Connection,
        pace: &Pace,
        tell: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        let mut sent = 0;
        while self.left() > 0 && !pace.is_over() {
            let piece = PIECE.min(pace.pages() * PAGE).min(self.left());
            sent += self.send(connection, pace, self.sent, piece)?;
            self.sent += piece;
            tell(self.sent);
        }
        Ok(sent)
    }

    /// Sends what was changed since it was last sent, until time is over; gives the bytes that are not zero.
    pub fn send_changes(&mut self, connection: &mut Connection, pace: &Pace) -> Result<u64> {
        let mut sent = 0;
        for (offset, len) in self.changes.take(self.len) {
            match pace.is_over() {
                true => self.changes.mark(offset, len),
                false => sent += self.send(connection, pace, offset, len)?,
            }
        }
        Ok(sent)
    }

    fn send(&mut self, connection: &mut Connection, pace: &Pace, offset: u64, len: u64) -> Result<u64> {
        self.piece.resize(len as usize, 0);
        let read = self.copier.read(offset, &mut self.piece);
        read.map_err(failed("disk"))?;
        let is_zero = |step: &[u8]| step.iter().all(|byte| *byte == 0);
        let most = (pace.pages() * PAGE) as usize;
        let (mut at, mut sent) = (0, 0);
        let mut steps = self.piece.chunks(STEP).peekable();
        while let Some(first) = steps.next() {
            let zero = is_zero(first);
            let mut run = first.len();
            while let Some(next) = steps.next_if(|next| is_zero(next) == zero && (zero || run < most)) {
                run += next.len();
            }
            let mut header = [0; HEADER];
            let place = u128::from(self.number) | u128::from(offset + at as u64) << 64;
            header.copy_from_slice(&place.to_le_bytes());
            if zero {
                let len = (run as u64).to_le_bytes();
                connection.send_parts(Kind::Disk, ZEROES, &[&header, &len])?;
            } else {
                pace.wait(run as u64);
                let data = self.piece.get(at..at + run).unwrap_or_default();
                connection.send_parts(Kind::Disk, 0, &[&header, data])?;
                sent += run as u64;
            }
            at += run;
        }
        Ok(sent)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.changes.end();
    }
}

/// The target's side of all of them.
#[derive(Default)]
pub(super) struct Receiving(Vec<(String, Copier)>);

impl Receiving {
    /// The disks of `vm` that `described` come to. They are locked: whoever names one that both sides share is told.
    pub fn begin(vm: &Vm, described: &[DiskDescription]) -> Result<Receiving> {
        let mut receiving = Receiving::default();
        for DiskDescription { id, len } in described {
            let disk = vm
                .disk(id)
                .ok_or_else(|| Error::NotFound(format!("disk {id} here, which is to be copied")))?;
            if disk.len() != *len || disk.read_only() {
                return Err(Error::Cannot(format!(
                    "disk {id} has {len} bytes there and is to be copied; the one prepared here has {}{}",
                    disk.len(),
                    if disk.read_only() { " and is read-only" } else { "" }
                )));
            }
            disk.lock().map_err(failed(id))?;
            receiving.add(id, &*disk)?;
        }
        Ok(receiving)
    }

    /// The next one.
    pub fn add(&mut self, id: &str, disk: &dyn Disk) -> Result<()> {
        let copier = Copier::new(disk).map_err(failed(id))?;
        self.0.push((id.to_owned(), copier));
        Ok(())
    }

    /// Does what a frame says.
    pub fn take(&mut self, flags: u16, payload: &[u8]) -> Result<()> {
        let Some((header, rest)) = payload.split_first_chunk::<HEADER>() else {
            return Err(wire::wrong("a part of a disk is cut off"));
        };
        let place = u128::from_le_bytes(*header);
        let (number, offset) = (place as u32, (place >> 64) as u64);
        let Some((id, copier)) = self.0.get_mut(number as usize) else {
            return Err(wire::wrong(format!(
                "a part of disk {number}, which does not come"
            )));
        };
        let written = match (flags & ZEROES, rest.first_chunk()) {
            (0, _) => copier.write(offset, rest.len() as u64, Some(rest)),
            (_, Some(len)) => copier.write(offset, u64::from_le_bytes(*len), None),
            (_, None) => return Err(wire::wrong("a part of a disk is cut off")),
        };
        written.map_err(failed(id))
    }

    /// Brings all of it to stable storage.
    pub fn flush(&mut self) -> Result<()> {
        let mut disks = self.0.iter_mut();
        disks.try_for_each(|(id, copier)| copier.flush().map_err(failed(id)))
    }
}
