//! The HTTPS server: admission, the aggregated API and reports share one port and one certificate. Uploads have a port of
//! their own, where nobody is asked for a certificate.

mod front_proxy;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

pub use front_proxy::{FrontProxy, User};

use crate::certificates::Material;

/// Connections at once. The API server keeps few; launchers come and go.
const CONNECTIONS: usize = 4096;
/// Time for a handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the API server and launchers may take for a request's head, and be silent between requests. Go's clients, such
/// as the API server, keep a connection for 90 s: who ends it must be they, or a request that is on its way meets its end.
pub const IDLE: Duration = Duration::from_secs(100);
/// The same for who uploads, which may be anybody.
pub const IDLE_IN_PUBLIC: Duration = Duration::from_secs(10);

/// What TLS needs, replaced as a whole when something of it changes.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    front_proxy: Option<Arc<FrontProxy>>,
}

impl Tls {
    /// Of these certificates; `front_proxy` says whose word on users is taken, if anybody's is.
    ///
    /// # Errors
    /// A certificate or key that is none.
    pub fn new(material: &Material, front_proxy: Option<FrontProxy>) -> Result<Self> {
        let provider = Arc::new(default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let chain =
            CertificateDer::pem_slice_iter(material.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(material.key.as_bytes())?;
        // A client certificate is not required, discovery and probes have none; one that is shown must be good.
        let roots = front_proxy.as_ref().map(FrontProxy::roots);
        let builder = match roots.filter(|roots| !roots.is_empty()) {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider)
                    .allow_unauthenticated()
                    .build()
                    .context("the request header's authority")?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key)?;
        // WebSockets are upgrades of HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls {
            config: Arc::new(config),
            front_proxy: front_proxy.map(Arc::new),
        })
    }
}

/// Who is at the other end, as far as its certificate says.
#[derive(Clone)]
pub struct Peer {
    /// Whose word on users is taken, if it is this peer's.
    pub front_proxy: Option<Arc<FrontProxy>>,
}

/// Serves until the process ends; `tls` gives what is to be shown now. A connection that is `idle` for so long is ended.
///
/// # Errors
/// The listener is broken.
pub async fn serve(
    listener: TcpListener,
    idle: Duration,
    tls: impl Fn() -> Tls,
    router: Router,
) -> Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await?;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router) = (tls(), router.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(stream, idle, tls, router).await {
                log::debug!("connection from {from}: {error:#}");
            }
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, idle: Duration, tls: Tls, router: Router) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = timeout(PATIENCE, TlsAcceptor::from(tls.config.clone()).accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let allows = |proxy: &Arc<FrontProxy>| certificate.is_some_and(|certificate| proxy.allows(certificate));
    let peer = Peer {
        front_proxy: tls.front_proxy.filter(allows),
    };
    let service = router.map_request(move |mut request: Request<_>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades()
        .await?;
    Ok(())
}
