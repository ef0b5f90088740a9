//! Container disks: an image of a registry (OCI distribution specification) that has one file in `/disk`.

use std::io::{self, Read};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::manifest::{OciDescriptor, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::runtime::{Builder, Runtime};

use super::{Checksum, Source};
use crate::error::refused;
use crate::progress::Progress;
use crate::unpack::of_layer;
use crate::{Error, Result};

/// How long a registry may take to answer at all, and to send the next bytes.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);
/// Pieces that came and are not used yet.
const AHEAD: usize = 64;
/// Layers that an image may have.
const LAYERS: usize = 256;

/// What is pulled.
pub struct Options {
    /// Its name, with tag or digest.
    pub image: String,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// Authorities in PEM that are trusted beside the known ones.
    pub authorities: Vec<Vec<u8>>,
    /// Which image of one for several architectures, in Go's words.
    pub architecture: String,
}

/// Gives the disk of an image to `then`, once; what comes is held against the digests that the image names.
///
/// # Errors
/// The registry does not give the image, there is no disk in it, it is not what it should be, or `then` fails.
pub fn open(
    options: &Options,
    progress: &Progress,
    then: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    let fail = |reason: String| Error::Source {
        what: format!("the image {}", options.image),
        reason,
    };
    let reference = Reference::from_str(&options.image).map_err(|error| fail(error.to_string()))?;
    let client = client(options, &reference).map_err(&fail)?;
    let runtime = runtime().map_err(|error| fail(error.to_string()))?;
    let auth = match &options.user {
        Some((name, password)) => RegistryAuth::Basic(name.clone(), password.clone()),
        None => RegistryAuth::Anonymous,
    };
    let manifest = runtime
        .block_on(manifest(&client, &reference, &auth, &options.architecture))
        .map_err(&fail)?;
    if manifest.layers.len() > LAYERS {
        return refused(format!("it has more than {LAYERS} layers"));
    }
    // What a later layer has counts.
    for layer in manifest.layers.iter().rev() {
        let checksum: Checksum = layer.digest.parse().map_err(&fail)?;
        progress.expect(layer.size.try_into().unwrap_or_default());
        let stream = stream(&client, &reference, layer).map_err(|error| fail(error.to_string()))?;
        let mut source = Source::new(Box::new(stream), progress.clone(), Some(checksum));
        if of_layer(&mut source, then)? {
            return source.finish();
        }
    }
    refused("there is no disk in it: a container disk has one file in /disk")
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn client(options: &Options, reference: &Reference) -> Result<Client, String> {
    let mut certificates = Vec::new();
    for bundle in &options.authorities {
        let text = String::from_utf8_lossy(bundle);
        let each = text
            .split_inclusive("-----END CERTIFICATE-----")
            .filter(|pem| pem.contains("BEGIN CERTIFICATE"));
        certificates.extend(each.map(|pem| Certificate {
            encoding: CertificateEncoding::Pem,
            data: pem.trim_start().as_bytes().to_vec(),
        }));
    }
    Client::try_from(ClientConfig {
        protocol: protocol(reference.resolve_registry()),
        extra_root_certificates: certificates,
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENCE),
        ..ClientConfig::default()
    })
    .map_err(|error| error.to_string())
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

/// The manifest of the image for the architecture.
async fn manifest(
    client: &Client,
    reference: &Reference,
    auth: &RegistryAuth,
    architecture: &str,
) -> Result<OciImageManifest, String> {
    let pull = async |reference: &Reference| {
        let pulled = client.pull_manifest(reference, auth).await;
        pulled
            .map(|(manifest, _)| manifest)
            .map_err(|error| error.to_string())
    };
    let index = match pull(reference).await? {
        OciManifest::Image(image) => return Ok(image),
        OciManifest::ImageIndex(index) => index,
    };
    let fits = index.manifests.iter().find(|entry| {
        let platform = entry.platform.as_ref();
        platform.is_some_and(|platform| platform.architecture.to_string() == architecture)
    });
    let fits = fits.ok_or_else(|| format!("it is not made for {architecture}"))?;
    match pull(&reference.clone_with_digest(fits.digest.clone())).await? {
        OciManifest::Image(image) => Ok(image),
        OciManifest::ImageIndex(_) => Err("its index names another index".into()),
    }
}

type Piece = io::Result<Vec<u8>>;

/// A layer, pulled by a thread of its own.
fn stream(client: &Client, reference: &Reference, layer: &OciDescriptor) -> io::Result<Pieces> {
    let (sender, pieces) = sync_channel(AHEAD);
    let (client, reference, layer) = (client.clone(), reference.clone(), layer.clone());
    let pull = move || {
        let done = runtime().and_then(|runtime| runtime.block_on(pull(&client, &reference, &layer, &sender)));
        if let Err(error) = done {
            // Nobody may want to know any more.
            let _ = sender.send(Err(error));
        }
    };
    thread::Builder::new().name("pull".into()).spawn(pull)?;
    Ok(Pieces {
        pieces,
        piece: Vec::new(),
        at: 0,
    })
}

async fn pull(
    client: &Client,
    reference: &Reference,
    layer: &OciDescriptor,
    pieces: &SyncSender<Piece>,
) -> io::Result<()> {
    let mut stream = client
        .pull_blob_stream(reference, layer)
        .await
        .map_err(io::Error::other)?;
    while let Some(piece) = stream.stream.next().await {
        if pieces.send(Ok(piece?.to_vec())).is_err() {
            break;
        }
    }
    Ok(())
}

/// What the thread pulled, in order.
struct Pieces {
    pieces: Receiver<Piece>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            // The thread ends when there is no more; how much that should be the digest knows.
            let Ok(piece) = self.pieces.recv() else {
                return Ok(0);
            };
            self.piece = piece?;
            self.at = 0;
        }
        let count = self.piece.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += count;
        Ok(count)
    }
}
