//! What a pod has for a machine's disks: claims where the kubelet mounts them, files of images by descriptors from the
//! containers of these images, and what the cluster provides.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacelle_vmm::config::DiskFormat;
use rustix::fs::statvfs;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use tokio::time::sleep;

use crate::convert::{Boot, FilesKind, Plan, Source};
use crate::storage::supply::{Found, INITRD, KERNEL, Supply, Wish};
use crate::{Error, Result};

/// How long the container of an image may take to hand over a file when it listens.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often one is looked for that does not listen yet.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes of a reason that are read.
const REASON: u64 = 1024;
/// Name of the file in a claim that is a file system, as in KubeVirt.
const DISK: &str = "disk.img";
/// A disk that is made is a multiple of this.
const ALIGNMENT: u64 = 1 << 20;

/// The mounts of a pod.
#[derive(Debug)]
pub struct Mounts {
    root: PathBuf,
    scratch: PathBuf,
    /// Files of images, by the volume that they are for.
    images: HashMap<String, File>,
}

impl Mounts {
    /// Those under `root`.
    pub fn new(root: &Path) -> Mounts {
        Mounts {
            root: root.to_owned(),
            scratch: root.join("var/lib/nacelle"),
            images: HashMap::new(),
        }
    }

    /// Those under `root`, with all files of images that `plan` names. It waits for them: their containers start beside
    /// this one, and the image may have to be pulled first.
    ///
    /// # Errors
    /// When a container has no such file.
    pub async fn with_images(root: &Path, plan: &Plan) -> Result<Mounts> {
        let mut mounts = Mounts::new(root);
        for volume in of_images(plan) {
            let socket = root.join("run/nacelle/files").join(format!("{volume}.sock"));
            let file = loop {
                match receive(&socket) {
                    Ok(Ok(file)) => break file,
                    Ok(Err(reason)) => return Err(refuse(volume, reason)),
                    Err(error)
                        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
                    {
                        sleep(LOOK).await;
                    }
                    Err(error) => return Err(Error::file("get a file of an image from", &socket)(error)),
                }
            };
            mounts.images.insert(volume.to_owned(), file);
        }
        Ok(mounts)
    }

    fn private(&self, kind: &str, volume: &str) -> PathBuf {
        self.root.join("var/run/kubevirt-private").join(kind).join(volume)
    }
}

impl Supply for Mounts {
    fn scratch(&self) -> &Path {
        &self.scratch
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        match plan
            .disks
            .iter()
            .find(|disk| matches!(disk.source, Source::Host { .. }))
        {
            Some(disk) => Err(refuse(
                &disk.name,
                "a hostDisk is a file of one node, which a pod does not see; use a persistentVolumeClaim",
            )),
            None => Ok(()),
        }
    }

    fn image(&self, wish: Wish<'_>) -> Result<Found> {
        let file = self.images.get(wish.volume);
        let file = file.ok_or_else(|| refuse(wish.volume, "nobody handed over its file"))?;
        file.try_clone()
            .map(Found::Open)
            .map_err(Error::io("use a file of an image"))
    }

    fn claim(&self, volume: &str, _claim: &str) -> Result<(PathBuf, DiskFormat)> {
        let device = self.root.join("dev").join(volume);
        if fs::metadata(&device).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
            return Ok((device, DiskFormat::Raw));
        }
        Ok((disk_in(&self.private("vmi-disks", volume))?, DiskFormat::Raw))
    }

    fn files(&self, volume: &str, kind: FilesKind) -> Result<Vec<(String, Vec<u8>)>> {
        let kind = match kind {
            FilesKind::ConfigMap => "config-map",
            FilesKind::Secret => "secret",
            FilesKind::DownwardApi => "downwardapi",
            FilesKind::ServiceAccount => "service-account",
        };
        let mut files = Vec::new();
        collect(&self.private(kind, volume), "", &mut files)?;
        files.sort();
        Ok(files)
    }

    fn credential(&self, secret: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        collect(&self.private("access-credentials", secret), "", &mut files)?;
        files.sort();
        Ok(files)
    }

    fn secret(&self, volume: &str, network: bool) -> Result<Vec<u8>> {
        let directory = self.private("cloud-init", volume);
        // KubeVirt takes both spellings of the key.
        let names = match network {
            false => ["userdata", "userData"],
            true => ["networkdata", "networkData"],
        };
        for name in names {
            match fs::read(directory.join(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => return other.map_err(Error::file("read", directory.join(name))),
            }
        }
        Err(refuse(
            volume,
            format!("its secret has no key {}", names.join(" or ")),
        ))
    }
}

fn refuse(volume: &str, reason: impl Into<String>) -> Error {
    Error::Volume {
        volume: volume.to_owned(),
        reason: reason.into(),
    }
}

/// The disk in a claim that is a file system; it is made where there is none.
///
/// # Errors
/// When it cannot be used, or made.
pub(super) fn disk_in(directory: &Path) -> Result<PathBuf> {
    let file = directory.join(DISK);
    match fs::metadata(&file) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(Error::file("use", &file)(io::Error::other("it is no file"))),
        Err(error) if error.kind() == ErrorKind::NotFound => make(directory, &file)?,
        Err(error) => return Err(Error::file("use", &file)(error)),
    }
    Ok(file)
}

/// Makes the disk of an empty claim, as large as there is room in it.
fn make(directory: &Path, file: &Path) -> Result<()> {
    let room =
        statvfs(directory).map_err(|error| Error::file("look at the claim in", directory)(error.into()))?;
    let size = room.f_bavail.saturating_mul(room.f_frsize) / ALIGNMENT * ALIGNMENT;
    let made = OpenOptions::new().write(true).create_new(true).open(file);
    made.and_then(|made| made.set_len(size))
        .map_err(Error::file("make the claim's disk", file))?;
    log::info!("{} is made, of {} MiB", file.display(), size >> 20);
    Ok(())
}

/// Reads the files of a directory that the kubelet keeps. What begins with two dots is its own.
fn collect(directory: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::file("read", directory))? {
        let path = entry.map_err(Error::file("read", directory))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.starts_with("..") {
            continue;
        }
        let inside = format!("{prefix}{name}");
        // Not the entry's own kind: the kubelet has links there.
        if path.is_dir() {
            collect(&path, &format!("{inside}/"), files)?;
        } else {
            let content = fs::read(&path).map_err(Error::file("read", &path))?;
            files.push((inside, content));
        }
    }
    Ok(())
}

/// What needs a file of an image.
fn of_images(plan: &Plan) -> Vec<&str> {
    let mut volumes = Vec::new();
    if let Boot::Image { initrd, .. } = &plan.boot {
        volumes.push(KERNEL);
        volumes.extend(initrd.as_ref().map(|_| INITRD));
    }
    let disks = plan.disks.iter();
    let disks = disks.filter(|disk| matches!(disk.source, Source::Image { .. }));
    volumes.extend(disks.map(|disk| disk.name.as_str()));
    volumes
}

/// The descriptor that `serve-file` sends, or why it has none.
fn receive(socket: &Path) -> io::Result<Result<File, String>> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut byte)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if byte == *b"e" {
        let mut reason = Vec::new();
        stream.take(REASON).read_to_end(&mut reason)?;
        return Ok(Err(String::from_utf8_lossy(&reason).into_owned()));
    }
    let fd = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let missing = || io::Error::new(ErrorKind::UnexpectedEof, "it sent no descriptor");
    fd.map(|fd| Ok(File::from(fd))).ok_or_else(missing)
}
