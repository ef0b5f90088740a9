//! What people do with a Linux guest in a pod. It takes a while to boot where KVM is software, so most of them share one.
#![cfg(feature = "cluster")]

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use serde_json::Value;
use support::{Console, Namespace, PATIENCE, Person, claim, is, linux, output, script, uid};

/// The guest that they share: it serves a page and SSH.
struct Linux {
    here: Namespace,
    console: Mutex<Console>,
    key: PathBuf,
}

impl Linux {
    fn shared() -> &'static Linux {
        static SHARED: OnceLock<Linux> = OnceLock::new();
        SHARED.get_or_init(Linux::boot)
    }

    fn console(&self) -> MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn boot() -> Linux {
        let here = Namespace::new("linux");
        let me = &here.admin;
        let key = std::env::temp_dir().join("nacelle-cluster-key");
        let _ = std::fs::remove_file(&key);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.unwrap().success());
        let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();

        me.kubectl(&[
            "create",
            "configmap",
            "settings",
            "--from-literal=greeting=good morning",
        ]);
        me.kubectl(&[
            "create",
            "secret",
            "generic",
            "password",
            "--from-literal=word=open sesame",
        ]);
        me.kubectl(&["create", "serviceaccount", "robot"]);
        secret(me, "keys", "all=ssh-ed25519 first ann@desk");
        secret(me, "logins", "ann=geheim");
        claim(
            me,
            "golden",
            "printf 'as it was' >disk.img; truncate -s 1M disk.img",
        );
        let init = format!("cloudInitNoCloud: {{userData: '{}'}}", public.trim());
        me.apply(&linux(
            "guest",
            "running: true",
            "readinessProbe: {httpGet: {port: 80}, periodSeconds: 10, timeoutSeconds: 10}
      accessCredentials:
      - sshPublicKey: {source: {secret: {secretName: keys}}, propagationMethod: {noCloud: {}}}
      - sshPublicKey: {source: {secret: {secretName: keys}}, propagationMethod: {qemuGuestAgent: {users: [ann]}}}
      - userPassword: {source: {secret: {secretName: logins}}, propagationMethod: {qemuGuestAgent: {}}}",
            &[
                ("init", &init),
                ("settings", "configMap: {name: settings}"),
                ("scratch", "emptyDisk: {capacity: 32Mi}"),
                ("password", "secret: {secretName: password}"),
                (
                    "labels",
                    "downwardAPI: {fields: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}",
                ),
                ("robot", "serviceAccount: {serviceAccountName: robot}"),
                (
                    "golden",
                    "ephemeral: {persistentVolumeClaim: {claimName: golden}}",
                ),
                (
                    "agent",
                    "containerDisk: {image: 'localhost/agent:1', imagePullPolicy: Never}",
                ),
            ],
        ));
        me.until("vmi", "guest", "running", |vmi| {
            vmi["status"]["phase"] == "Running"
        });
        let mut console = me.console("guest");
        console.shell();
        // Nobody answers its readiness probe yet.
        assert!(!is(&me.get("vmi", "guest"), "Ready"));
        console.runs("mkdir /www; echo served by the guest >/www/index.html; httpd -h /www");
        console.runs("mount -o ro /dev/vdb /mnt; cp /mnt/user-data /root/.ssh/authorized_keys; umount /mnt");
        console.runs("chmod 700 /root/.ssh; chmod 600 /root/.ssh/authorized_keys; dropbear -R");
        me.kubectl(&["wait", "--for=condition=Ready", "vm/guest", "--timeout=180s"]);

        let client = "{apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {terminationGracePeriodSeconds: 0, \
            containers: [{name: client, image: 'localhost/busybox:1', imagePullPolicy: Never, command: [sleep, inf]}]}}";
        me.apply(client);
        me.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=180s"]);
        Linux {
            here,
            console: Mutex::new(console),
            key,
        }
    }
}

/// Makes a Secret, or changes it.
fn secret(me: &Person, name: &str, entry: &str) {
    let (key, value) = entry.split_once('=').unwrap();
    me.apply(&format!(
        "{{apiVersion: v1, kind: Secret, metadata: {{name: {name}}}, stringData: {{{key}: '{value}'}}}}"
    ));
}

#[test]
fn it_has_what_its_manifest_says_in_a_pod_that_may_do_nothing() {
    let linux = Linux::shared();
    let me = &linux.here.admin;
    let mut console = linux.console();
    assert_eq!(console.runs("nproc"), "2");
    assert_eq!(console.runs("cat /sys/block/vda/size"), "131072");
    assert_eq!(console.runs("cat /sys/block/vdc/serial"), "settings");
    let written = "echo kept | dd of=/dev/vdd conv=fsync 2>/dev/null; head -c 4 /dev/vdd";
    assert_eq!(console.runs(written), "kept");

    let pod = me.pod("guest");
    let compute = &pod["spec"]["containers"][0];
    let security = &compute["securityContext"];
    assert_eq!(compute["resources"]["limits"]["devices.kubevirt.io/kvm"], "1");
    assert_eq!(
        (
            &security["runAsUser"],
            &security["runAsNonRoot"],
            &security["privileged"]
        ),
        (&107.into(), &true.into(), &false.into())
    );
    assert_eq!(security["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    let node = me.get("node", pod["spec"]["nodeName"].as_str().unwrap());
    assert_eq!(node["status"]["allocatable"]["devices.kubevirt.io/kvm"], "1k");
}

#[test]
fn what_the_cluster_knows_comes_to_it_as_disks() {
    let linux = Linux::shared();
    let mut console = linux.console();
    let mut on = |disk: &str, command: &str| {
        console.runs(&format!(
            "mount -o ro /dev/{disk} /mnt; cd /mnt; {command}; cd /; umount /mnt"
        ))
    };
    assert_eq!(on("vdc", "cat greeting"), "good morning");
    assert_eq!(on("vde", "cat word"), "open sesame");
    let labels = on("vdf", "cat labels");
    assert!(labels.contains(r#"app="guest""#), "{labels}");
    assert_eq!(on("vdg", "cat namespace"), "linux");
    let meta_data = on("vdb", "cat meta-data");
    assert!(
        meta_data.contains(r#""public-keys":["ssh-ed25519 first ann@desk"]"#),
        "{meta_data}"
    );
    // A token of the account, for the API server: a header, claims, a signature.
    let payload = on("vdg", "cut -d . -f 2 token | tr _- /+ | base64 -d 2>/dev/null");
    assert!(payload.contains("system:serviceaccount:linux:robot"), "{payload}");
}

#[test]
fn what_it_writes_to_an_ephemeral_disk_is_its_own() {
    let linux = Linux::shared();
    let mut console = linux.console();
    assert_eq!(console.runs("head -c 9 /dev/vdh"), "as it was");
    let written = "echo changed | dd of=/dev/vdh conv=notrunc,fsync 2>/dev/null; head -c 7 /dev/vdh";
    assert_eq!(console.runs(written), "changed");
    let claimed = ["1", "head", "-c", "9", "/mnt/shared/golden/disk.img"];
    let claimed = output(script("in-node").args(claimed), "");
    assert_eq!(String::from_utf8_lossy(&claimed.stdout), "as it was");
}

#[test]
fn its_agent_says_what_it_is_and_freezes_it() {
    let linux = Linux::shared();
    let me = &linux.here.admin;
    // The others may write when it is over.
    let mut console = linux.console();
    assert!(!is(&me.get("vmi", "guest"), "AgentConnected"));
    let refused = me.virtctl_fails(&["userlist", "guest"]);
    assert!(
        refused.contains("VMI does not have guest agent connected"),
        "{refused}"
    );
    console.runs("printf 'ID=small\\nPRETTY_NAME=\"A small Linux\"\\n' >/etc/os-release");
    console.runs("echo 'ann::1000:1000::/home/ann:/bin/sh' >>/etc/passwd; echo 'ann:x:1000:' >>/etc/group");
    console.runs("mkdir -p /home/ann; chown 1000:1000 /home/ann");
    console.runs("mkdir /agent; mount -o ro /dev/vdi /agent; /agent/start");

    let vmi = me.until("vmi", "guest", "connected to its agent", |vmi| {
        is(vmi, "AgentConnected")
    });
    let status = &vmi["status"];
    assert_eq!(status["guestOSInfo"]["prettyName"], "A small Linux", "{status:#}");
    assert_eq!(status["guestOSInfo"]["id"], "small");
    let interface = &status["interfaces"][0];
    assert_eq!(
        (&interface["interfaceName"], &interface["infoSource"]),
        (&"eth0".into(), &"domain, guest-agent".into())
    );
    assert_eq!(interface["ipAddress"], me.pod("guest")["status"]["podIP"]);
    me.until("vm", "guest", "connected to its agent", |vm| {
        is(vm, "AgentConnected")
    });

    // What takes it longer to say comes later.
    let asked = |subcommand: &str| json_in(&me.virtctl(&[subcommand, "guest"]));
    let end = Instant::now() + PATIENCE;
    let mut info = asked("guestosinfo");
    while info["fsInfo"]["disks"].as_array().is_none_or(Vec::is_empty) {
        assert!(Instant::now() < end, "{info:#}");
        info = asked("guestosinfo");
    }
    assert!(
        info["guestAgentVersion"].as_str().unwrap().starts_with("7."),
        "{info:#}"
    );
    assert_eq!(
        (&info["os"]["machine"], &info["hostname"]),
        (&"x86_64".into(), &"guest".into())
    );
    let list = asked("fslist");
    let mounted = list["items"].as_array().unwrap();
    let root = mounted.iter().find(|disk| disk["mountPoint"] == "/").unwrap();
    assert_eq!(root["fileSystemType"], "ext4", "{list:#}");
    assert!(asked("userlist")["items"].is_array());

    // Its users have the keys and passwords of the Secrets, and those of a Secret that is changed.
    me.until("vmi", "guest", "in step with its credentials", |vmi| {
        is(vmi, "AccessCredentialsSynchronized")
    });
    assert!(me.events().contains("Access credentials sync successful."));
    let keys = "cat /home/ann/.ssh/authorized_keys";
    assert_eq!(console.runs(keys), "ssh-ed25519 first ann@desk");
    let password = console.runs("grep ^ann: /etc/passwd | cut -d : -f 2");
    assert!(password.starts_with('$') && password.len() > 20, "{password}");
    secret(me, "keys", "all=ssh-ed25519 second ann@desk");
    let end = Instant::now() + PATIENCE;
    while console.runs(keys) != "ssh-ed25519 second ann@desk" {
        assert!(Instant::now() < end, "{}", console.runs(keys));
    }

    let body = std::env::temp_dir().join("nacelle-freeze.json");
    std::fs::write(&body, r#"{"unfreezeTimeout": "5m0s"}"#).unwrap();
    let put = |what: &str| {
        let path = format!(
            "/apis/subresources.kubevirt.io/v1/namespaces/linux/virtualmachineinstances/guest/{what}"
        );
        me.kubectl(&["replace", "--raw", &path, "-f", body.to_str().unwrap()]);
    };
    put("freeze");
    me.until("vmi", "guest", "frozen", |vmi| {
        vmi["status"]["fsFreezeStatus"] == "frozen"
    });
    put("unfreeze");
    me.until("vmi", "guest", "thawed", |vmi| {
        vmi["status"]["fsFreezeStatus"].is_null()
    });
    assert_eq!(console.runs("echo kept >/root/note; cat /root/note"), "kept");
}

/// What a command printed as JSON, beside what else it says.
fn json_in(said: &str) -> Value {
    let begin = said.find('{').unwrap_or_else(|| panic!("no JSON in {said}"));
    let mut values = serde_json::Deserializer::from_str(&said[begin..]).into_iter();
    values.next().unwrap().unwrap()
}

#[test]
fn its_network_is_a_pods() {
    let linux = Linux::shared();
    let me = &linux.here.admin;
    let mut console = linux.console();
    assert!(console.runs("ip address show eth0").contains("inet 10.0.2.2/24"));
    let name = "kubernetes.default.svc.cluster.local";
    let found = console.runs(&format!("nslookup {name}"));
    assert!(found.contains("10.96.0.1"), "{found}");
    let pod = me.get("pod", "client");
    let ping = format!(
        "ping -c 2 -W 20 {} >/dev/null && echo answered",
        pod["status"]["podIP"].as_str().unwrap()
    );
    assert_eq!(console.runs(&ping), "answered");
}

#[test]
fn its_network_is_a_pods_by_ipv6_too() {
    let linux = Linux::shared();
    let me = &linux.here.admin;
    let mut console = linux.console();
    // The router tells it of the way out; its kernel asks nobody for an address, for which it takes a client of DHCPv6.
    console.runs("until ip -6 route show default | grep -q default; do sleep 0.2; done");
    console.runs("ip -6 address add fd10:0:2::2/120 dev eth0");
    let pod = me.get("pod", "client");
    let addresses = pod["status"]["podIPs"].as_array().unwrap();
    let ping = format!(
        "ping6 -c 2 -W 20 {} >/dev/null && echo answered",
        addresses[1]["ip"].as_str().unwrap()
    );
    assert_eq!(console.runs(&ping), "answered");
    let vmi = me.get("vmi", "guest");
    let listed = vmi["status"]["interfaces"][0]["ipAddresses"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");

    me.virtctl(&[
        "expose",
        "vmi",
        "guest",
        "--name=web6",
        "--port=80",
        "--ip-family=ipv6",
        "--ip-family-policy=singlestack",
    ]);
    let address = me.get("service", "web6")["spec"]["clusterIP"].clone();
    let address = address.as_str().unwrap();
    assert!(address.contains(':'), "{address}");
    serves(me, address, "80");
}

#[test]
fn other_pods_reach_it_through_services() {
    let linux = Linux::shared();
    let me = &linux.here.admin;
    me.virtctl(&["expose", "vm", "guest", "--name=web", "--port=80"]);
    me.virtctl(&[
        "expose",
        "vmi",
        "guest",
        "--name=outside",
        "--port=80",
        "--type=NodePort",
    ]);
    let port = me.get("service", "outside")["spec"]["ports"][0]["nodePort"].clone();
    let found = me.kubectl(&["exec", "client", "--", "nslookup", "web.linux.svc.cluster.local"]);
    let address = me.get("service", "web")["spec"]["clusterIP"].clone();
    assert!(found.contains(address.as_str().unwrap()), "{found}");
    for (at, port) in [
        (address.as_str().unwrap(), "80"),
        ("10.88.0.11", &port.to_string()),
        ("10.88.0.12", &port.to_string()),
    ] {
        serves(me, at, port);
    }
}

/// Waits until a pod is answered there by the guest: kube-proxy hears of a Service when it does.
fn serves(me: &Person, at: &str, port: &str) {
    let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {at} {port}");
    let end = Instant::now() + PATIENCE;
    let mut said = String::new();
    while !said.contains("served by the guest") {
        assert!(Instant::now() < end, "{at}:{port} says {said:?}");
        let done = output(
            &mut me.command("kubectl", &["exec", "client", "--", "sh", "-c", &ask]),
            "",
        );
        said = String::from_utf8_lossy(&done.stdout).into_owned();
    }
}

#[test]
fn its_ports_are_forwarded_to_who_may_ask() {
    let linux = Linux::shared();
    let me = &linux.here.admin;
    // Nobody hangs up before the answer is there.
    let mut forward = me.starts("virtctl", &["port-forward", "--stdio=true", "vmi/guest", "80"]);
    assert!(forward.says("GET / HTTP/1.0\r\n\r\n", "served by the guest"));

    let pod = format!("pod/{}", me.pod("guest")["metadata"]["name"].as_str().unwrap());
    let _forward = me.starts("kubectl", &["port-forward", &pod, "18080:80"]);
    let fetch = [
        "curl",
        "-s",
        "--retry",
        "60",
        "--retry-all-errors",
        "--retry-delay",
        "1",
        "http://127.0.0.1:18080/",
    ];
    let done = output(script("in-cp").args(fetch), "");
    assert_eq!(
        String::from_utf8_lossy(&done.stdout).trim(),
        "served by the guest"
    );
}

#[test]
fn people_log_in_by_ssh() {
    let linux = Linux::shared();
    let key = format!("--identity-file={}", linux.key.display());
    let args = [
        "ssh",
        "root@vmi/guest",
        &key,
        "--local-ssh-opts=-oStrictHostKeyChecking=no",
        "--local-ssh-opts=-oUserKnownHostsFile=/dev/null",
        "--command=echo $USER on $(uname -n)",
    ];
    let said = linux.here.admin.virtctl(&args);
    assert!(said.contains("root on guest"), "{said}");
}

#[test]
fn a_disk_outlives_the_machine_and_the_guest_goes_when_it_is_asked_to() {
    let here = Namespace::new("life");
    let me = &here.admin;
    claim(me, "life", "true");
    // With the other binding, besides: it is the pod on the pod's network.
    let bridged = linux(
        "a",
        "runStrategy: RerunOnFailure",
        "",
        &[("data", "persistentVolumeClaim: {claimName: life}")],
    );
    me.apply(&bridged.replace("masquerade: {}", "bridge: {}"));
    me.until_status("a", "Running");
    let first = me.get("vmi", "a");
    let mut console = me.console("a");
    console.shell();
    let address = me.pod("a")["status"]["podIP"].as_str().unwrap().to_owned();
    // It asks for its address beside the shell.
    let said = console.runs("until ip address show eth0 | grep 'inet '; do sleep 1; done");
    assert!(said.contains(&format!("inet {address}/24")), "{said}");
    // From another network namespace of the node, through the bridge that pods are on.
    let ping = ["--command", "--", "ping", "-c", "3", "-W", "20", &address];
    let image = ["--image=localhost/busybox:1", "--image-pull-policy=Never"];
    me.kubectl(&[&["run", "client", "--restart=Never"], &image[..], &ping].concat());
    let answered = "--for=jsonpath={.status.phase}=Succeeded";
    me.kubectl(&["wait", "pod/client", answered, "--timeout=60s"]);

    console.runs("echo what was written | dd of=/dev/vdb conv=fsync 2>/dev/null");
    let boot = console.runs("cat /proc/sys/kernel/random/boot_id");

    me.virtctl(&["soft-reboot", "a"]);
    console.says("nacelle-guest power button");
    console.shell();
    assert_ne!(console.runs("cat /proc/sys/kernel/random/boot_id"), boot);
    assert_eq!(
        uid(&me.get("vmi", "a")),
        uid(&first),
        "the same instance, in the same pod"
    );

    // The power button is what it hears of a stop.
    me.virtctl(&["stop", "a"]);
    console.says("nacelle-guest power button");
    me.until_status("a", "Stopped");

    me.virtctl(&["start", "a"]);
    me.until_status("a", "Running");
    let mut console = me.console("a");
    console.shell();
    assert_eq!(console.runs("head -c 16 /dev/vdb"), "what was written");
    console.types("poweroff");
    me.until_status("a", "Stopped");
    assert_eq!(me.get("vmi", "a")["status"]["phase"], "Succeeded");
    me.kubectl(&["delete", "vm", "a", "--timeout=120s"]);
    me.kubectl(&["delete", "pvc/life", "pv/life", "--timeout=60s"]);
}
