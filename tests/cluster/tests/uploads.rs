//! Disks that people send: by virtctl, and by those who should not.
#![cfg(feature = "cluster")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::shared::{self, noise, sum};
use support::{Namespace, Person, output, script};

/// The port of the proxy.
const PORT: u16 = 8444;

/// Where disks are sent: a replica of the controller, whichever.
fn proxy(me: &Person) -> String {
    let path = "jsonpath={.items[0].status.podIP}";
    let address = me.kubectl(&[
        "-n",
        "nacelle",
        "get",
        "pods",
        "-l",
        "app=nacelle-controller",
        "-o",
        path,
    ]);
    format!("https://{address}:{PORT}")
}

/// A disk of 72 MiB, raw, and a qcow2 of it.
fn images(name: &str) -> (PathBuf, PathBuf) {
    let path = |kind: &str| std::env::temp_dir().join(format!("nacelle-{name}.{kind}"));
    let (raw, qcow2) = (path("raw"), path("qcow2"));
    let mut disk = noise(20 << 20);
    disk.resize(40 << 20, 0);
    disk.extend(noise(32 << 20));
    std::fs::write(&raw, disk).unwrap();
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-c"])
        .args([&raw, &qcow2])
        .status();
    assert!(made.unwrap().success());
    (raw, qcow2)
}

fn local_sum(path: &Path) -> String {
    let said = output(Command::new("sha256sum").arg(path), "");
    String::from_utf8_lossy(&said.stdout)
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

/// Asks for a token; what kubectl says, and whether it was well.
fn asks(who: &Person, namespace: &str, claim: &str) -> Result<String, String> {
    let path = format!("/apis/upload.cdi.kubevirt.io/v1beta1/namespaces/{namespace}/uploadtokenrequests");
    let asked = json!({"apiVersion": "upload.cdi.kubevirt.io/v1beta1", "kind": "UploadTokenRequest",
        "metadata": {"name": "a"}, "spec": {"pvcName": claim}});
    let said = output(
        &mut who.command("kubectl", &["create", "--raw", &path, "-f", "-"]),
        &asked.to_string(),
    );
    if !said.status.success() {
        return Err(String::from_utf8_lossy(&said.stderr).into_owned());
    }
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    Ok(said["status"]["token"].as_str().unwrap().to_owned())
}

/// Sends a file by curl; the status and what is said.
fn sends(url: &str, token: &str, file: &Path, more: &[&str]) -> (String, String) {
    let mut curl = script("in-cp");
    curl.args([
        "curl",
        "--silent",
        "--show-error",
        "--insecure",
        "--write-out",
        "\n%{http_code}",
    ])
    .args([
        "--header",
        &format!("Authorization: Bearer {token}"),
        "--data-binary",
    ])
    .arg(format!("@{}", file.display()))
    .args(more)
    .arg(format!("{url}/v1beta1/upload"));
    let said = output(&mut curl, "");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let (text, status) = said.rsplit_once('\n').unwrap();
    (status.to_owned(), text.to_owned())
}

fn filled(me: &Person, name: &str) -> Value {
    me.until("datavolume", name, "filled", |volume| {
        volume["status"]["phase"] == "Succeeded"
    })
}

#[test]
fn what_virtctl_uploads_is_the_disk_of_the_claim() {
    let here = Namespace::new("uploaded");
    let me = &here.admin;
    let folder = shared::volume(me, "uploaded", "uploaded");
    me.apply(
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: uploaded}, \
        provisioner: kubernetes.io/no-provisioner}",
    );
    let (raw, qcow2) = images("uploaded");
    let told = |url: Value| {
        let patch = json!({"spec": {"uploadProxyURLOverride": url}}).to_string();
        me.kubectl(&["patch", "cdiconfig", "config", "--type=merge", "-p", &patch]);
        me.until("cdiconfig", "config", "as it was told", |config| {
            config["status"]["uploadProxyURL"] == url
        });
    };
    told(json!(proxy(me)));
    let said = me.virtctl(&[
        "image-upload",
        "dv",
        "disk",
        "--size=72Mi",
        "--storage-class=uploaded",
        "--access-mode=ReadWriteMany",
        "--insecure",
        &format!("--image-path={}", qcow2.display()),
    ]);
    told(Value::Null);
    assert!(said.contains("completed successfully"), "{said}");
    let volume = filled(me, "disk");
    assert_eq!(volume["status"]["progress"], "100.0%");
    assert_eq!(sum(&format!("{folder}/disk.img")), local_sum(&raw));
    let events = me.events();
    assert!(
        events.contains("UploadReady") && events.contains("UploadSucceeded"),
        "{events}"
    );
}

#[test]
fn a_wrong_token_uploads_nothing_and_a_cut_upload_is_begun_again() {
    let here = Namespace::new("sent");
    let me = &here.admin;
    let (alice, bob) = (here.person("alice"), here.person("bob"));
    for (name, role) in [("alice", "edit"), ("bob", "view")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={name}"));
        me.kubectl(&["create", "rolebinding", name, &role, &user]);
    }
    let folder = shared::volume(me, "sent", "by-hand");
    alice.apply(&shared::data_volume("sent", "upload: {}"));
    me.until("datavolume", "sent", "waiting for an upload", |volume| {
        volume["status"]["phase"] == "UploadReady"
    });
    let url = proxy(me);
    let (raw, qcow2) = images("sent");

    let refused = asks(&bob, "sent", "sent").unwrap_err();
    assert!(
        refused.contains("cannot create resource \"uploadtokenrequests\""),
        "{refused}"
    );
    assert!(asks(&alice, "sent", "other").unwrap_err().contains("not found"));
    let token = asks(&alice, "sent", "sent").unwrap();
    let (begin, _) = token.rsplit_once('.').unwrap();
    for wrong in [
        String::new(),
        "a.b.c".into(),
        format!("{begin}.{}", "A".repeat(43)),
    ] {
        let (status, said) = sends(&url, &wrong, &raw, &[]);
        assert_eq!(status, "401", "{said}");
    }
    // One that breaks off in the middle is no disk.
    let part = raw.with_extension("part");
    std::fs::write(&part, noise(8 << 20)).unwrap();
    let more = format!("Content-Length: {}", 72 << 20);
    let (status, _) = sends(&url, &token, &part, &["--header", &more, "--max-time", "8"]);
    // No answer, but perhaps that it may go on.
    assert!(status == "000" || status == "100", "{status}");
    let written = shared::in_node(&format!("du -k {folder} | cut -f1"));
    assert!(written.trim().parse::<u64>().unwrap() > 1024, "{written}");
    assert_eq!(me.get("datavolume", "sent")["status"]["phase"], "UploadReady");
    // Neither is one that has none.
    std::fs::write(raw.with_extension("none"), "").unwrap();
    let (status, said) = sends(
        &url,
        &token,
        &raw.with_extension("none"),
        &["--retry", "9", "--retry-delay", "1"],
    );
    assert!(status == "400" && said.contains("it is empty"), "{status} {said}");

    alice.virtctl(&[
        "image-upload",
        "dv",
        "sent",
        "--no-create",
        "--insecure",
        &format!("--image-path={}", qcow2.display()),
        &format!("--uploadproxy-url={url}"),
    ]);
    filled(me, "sent");
    assert_eq!(sum(&format!("{folder}/disk.img")), local_sum(&raw));
    let (status, said) = sends(&url, &token, &raw, &[]);
    assert!(
        status == "409" && said.contains("filled already"),
        "{status} {said}"
    );
    // Another claim of that name is another claim.
    me.kubectl(&["delete", "datavolume", "sent", "--timeout=60s"]);
    me.until("pvc", "sent", "gone", Value::is_null);
    alice.apply(&shared::data_volume("sent", "upload: {}"));
    me.until("pvc", "sent", "made", |claim| !claim.is_null());
    let (status, said) = sends(&url, &token, &raw, &[]);
    assert!(
        status == "401" && said.contains("not there any more"),
        "{status} {said}"
    );
}
