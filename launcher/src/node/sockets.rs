//! The agent's sockets, in a directory that the kubelet mounts into containers with `devices.kubevirt.io/kvm` or
//! `devices.kubevirt.io/volumes`, by what their plugin answers: no pod needs a `hostPath`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::{Error, Result};

/// Where containers have the directory, below their root.
pub const IN_CONTAINERS: &str = "run/nacelle-node";

/// The directory, in the kubelet's for plugins: it leaves directories there alone.
pub(super) fn directory(plugins: &Path) -> PathBuf {
    plugins.join("nacelle")
}

/// Listens at the socket `name`.
pub(crate) fn listen(plugins: &Path, name: &str) -> Result<UnixListener> {
    let directory = directory(plugins);
    fs::create_dir_all(&directory).map_err(Error::file("make the directory", &directory))?;
    let path = directory.join(name);
    // Of an agent before us.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(Error::file("make", &path))?;
    // Those who come have another user; that they can come is what the plugin gives.
    let set = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::file("set the mode of", path))
    };
    set(&directory, 0o755)?;
    set(&path, 0o666)?;
    Ok(listener)
}
