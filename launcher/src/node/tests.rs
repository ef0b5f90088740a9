use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::api::device_plugin_client::DevicePluginClient;
use super::api::registration_server::{Registration, RegistrationServer};
use super::api::{AllocateRequest, ContainerRequest, Empty, RegisterRequest};
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// The kubelet's side of registration.
struct Kubelet(mpsc::UnboundedSender<RegisterRequest>);

#[tonic::async_trait]
impl Registration for Kubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(Empty {}))
    }
}

impl Kubelet {
    /// As one that has just been started: what was in its directory is gone.
    fn start(
        directory: &Path,
    ) -> (
        mpsc::UnboundedReceiver<RegisterRequest>,
        tokio::task::JoinHandle<()>,
    ) {
        for entry in fs::read_dir(directory).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let (tell, registered) = mpsc::unbounded_channel();
        let listener = UnixListener::bind(directory.join("kubelet.sock")).unwrap();
        let server = Server::builder()
            .add_service(RegistrationServer::new(Kubelet(tell)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        (registered, tokio::spawn(async move { server.await.unwrap() }))
    }
}

fn plugin(home: &Path) -> Plugin {
    Plugin {
        name: "tun",
        file: Some("net/tun"),
        sockets: true,
        dev: home.join("dev"),
        plugins: home.join("plugins"),
        count: 3,
    }
}

async fn client(home: &Path, request: &RegisterRequest) -> DevicePluginClient<Channel> {
    let socket = home.join("plugins").join(&request.endpoint);
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    DevicePluginClient::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn the_kubelet_hears_of_a_device_and_of_its_loss_and_each_new_kubelet_anew() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::create_dir_all(home.join("dev/net")).unwrap();
    fs::create_dir(home.join("plugins")).unwrap();
    let (mut registered, kubelet) = Kubelet::start(&home.join("plugins"));
    let known = Arc::new(Known::default());
    let serving = plugin(home).serve({
        let known = Arc::clone(&known);
        move |is_known| known.set(1, is_known)
    });
    let serving = tokio::spawn(serving);

    // No device, no plugin.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(registered.try_recv().is_err());
    fs::write(home.join("dev/net/tun"), "").unwrap();
    let request = timeout(PATIENCE, registered.recv()).await.unwrap().unwrap();
    assert_eq!(
        (request.version.as_str(), request.resource_name.as_str()),
        ("v1beta1", "devices.kubevirt.io/tun")
    );

    let mut client = client(home, &request).await;
    let mut devices = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    let listed = timeout(PATIENCE, devices.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .devices;
    let listed: Vec<_> = listed
        .iter()
        .map(|d| (d.id.as_str(), d.health.as_str()))
        .collect();
    assert_eq!(
        listed,
        [("tun0", "Healthy"), ("tun1", "Healthy"), ("tun2", "Healthy")]
    );
    let ids = vec!["tun1".to_owned()];
    let containers = vec![ContainerRequest { ids }; 2];
    let given = client
        .allocate(AllocateRequest { containers })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(given.containers.len(), 2);
    let device = &given.containers[0].devices[0];
    assert_eq!(
        (device.host_path.as_str(), device.container_path.as_str()),
        ("/dev/net/tun", "/dev/net/tun")
    );
    assert_eq!(device.permissions, "rw");
    let mount = &given.containers[0].mounts[0];
    assert_eq!(mount.container_path, "/run/nacelle-node");
    assert_eq!(Path::new(&mount.host_path), home.join("plugins/nacelle"));
    assert!(mount.read_only);

    fs::remove_file(home.join("dev/net/tun")).unwrap();
    let lost = timeout(PATIENCE, devices.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .devices;
    assert!(lost.iter().all(|device| device.health == "Unhealthy"));
    fs::write(home.join("dev/net/tun"), "").unwrap();

    kubelet.abort();
    let _ = kubelet.await;
    let (mut registered, _kubelet) = Kubelet::start(&home.join("plugins"));
    let again = timeout(PATIENCE, registered.recv()).await.unwrap().unwrap();
    assert_eq!(again, request);
    serving.abort();
}

#[test]
fn a_node_is_healthy_when_the_kubelet_has_what_every_machine_needs() {
    let known = Known::default();
    assert_eq!(known.missing(), Some("kvm"));
    known.set(0, true);
    assert_eq!(known.missing(), Some("tun"));
    known.set(1, true);
    assert_eq!(known.missing(), None);
    known.set(0, false);
    assert_eq!(known.missing(), Some("kvm"));
}
