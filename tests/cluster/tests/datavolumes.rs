//! Disks that are filled before a machine begins: from the web, of another claim, of nothing.
#![cfg(feature = "cluster")]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::shared::{data_volume, in_node, noise, spec, sum, volume, write};
use support::{Namespace, PATIENCE, Person, linux, output, script, uid};

/// A folder that all nodes share, and a server of it in the namespace: `/disk`, and `/cgi-bin/slow`, which takes its time.
struct Web {
    folder: String,
    address: String,
}

impl Web {
    fn new(me: &Person, name: &str) -> Web {
        let folder = format!("/mnt/shared/{name}-www");
        in_node(&format!(
            "rm -rf {folder}; install -d -m 777 {folder} {folder}/cgi-bin"
        ));
        let slow = "#!/bin/sh\nprintf 'Content-Type: application/octet-stream\\r\\n\\r\\n'\n\
            i=0; while [ $i -lt 8 ]; do dd if=/www/disk bs=1M skip=$i count=1 2>/dev/null; sleep 2; i=$((i+1)); done\n";
        write(&format!("{folder}/cgi-bin/slow"), slow.as_bytes());
        in_node(&format!("chmod 755 {folder}/cgi-bin/slow"));
        me.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{terminationGracePeriodSeconds: 0, \
             volumes: [{{name: www, hostPath: {{path: {folder}}}}}], \
             containers: [{{name: web, image: 'localhost/busybox:1', imagePullPolicy: Never, \
             command: [httpd, -f, -p, '80', -h, /www], volumeMounts: [{{name: www, mountPath: /www}}]}}]}}}}"
        ));
        me.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=180s"]);
        let address = me.get("pod", "web")["status"]["podIP"]
            .as_str()
            .unwrap()
            .to_owned();
        Web { folder, address }
    }

    /// Puts a file there; its SHA-256.
    fn put(&self, name: &str, content: &[u8]) -> String {
        let path = format!("{}/{name}", self.folder);
        write(&path, content);
        sum(&path)
    }
}

fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let list = object["status"]["conditions"].as_array();
    list.and_then(|list| list.iter().find(|condition| condition["type"] == type_))
        .unwrap_or(&Value::Null)
}

fn done(me: &Person, name: &str) -> Value {
    me.until("datavolume", name, "filled", |volume| {
        volume["status"]["phase"] == "Succeeded"
    })
}

#[test]
fn a_machine_boots_from_a_disk_that_was_fetched_for_it() {
    let here = Namespace::new("fetched");
    let me = &here.admin;
    let web = Web::new(me, "fetched");
    let disk = std::env::var("DISK").expect("DISK: eval \"$(tests/guest/build)\"");
    let image = std::env::temp_dir().join("nacelle-datavolume.qcow2");
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-c", &disk])
        .arg(&image)
        .status();
    assert!(made.unwrap().success());
    web.put("disk", &std::fs::read(&image).unwrap());
    volume(me, "fetched-root", "by-hand");
    let source = format!("http: {{url: 'http://{}/disk'}}", web.address);
    let root = "containerDisk: {image: 'localhost/linux:1', imagePullPolicy: Never}";
    let machine = linux("guest", "runStrategy: Always", "", &[])
        .replace(root, "dataVolume: {name: fetched-root}")
        .replace(
            "\nspec:\n",
            &format!(
                "\nspec:\n  dataVolumeTemplates: [{{metadata: {{name: fetched-root}}, spec: {}}}]\n",
                spec("fetched-root", &source, "by-hand")
            ),
        );
    me.apply(&machine);
    let volume = done(me, "fetched-root");
    assert_eq!(volume["status"]["progress"], "100.0%");
    assert_eq!(condition(&volume, "Ready")["status"], "True");
    assert_eq!(volume["metadata"]["ownerReferences"][0]["name"], "guest");
    me.until("vmi", "guest", "running", |vmi| {
        vmi["status"]["phase"] == "Running"
    });
    let mut console = me.console("guest");
    console.shell();
    assert_eq!(console.runs("cat /sys/block/vda/size"), (72 * 2048).to_string());
    // What filled it has gone.
    let importer = format!("importer-{}", uid(&volume));
    me.until("pod", &importer, "gone", Value::is_null);
    me.kubectl(&["delete", "vm", "guest", "--timeout=120s"]);
    // The disk goes with the machine.
    me.until("pvc", "fetched-root", "gone", Value::is_null);
    me.kubectl(&["delete", "pv", "fetched-root", "--timeout=60s"]);
}

#[test]
fn an_importer_that_is_killed_begins_anew_and_the_disk_is_right() {
    let here = Namespace::new("killed");
    let me = &here.admin;
    let web = Web::new(me, "killed");
    let sum_ = web.put("disk", &noise(8 << 20));
    let folder = volume(me, "killed", "by-hand");
    let source = format!(
        "http: {{url: 'http://{}/cgi-bin/slow', checksum: 'sha256:{sum_}'}}",
        web.address
    );
    me.apply(&data_volume("killed", &source));
    me.until("datavolume", "killed", "being filled", |volume| {
        volume["status"]["phase"] == "ImportInProgress"
    });
    let end = Instant::now() + PATIENCE;
    while in_node(&format!("du -k {folder} | cut -f1"))
        .trim()
        .parse::<u64>()
        .unwrap()
        < 2048
    {
        assert!(Instant::now() < end, "nothing is written");
        std::thread::sleep(Duration::from_millis(200));
    }
    let importer = uid(&me.get("datavolume", "killed")).to_owned();
    let pod = me.get("pod", &format!("importer-{importer}"));
    let node = pod["spec"]["nodeName"]
        .as_str()
        .unwrap()
        .trim_start_matches("node");
    let id = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap();
    let id = id.trim_start_matches("containerd://");
    let killed = output(
        script("in-node").args([node, "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", id]),
        "",
    );
    assert!(killed.status.success());
    let volume = done(me, "killed");
    assert_eq!(volume["status"]["restartCount"], 1);
    in_node(&format!("cd {folder} && head -c 8388608 disk.img >begin"));
    assert_eq!(sum(&format!("{folder}/begin")), sum_);
    assert_eq!(
        in_node(&format!("stat -c %s {folder}/disk.img")).trim(),
        (72 << 20).to_string()
    );
}

#[test]
fn what_is_not_what_was_announced_is_said_and_keeps_the_machine_waiting() {
    let here = Namespace::new("wrong");
    let me = &here.admin;
    let web = Web::new(me, "wrong");
    web.put("disk", &noise(1 << 20));
    volume(me, "wrong", "by-hand");
    let source = format!(
        "http: {{url: 'http://{}/disk', checksum: 'sha256:{}'}}",
        web.address,
        "0".repeat(64)
    );
    let machine = linux(
        "guest",
        "runStrategy: Always",
        "",
        &[("data", "dataVolume: {name: wrong}")],
    )
    .replace(
        "\nspec:\n",
        &format!(
            "\nspec:\n  dataVolumeTemplates: [{{metadata: {{name: wrong}}, spec: {}}}]\n",
            spec("wrong", &source, "by-hand")
        ),
    );
    me.apply(&machine);
    let volume = me.until("datavolume", "wrong", "in error", |volume| {
        condition(volume, "Running")["reason"] == "Error"
    });
    let message = condition(&volume, "Running")["message"].as_str().unwrap();
    assert!(message.contains("checksum mismatch"), "{message}");
    me.until_status("guest", "DataVolumeError");
    assert!(me.get("vmi", "guest").is_null());
    // What is never done is said so, at once.
    me.apply(&data_volume("never", "vddk: {url: 'https://a'}"));
    me.until("datavolume", "never", "refused", |volume| {
        volume["status"]["phase"] == "Failed"
    });
    assert!(me.events().contains("source.vddk is not supported"));
}

#[test]
fn a_copy_is_the_same_and_a_blank_disk_is_empty() {
    let here = Namespace::new("copied");
    let me = &here.admin;
    let web = Web::new(me, "copied");
    let sum_ = web.put("disk", &noise(72 << 20));
    let first = volume(me, "copied-from", "by-hand");
    me.apply(&data_volume(
        "copied-from",
        &format!("http: {{url: 'http://{}/disk'}}", web.address),
    ));
    done(me, "copied-from");
    assert_eq!(sum(&format!("{first}/disk.img")), sum_);
    let second = volume(me, "copied-to", "by-hand");
    me.apply(&data_volume("copied-to", "pvc: {name: copied-from}"));
    done(me, "copied-to");
    assert_eq!(sum(&format!("{second}/disk.img")), sum_);
    let blank = volume(me, "copied-none", "by-hand");
    me.apply(&data_volume("copied-none", "blank: {}"));
    done(me, "copied-none");
    assert_eq!(
        in_node(&format!(
            "cmp -n 75497472 {blank}/disk.img /dev/zero && stat -c '%s %b' {blank}/disk.img"
        ))
        .trim(),
        "75497472 0"
    );
}

#[test]
fn a_claim_that_waits_for_a_machine_is_filled_when_one_comes() {
    let here = Namespace::new("late");
    let me = &here.admin;
    let web = Web::new(me, "late");
    let sum_ = web.put("disk", &noise(72 << 20));
    me.apply(
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: late}, \
        provisioner: kubernetes.io/no-provisioner, volumeBindingMode: WaitForFirstConsumer}",
    );
    let folder = volume(me, "late", "late");
    let source = format!("http: {{url: 'http://{}/disk'}}", web.address);
    let waits = spec("late", &source, "late").replace("volumeName: late, ", "");
    me.apply(&format!(
        "{{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataVolume, metadata: {{name: late}}, spec: {waits}}}"
    ));
    me.until("datavolume", "late", "waiting", |volume| {
        volume["status"]["phase"] == "WaitForFirstConsumer"
    });
    me.apply(&linux(
        "guest",
        "runStrategy: Always",
        "",
        &[("data", "dataVolume: {name: late}")],
    ));
    done(me, "late");
    assert_eq!(sum(&format!("{folder}/disk.img")), sum_);
    me.until("vmi", "guest", "running", |vmi| {
        vmi["status"]["phase"] == "Running"
    });
    // It would hear of the power button only when it has booted.
    me.virtctl(&["stop", "guest", "--force", "--grace-period=0"]);
}
