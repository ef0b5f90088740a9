//! Single files out of a container image, unpacked once into a cache.
//!
//! The image is hostile until its digests have been checked and stays untrusted after: no path of a tar archive
//! is ever used on the host, links are not followed, and what is decompressed is bounded.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use oci_spec::image::Descriptor;
use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use super::layout::{Image, Layout, digest, hex};
use crate::{Error, Result};

/// Where the disk of a containerDisk is.
const DISK_DIRECTORY: &str = "disk";
/// The most that is decompressed of one layer: more than any disk image, and what a bomb costs in time, not space.
const MAX_LAYER: u64 = 1 << 40;
/// What starts the name of a tar entry that deletes (OCI image specification, layer).
const WHITEOUT: &str = ".wh.";
/// The entry that deletes everything in its directory.
const OPAQUE: &str = ".wh..wh..opq";
/// Blocks of zeroes of this size stay holes.
const BLOCK: usize = 64 << 10;

/// Which file of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// The one at this path.
    Path(&'a str),
    /// The only one in `/disk`.
    Disk,
}

/// The wanted file of an image, in the cache.
///
/// # Errors
/// When the image is damaged, or has no such file, or the cache cannot be written.
pub(super) fn unpack(layout: &Layout, image: &Image, wanted: Wanted<'_>, cache: &Path) -> Result<PathBuf> {
    let refuse = |reason: String| Error::Image {
        image: image.name.clone(),
        reason,
    };
    let wanted_parts = match wanted {
        Wanted::Path(path) => parts(Path::new(path)).filter(|parts| !parts.is_empty()),
        Wanted::Disk => Some(vec![DISK_DIRECTORY.to_owned()]),
    };
    let wanted_parts = wanted_parts.ok_or_else(|| refuse("the path asked of it leads out of it".into()))?;
    let key = hex(&Sha256::digest(wanted_parts.join("/")));
    let target = cache
        .join("unpacked")
        .join(&image.digest)
        .join(key.get(..16).unwrap_or(&key));
    if target.exists() {
        return Ok(target);
    }
    let directory = target.parent().unwrap_or(cache);
    fs::create_dir_all(directory).map_err(Error::file("make the directory", directory))?;
    log::info!("unpacking /{} of {}", wanted_parts.join("/"), image.name);

    let mut search = Search {
        wanted,
        parts: wanted_parts,
        directory: directory.to_owned(),
        found: Vec::new(),
    };
    for descriptor in &image.layers {
        let blob = layout.blob(&digest(&image.name, descriptor)?);
        let layer = File::open(&blob).map_err(Error::file("open the image's layer", &blob))?;
        search
            .layer(layer, descriptor)
            .map_err(|error| refuse(format!("its layer {} is no good: {error}", blob.display())))?;
    }
    let mut found = search.found;
    let file = match (found.pop(), wanted) {
        (Some(file), _) if found.is_empty() => file,
        (None, Wanted::Disk) => {
            return Err(refuse("there is no file in /disk: it is no containerDisk".into()));
        }
        (None, Wanted::Path(path)) => return Err(refuse(format!("there is no {path} in it"))),
        (Some(_), _) => {
            return Err(refuse(
                "there are several files in /disk; name one by containerDisk.path".into(),
            ));
        }
    };
    fs::rename(&file.aside.0, &target).map_err(Error::file("keep", &target))?;
    Ok(target)
}

/// A file that goes when it is dropped, unless it was moved away.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A wanted file as the layers so far have it.
struct Found {
    parts: Vec<String>,
    aside: Aside,
}

struct Search<'a> {
    wanted: Wanted<'a>,
    parts: Vec<String>,
    /// Where files are written.
    directory: PathBuf,
    found: Vec<Found>,
}

impl Search<'_> {
    /// Takes up one layer over those before it. Nothing of it counts until its digest has been checked.
    fn layer(&mut self, blob: File, descriptor: &Descriptor) -> io::Result<()> {
        let mut blob = Hashing {
            inner: BufReader::new(blob).take(descriptor.size()),
            hash: Sha256::new(),
        };
        let media = descriptor.media_type().to_string();
        if media.ends_with("gzip") {
            self.archive(MultiGzDecoder::new(&mut blob))?;
        } else if media.ends_with("zstd") {
            let decoder = StreamingDecoder::new(&mut blob).map_err(io::Error::other)?;
            self.archive(decoder)?;
        } else if media.ends_with("tar") {
            self.archive(&mut blob)?;
        } else {
            return Err(io::Error::other(format!("it is of an unknown kind, {media}")));
        }
        io::copy(&mut blob, &mut io::sink())?;
        if format!("sha256:{}", hex(&blob.hash.finalize())) != descriptor.digest().to_string() {
            return Err(io::Error::other(
                "it does not have the digest that the image says",
            ));
        }
        Ok(())
    }

    fn archive(&mut self, bytes: impl Read) -> io::Result<()> {
        let mut bytes = bytes.take(MAX_LAYER);
        // What this layer adds: its own whiteouts are for the layers below.
        let mut added = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let Some(path) = parts(&entry.path()?) else {
                return Err(io::Error::other("a path in it leads out of it"));
            };
            let Some((name, parents)) = path.split_last() else {
                continue;
            };
            if name == OPAQUE {
                self.found.retain(|found| !found.parts.starts_with(parents));
            } else if let Some(deleted) = name.strip_prefix(WHITEOUT) {
                let gone = [parents, &[deleted.to_owned()]].concat();
                self.found.retain(|found| !found.parts.starts_with(&gone));
            } else if self.is_wanted(&path) {
                match entry.header().entry_type() {
                    EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {}
                    EntryType::Directory => continue,
                    _ => {
                        let path = path.join("/");
                        return Err(io::Error::other(format!(
                            "/{path} is a link or a device, no file"
                        )));
                    }
                }
                self.found.retain(|found| found.parts != path);
                added.retain(|found: &Found| found.parts != path);
                let aside = self
                    .directory
                    .join(format!(".{}.{}", std::process::id(), added.len()));
                let aside = Aside(aside);
                write_sparse(&mut entry, &aside.0)?;
                added.push(Found { parts: path, aside });
            }
        }
        self.found.append(&mut added);
        io::copy(&mut bytes, &mut io::sink())?;
        if bytes.limit() == 0 {
            return Err(io::Error::other(format!(
                "it decompresses to more than {MAX_LAYER} bytes"
            )));
        }
        Ok(())
    }

    fn is_wanted(&self, path: &[String]) -> bool {
        match self.wanted {
            Wanted::Path(_) => path == self.parts,
            Wanted::Disk => path.len() == self.parts.len() + 1 && path.starts_with(&self.parts),
        }
    }
}

/// The steps of a path from the image's root; `None` when it would leave it.
fn parts(path: &Path) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?.to_owned()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}

/// Copies to a new file in which blocks of zeroes are holes.
fn write_sparse(from: &mut impl Read, path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0; BLOCK];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match from.read(rest)? {
                0 => break,
                n => filled += n,
            }
        }
        let Some(data) = block.get(..filled).filter(|data| !data.is_empty()) else {
            break;
        };
        length += filled as u64;
        if data.iter().all(|&byte| byte == 0) {
            file.seek(SeekFrom::Current(filled as i64))?;
        } else {
            file.write_all(data)?;
        }
    }
    file.set_len(length)
}

/// Reads through and hashes what goes by.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}
