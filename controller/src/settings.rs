//! What the controller is told when it starts.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use hyper::Uri;

use crate::logging::Format;
use crate::trace;

/// Options of `nacelle-controller run`. In the cluster the Deployment gives them by the environment.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Namespace that it is installed in
    #[arg(long, env = "POD_NAMESPACE", default_value = "nacelle")]
    pub namespace: String,
    /// Name of this replica
    #[arg(long, env = "POD_NAME", default_value = "nacelle-controller")]
    pub replica: String,
    /// Service by which the API server and the launchers reach it
    #[arg(long, default_value = "nacelle-controller")]
    pub service: String,
    /// Address of the HTTPS server: admission, subresources, reports
    #[arg(long, default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Address of the proxy of uploads
    #[arg(long, default_value = "0.0.0.0:8444")]
    pub listen_uploads: SocketAddr,
    /// Image of the launcher pods
    #[arg(long, env = "NACELLE_IMAGE")]
    pub image: String,
    /// When to pull it: Always, IfNotPresent or Never
    #[arg(long, default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// Seconds that a node may be unreachable before its machines count as failed
    #[arg(long, env = "NACELLE_NODE_LOST_AFTER", value_parser = seconds, default_value = "300")]
    pub node_lost_after: Duration,
    /// Seconds between two looks at whether certificates are to be renewed
    #[arg(long, env = "NACELLE_CERTIFICATES_EVERY", value_parser = seconds, default_value = "60")]
    pub certificates_every: Duration,
    /// OTLP collector that hears where the time of each start goes, as http://HOST:4318 (HTTP/JSON); none by default
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "ADDRESS", value_parser = trace::collector)]
    pub otlp_endpoint: Option<Uri>,
    /// How log lines look, and those of the launcher pods that it makes
    #[arg(long, env = "NACELLE_LOG", value_enum, default_value_t, value_name = "FORMAT")]
    pub log: Format,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

impl Settings {
    /// Name of the server in its certificate.
    pub fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}
