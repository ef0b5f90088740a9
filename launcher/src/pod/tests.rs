//! Pods in directories of the tests' own: real machines, with the small guests of [`crate::testing`].

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;

use super::*;
use crate::net::pod::API_PORT;
use crate::node::metrics::{Machines, listen};
use crate::testing::{PARROT, guest};

const PATIENCE: Duration = Duration::from_secs(60);
/// A pod's port 22480 is one for all tests of this process.
static LOOPBACK: Mutex<()> = Mutex::const_new(());

struct Pod {
    home: TempDir,
}

impl Pod {
    /// With this instance's spec, besides its kernel and memory, and the parrot as its kernel.
    fn new(spec: serde_json::Value) -> Pod {
        let home = tempfile::tempdir().unwrap();
        for directory in ["etc/nacelle", "run/nacelle/files", "dev", "var/lib/nacelle"] {
            fs::create_dir_all(home.path().join(directory)).unwrap();
        }
        fs::write(home.path().join("dev/termination-log"), "").unwrap();
        let mut instance = json!({
            "metadata": {"name": "parrot", "namespace": "team"},
            "spec": {
                "domain": {
                    "memory": {"guest": "16Mi"},
                    "firmware": {"kernelBoot": {"container": {"image": "example.com/parrot:1", "kernelPath": "/kernel"}}},
                    "devices": {"autoattachMemBalloon": false},
                },
            },
        });
        for (key, value) in spec.as_object().unwrap() {
            instance["spec"][key] = value.clone();
        }
        fs::write(home.path().join("etc/nacelle/vmi.json"), instance.to_string()).unwrap();
        guest(home.path(), PARROT);
        let pod = Pod { home };
        pod.hands_out("kernel-boot.kernel", &pod.home.path().join("kernel"));
        pod
    }

    fn socket(&self, volume: &str) -> UnixListener {
        let socket = self.home.path().join(format!("run/nacelle/files/{volume}.sock"));
        let _ = fs::remove_file(&socket);
        UnixListener::bind(socket).unwrap()
    }

    /// Does what `serve-file` does.
    fn hands_out(&self, volume: &str, file: &Path) {
        let listener = self.socket(volume);
        let file = fs::File::open(file).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsFd;
            for stream in listener.incoming().flatten() {
                let fds = [file.as_fd()];
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut rights = rustix::net::SendAncillaryBuffer::new(&mut space);
                rights.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
                let byte = [std::io::IoSlice::new(b"f")];
                let flags = rustix::net::SendFlags::empty();
                rustix::net::sendmsg(&stream, &byte, &mut rights, flags).unwrap();
            }
        });
    }

    fn root(&self) -> Root {
        Root {
            root: self.home.path().to_owned(),
        }
    }

    fn run(&self) -> std::thread::JoinHandle<Result<Status>> {
        let command = Command::Run {
            logged: false,
            root: self.root(),
        };
        std::thread::spawn(move || command.run())
    }

    fn message(&self) -> String {
        fs::read_to_string(self.root().termination_log()).unwrap()
    }
}

/// Asks the machine's API as the controller does.
async fn ask(method: &str, path: &str) -> String {
    ask_with(method, path, "").await
}

async fn ask_with(method: &str, path: &str, body: &str) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], API_PORT));
    let until = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let request = head + body;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_pods_machine_runs_is_asked_and_logged_and_ends() {
    let _alone = LOOPBACK.lock().await;
    let pod = Pod::new(json!({}));
    let running = pod.run();
    assert!(ask("GET", "/v1/machine").await.contains(r#""state":"Running""#));
    let mut log = UnixStream::connect(pod.root().console_log()).await.unwrap();
    let mut said = [0];
    log.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b">");
    assert!(
        ask("PUT", "/v1/machine/pause")
            .await
            .contains(r#""state":"Paused""#)
    );
    assert!(
        ask("PUT", "/v1/machine/resume")
            .await
            .contains(r#""state":"Running""#)
    );
    ask("PUT", "/v1/machine/stop").await;
    assert_eq!(running.join().unwrap().unwrap(), Status::Done);
    assert_eq!(pod.message(), "the guest powered off");
    let mut rest = Vec::new();
    log.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn a_claim_that_another_pod_has_becomes_a_disk_of_the_machine_that_runs() {
    let _alone = LOOPBACK.lock().await;
    let (machine, attachment) = (Pod::new(json!({})), Pod::new(json!({})));
    // The agent, and its directory as the kubelet mounts it into both.
    let node = tempfile::tempdir().unwrap();
    tokio::spawn(volumes::serve(volumes::listen(node.path()).unwrap(), 8));
    for pod in [&machine, &attachment] {
        let mounted = pod.home.path().join("run/nacelle-node");
        std::os::unix::fs::symlink(node.path().join("nacelle"), mounted).unwrap();
    }
    let claim = attachment.home.path().join("claim");
    fs::create_dir(&claim).unwrap();
    fs::write(claim.join("disk.img"), [0; 4096]).unwrap();
    let volume = Command::Volume {
        path: claim.clone(),
        read_only: false,
        root: attachment.root(),
    };
    std::thread::spawn(move || volume.run());
    let running = machine.run();
    assert!(ask("GET", "/v1/machine").await.contains(r#""state":"Running""#));

    let word = loop {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", 22483)).await {
            let mut word = String::new();
            stream.read_to_string(&mut word).await.unwrap();
            break word.trim().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let attach = json!({"disk": {"name": "data"}, "handover": word}).to_string();
    let said = ask_with("PUT", "/v1/machine/attach", &attach).await;
    assert!(
        said.contains(r#""plugged":[{"name":"data","leaving":false}]"#),
        "{said}"
    );
    // The machine has the lock of the file that only the other pod sees.
    let file = fs::File::options()
        .write(true)
        .open(claim.join("disk.img"))
        .unwrap();
    assert!(crate::testing::is_locked(&file));
    ask_with("PUT", "/v1/machine/detach", r#"{"disk": "data"}"#).await;
    // This guest lets go of nothing by itself.
    ask("PUT", "/v1/machine/reset").await;
    while ask("GET", "/v1/machine").await.contains("plugged") {}
    assert!(!crate::testing::is_locked(&file));
    ask("PUT", "/v1/machine/stop").await;
    assert_eq!(running.join().unwrap().unwrap(), Status::Done);
}

#[tokio::test]
async fn a_pods_machine_tells_the_node_agent_what_it_uses() {
    let _alone = LOOPBACK.lock().await;
    let pod = Pod::new(json!({}));
    // The directory that comes along with /dev/kvm.
    let plugins = tempfile::tempdir().unwrap();
    let machines = Machines::new(4);
    tokio::spawn(machines.clone().meet(listen(plugins.path()).unwrap()));
    std::os::unix::fs::symlink(
        plugins.path().join("nacelle"),
        pod.home.path().join(IN_CONTAINERS),
    )
    .unwrap();
    let running = pod.run();
    let figures = loop {
        if let [figures] = &machines.figures().await[..] {
            break figures.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(
        (figures.namespace.as_str(), figures.name.as_str()),
        ("team", "parrot")
    );
    assert_eq!(figures.stats.machine.memory, 16 << 20);
    // Those of other tests of this process may be among them.
    assert!(figures.each_vcpu.iter().any(|vcpu| vcpu.id == 0));
    assert!(figures.stats.resident > 0 && figures.time.user + figures.time.system >= 0.0);
    ask("PUT", "/v1/machine/kill").await;
    assert_eq!(running.join().unwrap().unwrap(), Status::Killed);
    while !machines.figures().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_machine_that_starts_paused_waits_for_a_resume() {
    let _alone = LOOPBACK.lock().await;
    let pod = Pod::new(json!({"startStrategy": "Paused"}));
    let running = pod.run();
    assert!(ask("GET", "/v1/machine").await.contains(r#""state":"Paused""#));
    let mut log = UnixStream::connect(pod.root().console_log()).await.unwrap();
    let mut said = [0];
    let nothing = tokio::time::timeout(Duration::from_millis(200), log.read_exact(&mut said)).await;
    assert!(nothing.is_err(), "it ran");
    ask("PUT", "/v1/machine/resume").await;
    log.read_exact(&mut said).await.unwrap();
    ask("PUT", "/v1/machine/kill").await;
    assert_eq!(running.join().unwrap().unwrap(), Status::Killed);
    assert_eq!(pod.message(), "it was killed");
}

#[test]
fn what_keeps_a_machine_from_starting_is_told_to_the_kubelet() {
    let _alone = LOOPBACK.blocking_lock();
    let pod = Pod::new(json!({}));
    let listener = pod.socket("kernel-boot.kernel");
    let container = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"eno such file"));
    let error = pod.run().join().unwrap().unwrap_err();
    container.join().unwrap().unwrap();
    assert_eq!(error.status(), Status::NotFound);
    assert_eq!(pod.message(), "volume kernel-boot.kernel: no such file");

    let pod = Pod::new(json!({"resourceClaims": [{"name": "gpu"}]}));
    let error = pod.run().join().unwrap().unwrap_err();
    assert_eq!(error.status(), Status::Manifest);
    assert!(
        pod.message().contains("team/parrot is refused"),
        "{}",
        pod.message()
    );
}

#[tokio::test]
async fn a_machine_waits_for_containers_of_images_and_those_that_serve_it_hear_of_its_end() {
    let _alone = LOOPBACK.lock().await;
    let pod = Pod::new(json!({}));
    let socket = pod.home.path().join("run/nacelle/files/kernel-boot.kernel.sock");
    fs::remove_file(socket).unwrap();
    let running = pod.run();
    let until = Instant::now() + PATIENCE;
    let mut serves = loop {
        match UnixStream::connect(pod.root().machine()).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    pod.hands_out("kernel-boot.kernel", &pod.home.path().join("kernel"));
    ask("PUT", "/v1/machine/stop").await;
    assert_eq!(running.join().unwrap().unwrap(), Status::Done);
    assert!(serves.read_u8().await.is_err());
}

#[test]
fn a_log_ends_with_what_its_machine_said_last() {
    let pod = Pod::new(json!({}));
    let log = |root: Root| std::thread::spawn(move || Command::ConsoleLog(root).run());
    let machine = UnixListener::bind(pod.root().machine()).unwrap();

    let ends = log(pod.root());
    let alive = machine.accept().unwrap();
    let line = UnixListener::bind(pod.root().console_log()).unwrap();
    let (mut says, _) = line.accept().unwrap();
    drop(alive);
    says.write_all(b"last words\n").unwrap();
    assert!(!ends.is_finished());
    drop((says, line));
    assert_eq!(ends.join().unwrap().unwrap(), Status::Done);

    // This one never had a line.
    let ends = log(pod.root());
    drop(machine.accept().unwrap());
    assert_eq!(ends.join().unwrap().unwrap(), Status::Done);
}

mod storage {
    use nacelle_vmm::config::DiskFormat;

    use super::super::storage::Mounts;
    use super::*;
    use crate::convert::FilesKind;
    use crate::storage::supply::Supply;

    struct Bed(TempDir);

    impl Bed {
        fn with(files: &[(&str, &str)]) -> Bed {
            let bed = Bed(tempfile::tempdir().unwrap());
            for (path, content) in files {
                let path = bed.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            bed
        }

        fn mounts(&self) -> Mounts {
            Mounts::new(self.0.path())
        }
    }

    #[test]
    fn a_claim_is_its_disk_and_an_empty_one_gets_one() {
        let bed = Bed::with(&[("var/run/kubevirt-private/vmi-disks/root/disk.img", "disk")]);
        let disks = bed.0.path().join("var/run/kubevirt-private/vmi-disks");
        let (path, format) = bed.mounts().claim("root", "root-claim").unwrap();
        assert_eq!((path, format), (disks.join("root/disk.img"), DiskFormat::Raw));
        assert_eq!(fs::read_to_string(disks.join("root/disk.img")).unwrap(), "disk");

        fs::create_dir(disks.join("data")).unwrap();
        let (path, _) = bed.mounts().claim("data", "data-claim").unwrap();
        let size = fs::metadata(path).unwrap().len();
        assert!(size > 0 && size % (1 << 20) == 0, "{size}");
        assert!(bed.mounts().claim("gone", "gone-claim").is_err());
    }

    #[test]
    fn files_are_read_as_the_kubelet_lays_them_out() {
        // The kubelet changes all files of a volume at once, by one link.
        let bed = Bed::with(&[(
            "var/run/kubevirt-private/config-map/settings/..now/sub/b.conf",
            "b",
        )]);
        let volume = bed.0.path().join("var/run/kubevirt-private/config-map/settings");
        fs::write(volume.join("..now/a.conf"), "a").unwrap();
        for (link, to) in [
            ("..data", "..now"),
            ("a.conf", "..data/a.conf"),
            ("sub", "..data/sub"),
        ] {
            std::os::unix::fs::symlink(to, volume.join(link)).unwrap();
        }
        let files = bed.mounts().files("settings", FilesKind::ConfigMap).unwrap();
        let expected = [("a.conf", "a"), ("sub/b.conf", "b")];
        assert_eq!(
            files,
            expected.map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec()))
        );
    }

    #[test]
    fn cloud_init_reads_its_secrets_by_either_spelling() {
        let bed = Bed::with(&[
            ("var/run/kubevirt-private/cloud-init/a/userdata", "#cloud-config"),
            ("var/run/kubevirt-private/cloud-init/b/userData", "#!/bin/sh"),
            ("var/run/kubevirt-private/cloud-init/b/networkData", "version: 2"),
        ]);
        let mounts = bed.mounts();
        assert_eq!(mounts.secret("a", false).unwrap(), b"#cloud-config");
        assert_eq!(mounts.secret("b", false).unwrap(), b"#!/bin/sh");
        assert_eq!(mounts.secret("b", true).unwrap(), b"version: 2");
        let error = mounts.secret("a", true).unwrap_err();
        assert!(
            error.to_string().contains("no key networkdata or networkData"),
            "{error}"
        );
    }
}
