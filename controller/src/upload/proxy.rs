//! The proxy: whoever has a token sends a disk, and it goes on to the pod that waits for it, as fast as that takes it.
//!
//! It listens on a port of its own, so that this may be shown to the outside and nothing else. The pod is found by the claim
//! that the token names; each of the two shows the other a certificate.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, CONTENT_TYPE, HOST,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;
use kube::{Api, ResourceExt};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::target;
use super::token::{Claims, verified};
use crate::certificates;
use crate::context::Context;
use crate::datavolume::pod;

/// Where disks are sent; `alpha` for who has not heard of the other.
const PATHS: [&str; 5] = [
    "upload",
    "upload-async",
    "upload-archive",
    "upload-form",
    "upload-form-async",
];
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// How long the pod is waited for, and how often it is looked at.
const READY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(500);
/// Time to connect to it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for all of an upload.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Bytes of an answer that are passed on, and of the log that are looked at for the certificate.
const ANSWER: usize = 64 << 10;
const LOG: i64 = 16 << 10;
/// The name in the pod's certificate.
const NAME: &str = "nacelle-importer";

/// Why an upload is not taken.
type Refusal = (StatusCode, String);

/// The paths of uploads, and nothing else.
pub fn router(context: Arc<Context>) -> Router {
    let mut router = Router::new();
    for version in VERSIONS {
        for path in PATHS {
            router = router.route(&format!("/{version}/{path}"), any(answer));
        }
    }
    router.with_state(context).route("/healthz", get(async || "ok"))
}

async fn answer(State(context): State<Arc<Context>>, request: Request) -> Response {
    let mut response = match *request.method() {
        // A browser asks before it sends.
        Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        Method::HEAD => match ready(&context, request.headers()).await {
            Ok(_) => StatusCode::OK.into_response(),
            Err(refusal) => refusal.into_response(),
        },
        Method::POST | Method::PUT => match pass(&context, request).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        },
        _ => (StatusCode::METHOD_NOT_ALLOWED, "an upload is a POST").into_response(),
    };
    // Who shows a token was given it; where its page comes from says nothing more.
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (ACCESS_CONTROL_ALLOW_METHODS, "HEAD, POST, PUT"),
        (
            ACCESS_CONTROL_ALLOW_HEADERS,
            "Authorization, Content-Type, X-Requested-With",
        ),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A pod that waits for the upload that a request is about.
struct Ready {
    address: String,
    certificate: CertificateDer<'static>,
}

async fn ready(context: &Context, headers: &HeaderMap) -> Result<Ready, Refusal> {
    let refused = |why: &str| (StatusCode::UNAUTHORIZED, why.to_owned());
    let token =
        bearer(headers).ok_or_else(|| refused("an upload needs a token: Authorization: Bearer TOKEN"))?;
    let keys = context.trusted.borrow().keys.clone();
    let claims = verified(token, keys.all(), Timestamp::now()).map_err(refused)?;
    let end = Instant::now() + READY;
    loop {
        match look(context, &claims).await? {
            Ok(ready) => return Ok(ready),
            Err(why) if Instant::now() > end => return Err((StatusCode::SERVICE_UNAVAILABLE, why)),
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// The pod, or why it does not wait yet.
async fn look(context: &Context, token: &Claims) -> Result<Result<Ready, String>, Refusal> {
    let failed = |error: kube::Error| {
        log::warn!("upload to {}/{}: {error}", token.namespace, token.name);
        (
            StatusCode::BAD_GATEWAY,
            "the API server cannot be asked".to_owned(),
        )
    };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &token.namespace);
    let claim = claims.get_opt(&token.name).await.map_err(failed)?;
    let Some(claim) = claim.filter(|claim| claim.uid().as_ref() == Some(&token.uid)) else {
        let gone = format!(
            "PVC {} that the token is for is not there any more; ask for another",
            token.name
        );
        return Err((StatusCode::UNAUTHORIZED, gone));
    };
    let target = target(&claim).map_err(|why| (StatusCode::CONFLICT, why))?;
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &token.namespace);
    let name = pod::name(&target.volume);
    let not_yet = Ok(Err(format!(
        "pod {name} does not wait for an upload to PVC {} yet",
        token.name
    )));
    let Some(pod) = pods.get_opt(&name).await.map_err(failed)?.filter(pod::is_ready) else {
        return not_yet;
    };
    let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.clone()) else {
        return not_yet;
    };
    let head = LogParams {
        limit_bytes: Some(LOG),
        ..LogParams::default()
    };
    let Some(certificate) = certificate(&pods.logs(&name, &head).await.map_err(failed)?) else {
        return not_yet;
    };
    Ok(Ok(Ready { address, certificate }))
}

/// What the pod says that it shows.
fn certificate(log: &str) -> Option<CertificateDer<'static>> {
    let said = log.lines().find_map(|line| line.strip_prefix("listens "))?;
    STANDARD.decode(said).ok().map(CertificateDer::from)
}

/// Passes an upload on, and its answer back.
async fn pass(context: &Context, request: Request) -> Result<Response, Refusal> {
    let ready = ready(context, request.headers()).await?;
    let failed = |why: String| (StatusCode::BAD_GATEWAY, format!("the pod cannot be asked: {why}"));
    let connected = timeout(PATIENCE, connect(context, &ready)).await;
    let stream = connected
        .unwrap_or_else(|_| Err("it does not answer".into()))
        .map_err(failed)?;
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    tokio::spawn(connection);
    let mut onward = hyper::Request::post(request.uri().path()).header(HOST, NAME);
    if let Some(kind) = request.headers().get(CONTENT_TYPE) {
        onward = onward.header(CONTENT_TYPE, kind);
    }
    // The body says how long it is, if that is known; one that breaks off ends the connection.
    let onward = onward
        .body(request.into_body())
        .map_err(|error| failed(error.to_string()))?;
    let response = timeout(LONGEST, sender.send_request(onward)).await;
    let response = response
        .map_err(|_| failed("an upload may take a day".into()))?
        .map_err(|error| failed(error.to_string()))?;
    let status = response.status();
    let said = timeout(PATIENCE, Limited::new(response.into_body(), ANSWER).collect()).await;
    let said = match said {
        Ok(Ok(said)) => said.to_bytes(),
        Ok(Err(_)) | Err(_) => return Err(failed("its answer breaks off".into())),
    };
    Ok((status, Body::from(said)).into_response())
}

async fn connect(context: &Context, ready: &Ready) -> Result<TlsStream<TcpStream>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let material = context.trusted.borrow().material.clone();
    let shown = certificates::client(&material, Timestamp::now()).map_err(|error| text(&error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(shown.certificate.as_bytes()).collect();
    let chain = chain.map_err(|error| text(&error))?;
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).map_err(|error| text(&error))?;
    let mut roots = RootCertStore::empty();
    roots
        .add(ready.certificate.clone())
        .map_err(|error| text(&error))?;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| text(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| text(&error))?;
    let host = match ready.address.contains(':') {
        true => format!("[{}]:{}", ready.address, pod::UPLOAD_PORT),
        false => format!("{}:{}", ready.address, pod::UPLOAD_PORT),
    };
    let stream = TcpStream::connect(host).await.map_err(|error| text(&error))?;
    stream.set_nodelay(true).map_err(|error| text(&error))?;
    let name = ServerName::try_from(NAME).map_err(|error| text(&error))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    stream.map_err(|error| text(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_bearers() {
        for (header, token) in [
            (Some("Bearer abc"), Some("abc")),
            (Some("bearer  abc "), Some("abc")),
            (Some("Basic abc"), None),
            (Some("abc"), None),
            (None, None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, header.parse().unwrap());
            }
            assert_eq!(bearer(&headers), token, "{header:?}");
        }
    }

    #[test]
    fn a_pod_says_what_it_shows() {
        let said = certificate("progress N/A\nlistens AQID\nprogress 1.00%\n").unwrap();
        assert_eq!(said.as_ref(), [1, 2, 3]);
        assert_eq!(certificate("listens <b>\n"), None);
        assert_eq!(certificate("progress N/A\n"), None);
    }
}
