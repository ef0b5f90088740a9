//! Where a machine's socket is: `NAME.sock` in a directory of the user's own. Who may open the socket may do
//! everything with the machine, so nobody else gets near it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::exit::{Error, Result};

/// Longest path of a unix socket on Linux (`sun_path` without its zero).
const PATH_MAX: usize = 107;
const SUFFIX: &str = ".sock";
/// How long a machine that has moved away may keep its name.
const SUCCEED: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(10);

/// The directory of this user's sockets: in `$XDG_RUNTIME_DIR`, else `/run/nacelle` for root and
/// `/tmp/nacelle-UID` for others. It need not be there.
pub fn directory() -> PathBuf {
    let user = rustix::process::getuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if !runtime.is_empty() => Path::new(&runtime).join("nacelle"),
        _ if user.is_root() => "/run/nacelle".into(),
        _ => format!("/tmp/nacelle-{user}").into(),
    }
}

/// The socket of the machine `name` in `directory`.
///
/// # Errors
/// When a machine cannot be called so.
pub fn path(directory: &Path, name: &str) -> Result<PathBuf> {
    // As Kubernetes names objects: nothing in it means anything to a file system.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let valid = name.chars().all(|c| plain(c) || c == '-' || c == '.')
        && name.starts_with(plain)
        && name.ends_with(plain)
        && !name.contains("..");
    if !valid {
        return Err(Error::Usage(format!(
            "{name:?} is not a name for a machine: small letters, digits, - and . are"
        )));
    }
    let path = directory.join(format!("{name}{SUFFIX}"));
    if path.as_os_str().as_bytes().len() > PATH_MAX {
        return Err(Error::Usage(format!(
            "{} is longer than the {PATH_MAX} bytes that a socket's path may have: choose a shorter name, or a \
             shorter XDG_RUNTIME_DIR",
            path.display()
        )));
    }
    Ok(path)
}

/// A machine's socket, bound. Dropping it removes the file.
#[derive(Debug)]
pub struct Endpoint {
    /// The machine.
    pub name: String,
    path: PathBuf,
    listener: UnixListener,
    given: Arc<AtomicBool>,
}

/// A machine's socket as another process of this host gets it.
pub struct Deed {
    listener: UnixListener,
    given: Arc<AtomicBool>,
}

impl Deed {
    /// The socket.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// It is that process's from now on, or ours again: its file stays when this one's [`Endpoint`] goes, or does not.
    pub fn give(&self, given: bool) {
        self.given.store(given, Ordering::Release);
    }
}

impl Endpoint {
    /// Takes `name` in `directory`, which is made if need be. What a dead machine left is replaced.
    ///
    /// # Errors
    /// When a machine of this name runs, or the directory is not the user's alone.
    pub fn bind(directory: &Path, name: &str) -> Result<Endpoint> {
        let path = path(directory, name)?;
        own(directory)?;
        let _lock = lock(directory)?;
        match probe(&path).map_err(Error::file("look at", &path))? {
            Probe::Alive => return Err(Error::NameInUse { name: name.into() }),
            Probe::Dead => fs::remove_file(&path).map_err(Error::file("remove", &path))?,
            Probe::Absent => {}
        }
        let listener = UnixListener::bind(&path).map_err(Error::file("make", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))
            .map_err(Error::file("set the mode of", &path))?;
        Ok(Endpoint {
            name: name.into(),
            path,
            listener,
            given: Arc::default(),
        })
    }

    /// The socket of the machine `name` in `directory`, which another process had until now.
    ///
    /// # Errors
    /// When a machine cannot be called so.
    pub fn inherit(directory: &Path, name: &str, listener: UnixListener) -> Result<Endpoint> {
        Ok(Endpoint {
            name: name.into(),
            path: path(directory, name)?,
            listener,
            given: Arc::default(),
        })
    }

    /// What another process needs to have it.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn deed(&self) -> Result<Deed> {
        let listener = self.listener.try_clone();
        Ok(Deed {
            listener: listener.map_err(Error::file("duplicate", &self.path))?,
            given: Arc::clone(&self.given),
        })
    }

    /// As [`Endpoint::bind`], for a machine that has come from elsewhere: where that was this host, its name may
    /// still be its former self's for a moment. When it stays so, it is served under another name.
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub async fn succeed(directory: &Path, name: &str) -> Result<Endpoint> {
        let begun = Instant::now();
        loop {
            match Endpoint::bind(directory, name) {
                Err(Error::NameInUse { .. }) if begun.elapsed() < SUCCEED => sleep(MOMENT).await,
                Err(Error::NameInUse { .. }) => {
                    let other = format!("{name}.{}", std::process::id());
                    log::warn!("another machine is named {name}: this one is {other}");
                    return Endpoint::bind(directory, &other);
                }
                bound => return bound,
            }
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes connections, for a runtime.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.given.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Names of the machines that run, sorted. What dead ones left is removed.
///
/// # Errors
/// When the directory cannot be read.
pub fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", directory)(error)),
    };
    let _lock = lock(directory)?;
    let mut names = Vec::new();
    for entry in entries {
        let file = entry.map_err(Error::file("read", directory))?.file_name();
        let Some(name) = file.to_str().and_then(|file| file.strip_suffix(SUFFIX)) else {
            continue;
        };
        let Ok(path) = path(directory, name) else {
            continue;
        };
        match probe(&path).map_err(Error::file("look at", &path))? {
            Probe::Alive => names.push(name.to_owned()),
            Probe::Dead => fs::remove_file(&path).map_err(Error::file("remove", &path))?,
            Probe::Absent => {}
        }
    }
    names.sort();
    Ok(names)
}

enum Probe {
    Alive,
    Dead,
    Absent,
}

/// A socket is alive when somebody listens on it.
fn probe(path: &Path) -> io::Result<Probe> {
    match UnixStream::connect(path) {
        Ok(_) => Ok(Probe::Alive),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Ok(Probe::Dead),
            ErrorKind::NotFound => Ok(Probe::Absent),
            _ => Err(error),
        },
    }
}

/// Makes `directory` if it is not there, and sees that it is this user's alone: in `/tmp` anybody could have
/// made it.
fn own(directory: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::file("make", directory))?;
    let found = fs::symlink_metadata(directory).map_err(Error::file("look at", directory))?;
    let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    if !ours || found.mode() & 0o077 != 0 {
        let reason = "it must be a directory of this user's own with mode 0700";
        let refused = io::Error::new(ErrorKind::PermissionDenied, reason);
        return Err(Error::file("use", directory)(refused));
    }
    Ok(())
}

/// Held while sockets are looked at and then replaced or removed, so that two who do it see each other's.
fn lock(directory: &Path) -> Result<File> {
    let held = File::open(directory).map_err(Error::file("open", directory))?;
    held.lock().map_err(Error::file("lock", directory))?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(directory: &Path, name: &str) -> Result<Endpoint> {
        Endpoint::bind(directory, name)
    }

    /// What a machine leaves when it is killed.
    fn die(endpoint: Endpoint) {
        let path = endpoint.path.clone();
        drop(endpoint);
        drop(UnixListener::bind(path).unwrap());
    }

    #[test]
    fn a_name_belongs_to_one_machine_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("nacelle");
        let first = bind(&directory, "ledger").unwrap();
        let error = bind(&directory, "ledger").unwrap_err();
        assert_eq!(
            error.to_string(),
            "a machine named ledger runs already (see nacelle status ledger): choose another name, or stop it"
        );
        let other = bind(&directory, "other").unwrap();
        assert_eq!(names(&directory).unwrap(), ["ledger", "other"]);
        drop((first, other));
        assert!(names(&directory).unwrap().is_empty());
        bind(&directory, "ledger").unwrap();
    }

    #[test]
    fn what_a_killed_machine_left_is_in_nobodys_way() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("nacelle");
        die(bind(&directory, "ledger").unwrap());
        assert!(directory.join("ledger.sock").exists());
        let again = bind(&directory, "ledger").unwrap();
        die(bind(&directory, "other").unwrap());
        assert_eq!(names(&directory).unwrap(), ["ledger"]);
        assert!(!directory.join("other.sock").exists());
        drop(again);
    }

    #[test]
    fn of_many_who_find_a_dead_socket_one_gets_the_name() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("nacelle");
        die(bind(&directory, "ledger").unwrap());
        let bound: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| bind(&directory, "ledger")))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
        assert_eq!(names(&directory).unwrap(), ["ledger"]);
    }

    #[test]
    fn sockets_are_the_users_alone() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("nacelle");
        let endpoint = bind(&directory, "ledger").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&directory), mode(endpoint.path())), (0o700, 0o600));

        let open = home.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        assert!(bind(&open, "ledger").is_err());
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert!(bind(&link, "ledger").is_err());
    }

    #[test]
    fn names_are_those_that_kubernetes_gives() {
        let directory = Path::new("/run/nacelle");
        for name in ["a", "ledger", "my-vm.default", "0"] {
            assert!(path(directory, name).is_ok(), "{name}");
        }
        let long = "a".repeat(100);
        for name in ["", "..", "a/b", "-a", "a-", "Ledger", "a..b", "a b", "ä", &long] {
            assert!(path(directory, name).is_err(), "{name}");
        }
    }
}
