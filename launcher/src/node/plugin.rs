//! A device plugin for one device file (the kubelet's device plugin API, v1beta1).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::api::device_plugin_server::{DevicePlugin, DevicePluginServer};
use super::api::registration_client::RegistrationClient;
use super::api::{
    AllocateRequest, AllocateResponse, ContainerResponse, Device, DeviceFile, Devices, Empty, Mount, Options,
    RegisterRequest, VERSION,
};
use super::sockets;

/// How often device, kubelet and socket are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Time for the kubelet's answer.
const PATIENCE: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A plugin.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    /// Of `devices.kubevirt.io/NAME`.
    pub name: &'static str,
    /// Its path below `/dev`; without one it is only the right to what comes along.
    pub file: Option<&'static str>,
    /// Whether the directory of the agent's sockets comes along ([`super::sockets`]).
    pub sockets: bool,
    /// The node's `/dev`.
    pub dev: PathBuf,
    /// The kubelet's directory.
    pub plugins: PathBuf,
    /// How many there are of it.
    pub count: u32,
}

impl Plugin {
    /// Serves for ever, as often as the kubelet starts anew. `known` hears whether the kubelet knows of the device.
    pub async fn serve(self, known: impl Fn(bool)) {
        loop {
            if self.is_there() && self.kubelet().is_some() {
                if let Err(error) = self.serve_once(&known).await {
                    log::warn!("devices.kubevirt.io/{}: {error}", self.name);
                }
                known(false);
            }
            sleep(LOOK).await;
        }
    }

    fn is_there(&self) -> bool {
        self.file.is_none_or(|file| self.dev.join(file).exists())
    }

    /// Which kubelet it is: each makes its socket anew.
    fn kubelet(&self) -> Option<u64> {
        fs::metadata(self.plugins.join("kubelet.sock"))
            .ok()
            .map(|socket| socket.ino())
    }

    fn socket(&self) -> String {
        format!("nacelle-{}.sock", self.name)
    }

    /// Serves the kubelet that is there, until it is another.
    async fn serve_once(&self, known: &impl Fn(bool)) -> Result<(), Failure> {
        let kubelet = self.kubelet();
        let path = self.plugins.join(self.socket());
        // Of an agent before us.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let (healthy, health) = watch::channel(true);
        let service = Service {
            plugin: self.clone(),
            health,
        };
        let served = Server::builder()
            .add_service(DevicePluginServer::new(service))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let attended = async {
            self.register().await?;
            known(true);
            log::info!(
                "devices.kubevirt.io/{}: the kubelet has {} of them",
                self.name,
                self.count
            );
            while path.exists() && self.kubelet() == kubelet {
                sleep(LOOK).await;
                healthy.send_if_modified(|healthy| {
                    let before = std::mem::replace(healthy, self.is_there());
                    before != *healthy
                });
            }
            log::info!("devices.kubevirt.io/{}: the kubelet is another", self.name);
            Ok(())
        };
        tokio::select! {
            served = served => served.map_err(Failure::from),
            attended = attended => attended,
        }
    }

    /// Presents this plugin to the kubelet, which then asks at its socket.
    async fn register(&self) -> Result<(), Failure> {
        let kubelet = self.plugins.join("kubelet.sock");
        let endpoint = Endpoint::from_shared(uri(&kubelet))?
            .timeout(PATIENCE)
            .connect_timeout(PATIENCE);
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: self.socket(),
            resource_name: format!("devices.kubevirt.io/{}", self.name),
        };
        let mut client = RegistrationClient::new(endpoint.connect().await?);
        client.register(request).await?;
        Ok(())
    }

    fn devices(&self, healthy: bool) -> Devices {
        let health = if healthy { "Healthy" } else { "Unhealthy" };
        let devices = (0..self.count).map(|number| Device {
            id: format!("{}{number}", self.name),
            health: health.to_owned(),
        });
        Devices {
            devices: devices.collect(),
        }
    }

    /// The file is the same for every device.
    fn allocate(&self, request: &AllocateRequest) -> AllocateResponse {
        let devices = self.file.iter().map(|file| {
            let path = format!("/dev/{file}");
            DeviceFile {
                container_path: path.clone(),
                host_path: path,
                permissions: "rw".to_owned(),
            }
        });
        let sockets = self.sockets.then(|| Mount {
            container_path: format!("/{}", sockets::IN_CONTAINERS),
            host_path: sockets::directory(&self.plugins).display().to_string(),
            read_only: true,
        });
        let container = ContainerResponse {
            devices: devices.collect(),
            mounts: sockets.into_iter().collect(),
        };
        AllocateResponse {
            containers: vec![container; request.containers.len()],
        }
    }
}

fn uri(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

struct Service {
    plugin: Plugin,
    health: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<Devices, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<Options>, Status> {
        Ok(Response::new(Options {}))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let plugin = self.plugin.clone();
        let health = WatchStream::new(self.health.clone());
        Ok(Response::new(Box::pin(
            health.map(move |healthy| Ok(plugin.devices(healthy))),
        )))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        Ok(Response::new(self.plugin.allocate(request.get_ref())))
    }
}
