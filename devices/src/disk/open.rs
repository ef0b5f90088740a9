//! From options to a disk: the file, its format, the way it is driven.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use imago::io_buffers::IoBuffer;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

use super::inline::InlineQueue;
use super::overlay::Overlay;
use super::pool::PoolQueue;
use super::qcow2::{self, Qcow2};
use super::raw::Raw;
use super::uring::{self, UringQueue};
use super::{Backend, Disk, DiskQueue, Pool, Topology};
use crate::{Error, Result};

/// Where an image is.
#[derive(Debug)]
pub enum Source {
    /// A file or block device by its path.
    Path(PathBuf),
    /// One that is open already, as another process handed it over.
    File {
        /// What to call it in messages.
        name: String,
        /// Open for writing unless the disk is read-only; with O_DIRECT if and only if the options say so.
        file: File,
    },
}

/// What is in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The guest's sectors as they are.
    #[default]
    Raw,
    /// A qcow2 image.
    Qcow2 {
        /// The files that it names as its backing may be opened, for reading. Only right for an image whose
        /// maker may read every file that we may.
        backing: bool,
    },
    /// Whichever of the two it begins as, a qcow2 image without backing. Refused for what turns out raw and
    /// is written in place: its guest could write a qcow2 header there and have it believed the next time.
    Detect,
}

/// Where an overlay's data go.
#[derive(Clone, Debug)]
pub enum OverlayFile {
    /// To a file without a name in this directory: gone with the disk.
    Temporary(PathBuf),
    /// To this file: made if it is not there, continued if it is.
    Named(PathBuf),
    /// To this one, which another process began and handed over.
    Open(Arc<File>),
}

/// Whether a disk keeps others off its image, and from when on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// From the start.
    #[default]
    Now,
    /// From [`Disk::lock`] on: until then another process has it and may write. Nothing is to be read before.
    Later,
    /// Never.
    Never,
}

/// How operations reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// For raw disks io_uring where the process may use it, inline for those in memory; else threads. Looked at once, on
    /// opening.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// The thread that submits, for raw disks.
    Inline,
    /// Threads.
    Pool,
}

/// How to open a disk.
#[derive(Debug)]
pub struct DiskOptions {
    /// Where it is.
    pub source: Source,
    /// What is in it.
    pub format: Format,
    /// Nothing may change it.
    pub read_only: bool,
    /// A layer that takes all writes; the image itself is then only read.
    pub overlay: Option<OverlayFile>,
    /// Past the page cache (O_DIRECT).
    pub direct: bool,
    /// Keep others off: exclusive for a disk that is written, shared for one that is not.
    pub lock: Lock,
    /// Others may write it at the same time, who say so, too: who does not is kept off.
    pub shared: bool,
    /// How operations reach the kernel.
    pub engine: Engine,
    /// Threads for what blocks, shared among the disks of a machine.
    pub pool: Pool,
}

impl DiskOptions {
    /// A raw image at `path`, read and written through the page cache, locked.
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        DiskOptions {
            source: Source::Path(path.into()),
            format: Format::Raw,
            read_only: false,
            overlay: None,
            direct: false,
            lock: Lock::Now,
            shared: false,
            engine: Engine::Auto,
            pool: Pool::new(),
        }
    }
}

/// Opens a disk.
///
/// # Errors
/// When the image is not there, not to be had, in use, or not what the options say.
pub fn open(options: DiskOptions) -> Result<Arc<dyn Disk>> {
    let DiskOptions {
        source,
        format,
        read_only,
        overlay,
        direct,
        lock,
        shared,
        engine,
        pool,
    } = options;
    let base_read_only = read_only || overlay.is_some();
    let (name, file, path) = open_file(source, base_read_only, direct)?;
    let refused = |reason: &str| Error::DiskRefused {
        disk: name.clone(),
        reason: reason.into(),
    };
    if read_only && overlay.is_some() {
        return Err(refused("an overlay is for writing, the disk is read-only"));
    }
    let format = match format {
        Format::Detect if starts_as_qcow2(&name, &file)? => Format::Qcow2 { backing: false },
        Format::Detect if base_read_only => Format::Raw,
        Format::Detect => {
            return Err(refused(
                "it is not qcow2, and raw must be said of a disk that is written",
            ));
        }
        said => said,
    };
    if shared && (format != Format::Raw || overlay.is_some()) {
        return Err(refused("only a raw disk without an overlay can be shared"));
    }
    let plain = format == Format::Raw && overlay.is_none();
    if matches!(engine, Engine::Uring | Engine::Inline) && !plain {
        return Err(refused("io_uring and inline serve raw disks without an overlay"));
    }
    let (base, way): (Arc<dyn Backend>, _) = match format {
        Format::Qcow2 { backing } => {
            let image = Qcow2::new(name, file, path, base_read_only, direct, lock, backing)?;
            (Arc::new(image), None)
        }
        Format::Raw | Format::Detect => {
            let raw = Arc::new(Raw::new(name, file, base_read_only, direct, lock, shared)?);
            let way = match overlay {
                Some(_) => None,
                None => {
                    let way = Way::of(engine, raw.name(), raw.is_in_memory(), uring::probe)?;
                    way.map(|way| (Arc::clone(&raw), way))
                }
            };
            (raw, way)
        }
    };
    let backend = match overlay {
        None => base,
        Some(place) => Arc::new(open_overlay(base, place, direct, lock)?),
    };
    Ok(Arc::new(Image { backend, way, pool }))
}

/// Whether the file begins like a qcow2 image.
fn starts_as_qcow2(name: &str, file: &File) -> Result<bool> {
    // A page on a page's boundary suits O_DIRECT as well.
    let start = IoBuffer::new(4096, 4096).and_then(|mut page| {
        let page = page.as_mut().into_slice();
        let got = file.read_at(page, 0)?;
        Ok(got >= qcow2::MAGIC.len() && page.starts_with(&qcow2::MAGIC))
    });
    start.map_err(Error::disk(name, "read the start of"))
}

fn open_overlay(base: Arc<dyn Backend>, place: OverlayFile, direct: bool, lock: Lock) -> Result<Overlay> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags(direct));
    let later = lock == Lock::Later;
    let (path, temporary) = match place {
        OverlayFile::Open(file) => {
            let name = format!("the layer of {}", base.name());
            let file = file.try_clone().map_err(Error::disk(&name, "duplicate"))?;
            return Overlay::new(base, name, file, true, direct, Lock::Never, later);
        }
        OverlayFile::Named(path) => {
            // The guest's data are for nobody else to read.
            options.create(true).mode(0o600);
            (path, None)
        }
        OverlayFile::Temporary(directory) => {
            let file = TempFile::new_in(&directory).map_err(|error| Error::Disk {
                disk: directory.display().to_string(),
                what: "make a temporary overlay in",
                source: error.into(),
            })?;
            // Opened below by its name, which goes when this function ends.
            (file.as_path().to_owned(), Some(file))
        }
    };
    let name = path.display().to_string();
    let file = options.open(&path).map_err(Error::disk(&name, "open overlay"))?;
    let lock = if temporary.is_some() { Lock::Never } else { lock };
    Overlay::new(base, name, file, temporary.is_some(), direct, lock, later)
}

fn flags(direct: bool) -> i32 {
    if direct { libc::O_DIRECT } else { 0 }
}

/// The disk that `backend` is, served by the threads of `pool`.
pub fn over(backend: Arc<dyn Backend>, pool: Pool) -> Arc<dyn Disk> {
    Arc::new(Image {
        backend,
        way: None,
        pool,
    })
}

/// The file, what to call it, and its path where it has one.
fn open_file(source: Source, read_only: bool, direct: bool) -> Result<(String, File, Option<PathBuf>)> {
    match source {
        Source::File { name, file } => Ok((name, file, None)),
        Source::Path(path) => {
            let name = path.display().to_string();
            let file = OpenOptions::new()
                .read(true)
                .write(!read_only)
                .custom_flags(flags(direct))
                .open(&path)
                .map_err(|source| match source.raw_os_error() {
                    Some(libc::EINVAL) if direct => Error::DiskRefused {
                        disk: name.clone(),
                        reason: "its file system has no I/O past the page cache (O_DIRECT); use another cache mode".into(),
                    },
                    _ => Error::Disk {
                        disk: name.clone(),
                        what: "open",
                        source,
                    },
                })?;
            Ok((name, file, Some(path)))
        }
    }
}

/// How a raw disk is driven that needs no pool.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Ring,
    Inline,
}

impl Way {
    /// That of the disk `name`; says so where it could be a ring and is none.
    fn of(
        engine: Engine,
        name: &str,
        in_memory: bool,
        probe: impl FnOnce() -> io::Result<()>,
    ) -> Result<Option<Way>> {
        match engine {
            Engine::Pool => return Ok(None),
            Engine::Inline => return Ok(Some(Way::Inline)),
            Engine::Auto if in_memory => return Ok(Some(Way::Inline)),
            Engine::Auto | Engine::Uring => {}
        }
        match (engine, probe()) {
            (_, Ok(())) => Ok(Some(Way::Ring)),
            (Engine::Uring, Err(error)) => Err(Error::disk(name, "use io_uring for")(error)),
            (_, Err(error)) => {
                log::info!("disk {name}: served by threads, io_uring is not to be had: {error}");
                Ok(None)
            }
        }
    }
}

/// A backend with the way it is driven.
struct Image {
    backend: Arc<dyn Backend>,
    /// Of a raw disk alone; without one the pool drives it.
    way: Option<(Arc<Raw>, Way)>,
    pool: Pool,
}

impl Disk for Image {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn len(&self) -> u64 {
        self.backend.size()
    }

    fn read_only(&self) -> bool {
        self.backend.read_only()
    }

    fn topology(&self) -> Topology {
        self.backend.topology()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>> {
        let completion = EventFd::new(EFD_NONBLOCK).map_err(Error::io("make an eventfd for a disk queue"))?;
        let completion = Arc::new(completion);
        let pool = PoolQueue::new(
            Arc::clone(&self.backend),
            self.pool.clone(),
            Arc::clone(&completion),
        );
        Ok(match &self.way {
            None => Box::new(pool),
            Some((raw, Way::Inline)) => Box::new(InlineQueue::new(Arc::clone(raw), pool)),
            Some((raw, Way::Ring)) => {
                let queue = UringQueue::new(Arc::clone(raw), depth, pool, completion);
                Box::new(queue.map_err(Error::disk(raw.name(), "make a ring for"))?)
            }
        })
    }

    fn resize(&self, len: Option<u64>) -> Result<u64> {
        self.backend.resize(len)
    }

    fn lock(&self) -> Result<()> {
        self.backend.lock()
    }

    fn unlock(&self) -> Result<()> {
        self.backend.unlock()
    }

    fn files(&self) -> Result<Vec<File>> {
        self.backend.files()
    }

    fn hand_over(&self) -> Result<()> {
        self.backend.hand_over()
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits;
    use super::*;

    #[test]
    fn where_io_uring_is_denied_threads_serve_unless_it_was_asked_for() {
        for (engine, in_memory, allowed, expected) in [
            (Engine::Auto, false, true, "Ring"),
            (Engine::Auto, false, false, "Pool"),
            (Engine::Auto, true, true, "Inline"),
            (Engine::Auto, true, false, "Inline"),
            (Engine::Uring, true, true, "Ring"),
            (Engine::Uring, false, false, "cannot use io_uring for disk a"),
            (Engine::Pool, true, true, "Pool"),
            (Engine::Inline, false, true, "Inline"),
        ] {
            let probe = || match allowed {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::EPERM)),
            };
            let way = Way::of(engine, "a", in_memory, probe);
            let way = match way {
                Ok(None) => "Pool".to_owned(),
                Ok(Some(way)) => format!("{way:?}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(way, expected, "{engine:?}, in memory: {in_memory}");
        }
    }

    #[test]
    fn a_file_of_tmpfs_is_known_to_be_in_memory() {
        let memory = TempFile::new_in("/dev/shm".as_ref()).unwrap();
        assert!(limits::is_in_memory(memory.as_file()));
        assert!(!limits::is_in_memory(&File::open("/proc/version").unwrap()));
    }
}
