//! An archive whose files become those of a volume: tar, packed or not.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use crate::error::{io as doing, refused};
use crate::unpack::{BETWEEN, Budget, of_archive};
use crate::{Error, Result};

/// What a file system has of its own.
const ITS_OWN: &str = "lost+found";

/// Puts the files of an archive into `directory`, and takes away what was there; `room` bytes at most.
///
/// # Errors
/// The stream fails, is no archive, has no room, or has in it what is no file, directory or link of this directory.
pub fn extract(stream: &mut dyn Read, directory: &Path, room: u64) -> Result<()> {
    // What an attempt before this one left behind is not part of it.
    clear(directory).map_err(doing(format!("clear {}", directory.display())))?;
    of_archive(stream, &mut |archive| files(archive, directory, room))?;
    let opened = File::open(directory).map_err(doing("write the volume"))?;
    rustix::fs::syncfs(opened).map_err(|error| doing("write the volume")(error.into()))
}

fn clear(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == ITS_OWN {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn files(archive: &mut dyn Read, directory: &Path, room: u64) -> Result<()> {
    let left = Rc::new(Cell::new(u64::MAX));
    let mut archive = tar::Archive::new(Budget {
        inner: archive,
        left: left.clone(),
    });
    let (mut size, mut entries) = (0_u64, archive.entries().map_err(doing("read the archive"))?);
    loop {
        left.set(BETWEEN);
        let entry = entries.next();
        left.set(u64::MAX);
        let Some(entry) = entry else { return Ok(()) };
        let mut entry = entry.map_err(doing("read the archive"))?;
        let name = entry.path().map_err(doing("read the archive"))?.into_owned();
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let known = kind.is_file() || kind.is_gnu_sparse() || kind.is_dir() || kind.is_symlink();
        if !known && !kind.is_hard_link() {
            return refused(format!(
                "{} in it is neither file nor directory nor link",
                name.display()
            ));
        }
        size = size.saturating_add(entry.size());
        if size > room {
            return Err(Error::TooLarge { size, room });
        }
        let unpacked = entry.unpack_in(directory);
        if !unpacked.map_err(doing(format!("unpack {}", name.display())))? {
            return refused(format!("{} in it is no path of the volume", name.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn archive(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        add(&mut builder);
        builder.into_inner().unwrap()
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, to: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, to).unwrap();
    }

    #[test]
    fn its_files_are_there_and_what_was_there_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("old/deep")).unwrap();
        fs::create_dir(dir.path().join(ITS_OWN)).unwrap();
        let tar = archive(|builder| {
            file(builder, "a", b"one");
            file(builder, "b/c", b"two");
            link(builder, tar::EntryType::Symlink, "d", "b/c");
        });
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&tar).unwrap();
        extract(&mut packed.finish().unwrap().as_slice(), dir.path(), 100).unwrap();
        let read = |name| fs::read(dir.path().join(name)).unwrap();
        assert_eq!((read("a"), read("d")), (b"one".to_vec(), b"two".to_vec()));
        assert!(!dir.path().join("old").exists() && dir.path().join(ITS_OWN).exists());
    }

    #[test]
    fn nothing_is_written_outside_and_no_more_than_there_is_room() {
        let outside = tempfile::tempdir().unwrap();
        let to = outside.path().to_str().unwrap();
        for (archive, why) in [
            (
                archive(|builder| file(builder, "../a", b"x")),
                "no path of the volume",
            ),
            (
                archive(|builder| {
                    link(builder, tar::EntryType::Symlink, "out", to);
                    file(builder, "out/a", b"x");
                }),
                "unpack out/a",
            ),
            (
                archive(|builder| link(builder, tar::EntryType::Link, "a", "/etc/hostname")),
                "unpack a",
            ),
            (
                archive(|builder| link(builder, tar::EntryType::Fifo, "a", "b")),
                "neither file nor directory nor link",
            ),
            (
                archive(|builder| file(builder, "a", &[1; 101])),
                "A larger PVC is required",
            ),
            (b"no archive".to_vec(), "it is no archive"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let inside = dir.path().join("volume");
            fs::create_dir(&inside).unwrap();
            let error = extract(&mut archive.as_slice(), &inside, 100)
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        }
    }
}
