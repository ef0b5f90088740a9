//! Images from registries, into the local layout (OCI distribution specification).
//!
//! The HTTP client, TLS and what they keep for the life of a process are megabytes. `nacelle run` has another
//! process pull ([`Puller::Program`]), so that a machine that runs has nothing of them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWrite;

use super::layout::{self, Image, Layout, hex};
use crate::convert::PullPolicy;
use crate::{Error, Result};

/// Documents that name layers, or other documents.
const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// How long a registry may take to answer at all, and to send the next bytes.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Who pulls.
#[derive(Clone, Debug)]
pub enum Puller {
    /// This process.
    Here,
    /// This program, which is `nacelle`, by its subcommand `pull`.
    Program(PathBuf),
}

impl Puller {
    fn pull(&self, layout: &Layout, name: &str) -> Result<Image, Cause> {
        let Puller::Program(program) = self else {
            return pull(layout, name);
        };
        // What it prints for people, progress among it, they see as it comes.
        let status = Command::new(program)
            .args(["pull", name, "--images"])
            .arg(layout.root())
            .args(log::log_enabled!(log::Level::Debug).then_some("-v"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        match layout.find(name)? {
            Some(image) if status.success() => Ok(image),
            _ => Err("nacelle pull, which fetches images, failed (see above)".into()),
        }
    }
}

/// The image, from the layout or, as `policy` says, from its registry.
///
/// # Errors
/// When it is in neither.
pub fn find(layout: &Layout, name: &str, policy: PullPolicy, puller: &Puller) -> Result<Image> {
    let local = layout.find(name)?;
    let missing = |hint: &str, source| Error::NoImage {
        image: name.to_owned(),
        layout: layout.root().to_owned(),
        hint: hint.to_owned(),
        source,
    };
    match (local, policy) {
        (Some(image), PullPolicy::IfNotPresent | PullPolicy::Never) => Ok(image),
        (None, PullPolicy::Never) => Err(missing(
            ", and its imagePullPolicy is Never; put it there or name the layout that has it by --images",
            None,
        )),
        (None, PullPolicy::IfNotPresent | PullPolicy::Always) => puller.pull(layout, name).map_err(|cause| {
            missing(
                ", and no registry gives it; name the layout that has it by --images, or check the name and the \
                 network",
                Some(cause),
            )
        }),
        (Some(image), PullPolicy::Always) => puller.pull(layout, name).or_else(|cause| {
            log::warn!("image {name} may be out of date, its registry does not give it: {cause}");
            Ok(image)
        }),
    }
}

/// Pulls an image into the layout, for `nacelle pull`; gives the digest of its manifest.
///
/// # Errors
/// When its registry does not give it, or the layout cannot be written.
pub fn fetch_image(layout: &Layout, name: &str) -> Result<String> {
    let image = pull(layout, name).map_err(|source| Error::Pull {
        image: name.to_owned(),
        source,
    })?;
    Ok(format!("sha256:{}", image.digest))
}

/// Fetches what the layout does not have yet, then enters the image.
fn pull(layout: &Layout, name: &str) -> Result<Image, Cause> {
    let reference = Reference::from_str(name)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // A second installation, as in a test that pulls twice, is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    log::info!("pulling image {name}");
    let manifest = runtime.block_on(fetch(layout, &reference))?;
    layout.enter(name, &manifest)?;
    layout.find(name)?.ok_or_else(|| "it was not kept".into())
}

/// Fetches the blobs of an image; gives its manifest.
async fn fetch(layout: &Layout, reference: &Reference) -> Result<Vec<u8>, Cause> {
    let client = Client::try_from(ClientConfig {
        protocol: protocol(reference.resolve_registry()),
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENCE),
        ..ClientConfig::default()
    })?;
    let auth = RegistryAuth::Anonymous;
    let mut manifest = document(&client, reference, &auth).await?;
    // An index names a manifest for each architecture.
    if let Ok(index) = serde_json::from_slice::<ImageIndex>(&manifest) {
        let ours = index.manifests().iter().find(|entry| {
            let platform = entry.platform().as_ref();
            platform.is_some_and(|platform| platform.architecture().to_string() == layout::ARCHITECTURE)
        });
        let ours = ours.ok_or_else(|| format!("it is not made for {}", layout::ARCHITECTURE))?;
        let reference = reference.clone_with_digest(ours.digest().to_string());
        manifest = document(&client, &reference, &auth).await?;
    }
    let image: ImageManifest = serde_json::from_slice(&manifest)?;
    layout.create()?;
    for descriptor in std::iter::once(image.config()).chain(image.layers()) {
        blob(&client, reference, layout, descriptor).await?;
    }
    Ok(manifest)
}

/// Registries of this machine speak HTTP, as everywhere; all others HTTPS.
fn protocol(registry: &str) -> ClientProtocol {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    if host == "localhost" || host == "[::1]" || host.starts_with("127.") {
        ClientProtocol::Http
    } else {
        ClientProtocol::Https
    }
}

async fn document(client: &Client, reference: &Reference, auth: &RegistryAuth) -> Result<Vec<u8>, Cause> {
    let (bytes, _) = client.pull_manifest_raw(reference, auth, MANIFESTS).await?;
    let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
    match reference.digest() {
        Some(wanted) if wanted != digest => Err(format!("the registry gave {digest} for {wanted}").into()),
        _ => Ok(bytes.to_vec()),
    }
}

/// Fetches one blob, unless it is there.
async fn blob(
    client: &Client,
    reference: &Reference,
    layout: &Layout,
    descriptor: &Descriptor,
) -> Result<(), Cause> {
    let digest = layout::digest(&reference.whole(), descriptor)?;
    let path = layout.blob(&digest);
    if path.exists() {
        return Ok(());
    }
    let partial = Partial::create(&path, descriptor.size())?;
    let descriptor = OciDescriptor {
        digest: descriptor.digest().to_string(),
        size: i64::try_from(descriptor.size())?,
        ..OciDescriptor::default()
    };
    // Checks the digest of what it gives.
    partial.fill(client, reference, &descriptor, &path).await
}

/// A blob on its way: gone again unless all of it comes.
struct Partial {
    path: PathBuf,
    file: File,
    /// Bytes that may still come.
    left: u64,
    progress: ProgressBar,
}

impl Partial {
    fn create(target: &Path, size: u64) -> io::Result<Partial> {
        let path = target.with_extension(format!("part{}", std::process::id()));
        // Draws on a terminal only.
        let progress = ProgressBar::new(size);
        let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Ok(Partial {
            file: File::create(&path)?,
            path,
            left: size,
            progress,
        })
    }

    async fn fill(
        mut self,
        client: &Client,
        reference: &Reference,
        descriptor: &OciDescriptor,
        target: &Path,
    ) -> Result<(), Cause> {
        client.pull_blob(reference, descriptor, &mut self).await?;
        if self.left > 0 {
            return Err(format!("its blob {} is shorter than it says", descriptor.digest).into());
        }
        self.progress.finish_and_clear();
        Ok(fs::rename(&self.path, target)?)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Files do not make an event loop wait, so writing at once is as good as it gets.
impl AsyncWrite for Partial {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            let message = "the registry sends more than it said";
            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, message)));
        };
        Poll::Ready(self.file.write_all(data).map(|()| {
            self.left = left;
            self.progress.inc(data.len() as u64);
            data.len()
        }))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.file.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
