//! An OCI image layout: a directory with `index.json` and blobs by digest (OCI image specification, image-layout).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::image::{
    Descriptor, DescriptorBuilder, ImageIndex, ImageIndexBuilder, ImageManifest, MediaType, SCHEMA_VERSION,
    Sha256Digest,
};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The annotation that names an image in the index.
const NAME: &str = "org.opencontainers.image.ref.name";
/// The one by which containerd's and other tools' layouts give the full name.
const FULL_NAME: &str = "io.containerd.image.name";
/// No index or manifest is longer; registries refuse more than 4 MiB.
const MAX_DOCUMENT: u64 = 4 << 20;
/// The architecture that an image must be made for.
pub const ARCHITECTURE: &str = "amd64";

/// A directory with images.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// An image in a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As it was asked for.
    pub name: String,
    /// Digest of its manifest, in hexadecimal.
    pub digest: String,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

impl Layout {
    /// The layout in the directory `root`, which need not be there.
    pub fn new(root: impl Into<PathBuf>) -> Layout {
        Layout { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks for an image; `None` when it, or the whole layout, is not there.
    ///
    /// # Errors
    /// When the layout cannot be read, or what is in it does not fit together.
    pub fn find(&self, name: &str) -> Result<Option<Image>> {
        let Some(index) = self.index()? else {
            return Ok(None);
        };
        let Some(entry) = index.manifests().iter().find(|entry| is_called(entry, name)) else {
            return Ok(None);
        };
        let manifest = match entry.media_type() {
            MediaType::ImageIndex => {
                let inner: ImageIndex = self.document(name, entry)?;
                let fits = |entry: &&Descriptor| {
                    entry
                        .platform()
                        .as_ref()
                        .is_none_or(|platform| platform.architecture().to_string() == ARCHITECTURE)
                };
                inner
                    .manifests()
                    .iter()
                    .find(fits)
                    .cloned()
                    .ok_or_else(|| Error::Image {
                        image: name.to_owned(),
                        reason: format!("it is not made for {ARCHITECTURE}"),
                    })?
            }
            _ => entry.clone(),
        };
        let image: ImageManifest = self.document(name, &manifest)?;
        Ok(Some(Image {
            name: name.to_owned(),
            digest: digest(name, &manifest)?,
            layers: image.layers().clone(),
        }))
    }

    fn index(&self) -> Result<Option<ImageIndex>> {
        let path = self.root.join("index.json");
        let text = match read_limited(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::file("read", &path))?,
        };
        let index = serde_json::from_slice(&text).map_err(|error| Error::File {
            what: "understand the image index",
            path,
            source: error.into(),
        })?;
        Ok(Some(index))
    }

    /// A blob that is a JSON document, its digest checked.
    fn document<T: DeserializeOwned>(&self, image: &str, descriptor: &Descriptor) -> Result<T> {
        let refuse = |reason: String| Error::Image {
            image: image.to_owned(),
            reason,
        };
        let digest = digest(image, descriptor)?;
        let path = self.blob(&digest);
        let text = read_limited(&path).map_err(Error::file("read the image's manifest", &path))?;
        if hex(&Sha256::digest(&text)) != digest {
            return Err(refuse(format!("the blob {} is damaged", path.display())));
        }
        serde_json::from_slice(&text)
            .map_err(|error| refuse(format!("its manifest is not understood: {error}")))
    }

    /// Where the blob of a sha256 digest is.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(digest)
    }

    /// Makes the layout's directories and marks it as one.
    ///
    /// # Errors
    /// When the directory may not be written.
    pub fn create(&self) -> Result<()> {
        let blobs = self.root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Error::file("make the directory", &blobs))?;
        let marker = self.root.join("oci-layout");
        if !marker.exists() {
            replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(())
    }

    /// Enters a manifest whose blobs are all there under `name`, instead of what had this name.
    ///
    /// # Errors
    /// When the index cannot be read or written.
    pub fn enter(&self, name: &str, manifest: &[u8]) -> Result<()> {
        let broken = |reason: String| Error::Image {
            image: name.to_owned(),
            reason,
        };
        let digest = hex(&Sha256::digest(manifest));
        replace(&self.blob(&digest), manifest)?;
        let mut entries = self
            .index()?
            .map(|index| index.manifests().clone())
            .unwrap_or_default();
        entries.retain(|entry| !is_called(entry, name));
        let digest = Sha256Digest::from_str(&digest).map_err(|error| broken(error.to_string()))?;
        entries.push(
            DescriptorBuilder::default()
                .media_type(MediaType::ImageManifest)
                .digest(digest)
                .size(manifest.len() as u64)
                .annotations([(NAME.to_owned(), name.to_owned())])
                .build()
                .map_err(|error| broken(error.to_string()))?,
        );
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests(entries)
            .build()
            .map_err(|error| broken(error.to_string()))?;
        let text = index.to_string().map_err(|error| broken(error.to_string()))?;
        replace(&self.root.join("index.json"), text.as_bytes())
    }
}

/// Whether an entry of the index is the image `name`, however much of the name is written out.
fn is_called(entry: &Descriptor, name: &str) -> bool {
    let Some(annotations) = entry.annotations() else {
        return false;
    };
    [NAME, FULL_NAME]
        .iter()
        .filter_map(|key| annotations.get(*key))
        .any(|given| given == name || in_full(given) == in_full(name))
}

/// A name with what may be left out of it: Docker's registry, its directory, the tag. (The library's own type for
/// names holds megabytes of regular expressions for as long as the process lives.)
fn in_full(name: &str) -> String {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", name),
    };
    let library = if registry == "docker.io" && !path.contains('/') {
        "library/"
    } else {
        ""
    };
    let last = path.rsplit('/').next().unwrap_or(path);
    let tag = if last.contains([':', '@']) { "" } else { ":latest" };
    format!("{registry}/{library}{path}{tag}")
}

/// The sha256 digest of a descriptor, checked to be one.
pub fn digest(image: &str, descriptor: &Descriptor) -> Result<String> {
    let text = descriptor.digest().to_string();
    let hex = text.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    hex.map(str::to_owned).ok_or_else(|| Error::Image {
        image: image.to_owned(),
        reason: format!("{text} is no sha256 digest"),
    })
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_DOCUMENT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_DOCUMENT {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("it is longer than {MAX_DOCUMENT} bytes"),
        ));
    }
    Ok(text)
}

/// Writes a file aside and puts it in place whole.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let aside = path.with_extension(format!("new{}", std::process::id()));
    File::create(&aside)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&aside, path))
        .map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_however_much_is_written_out() {
        for (short, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("org/disk", "docker.io/org/disk:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/a:1", "localhost/a:1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("nacelle.local/a/b@sha256:00", "nacelle.local/a/b@sha256:00"),
        ] {
            assert_eq!(in_full(short), full);
            assert_eq!(in_full(full), full);
        }
    }
}
