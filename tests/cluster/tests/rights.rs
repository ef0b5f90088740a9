//! Who may do what is for people to say, with RBAC as they wrote it for KubeVirt.
#![cfg(feature = "cluster")]

mod support;

use support::{Namespace, machine};

#[test]
fn alice_may_start_and_stop_and_bob_may_look() {
    let here = Namespace::new("rights");
    let admin = &here.admin;
    admin.apply(&machine("a", "runStrategy: Halted"));
    admin.apply(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: operator}
rules:
- {apiGroups: [kubevirt.io], resources: [virtualmachines], verbs: [get]}
- {apiGroups: [subresources.kubevirt.io], resources: [virtualmachines/start, virtualmachines/stop], verbs: [update]}
",
    );
    admin.kubectl(&[
        "create",
        "rolebinding",
        "alice",
        "--role=operator",
        "--user=alice",
    ]);
    admin.kubectl(&["create", "rolebinding", "bob", "--clusterrole=view", "--user=bob"]);
    let (alice, bob) = (here.person("alice"), here.person("bob"));

    // The built-in role `view` has what KubeVirt's adds to it.
    admin.until_status("a", "Stopped");
    let table = bob.kubectl(&["get", "vm"]);
    assert!(table.contains("Stopped"), "{table}");
    let refused = bob.virtctl_fails(&["start", "a"]);
    assert!(
        refused.contains("cannot update resource \"virtualmachines/start\""),
        "{refused}"
    );

    alice.virtctl(&["start", "a"]);
    admin.until_status("a", "Running");
    for (args, subresource) in [
        (&["restart", "a"][..], "virtualmachines/restart"),
        (&["pause", "vmi", "a"], "virtualmachineinstances/pause"),
        (&["migrate", "a"], "virtualmachines/migrate"),
        (&["userlist", "a"], "virtualmachineinstances/userlist"),
        (&["console", "a"], "virtualmachineinstances/console"),
    ] {
        let refused = alice.virtctl_fails(args);
        assert!(
            refused.contains(subresource) || refused.contains("orbidden"),
            "{args:?}: {refused}"
        );
    }
    alice.virtctl(&["stop", "a"]);
    admin.until_status("a", "Stopped");

    admin.kubectl(&[
        "create",
        "rolebinding",
        "bob-edit",
        "--clusterrole=edit",
        "--user=bob",
    ]);
    bob.virtctl(&["start", "a"]);
    admin.until_status("a", "Running");
    bob.console("a");
    let other = Namespace::new("rights-elsewhere");
    other.admin.apply(&machine("a", "runStrategy: Halted"));
    let refused = other.person("bob").virtctl_fails(&["start", "a"]);
    assert!(
        refused.contains("orbidden") || refused.contains("cannot update"),
        "{refused}"
    );
}

#[test]
fn what_is_not_there_yet_is_refused_and_never_pretended() {
    let here = Namespace::new("notyet");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    for (args, words) in [
        // virtctl keeps the server's words to itself here.
        (&["guestosinfo", "a"][..], "the server reported a conflict"),
        (&["userlist", "a"], "VMI does not have guest agent connected"),
        (&["addvolume", "a", "--volume-name=v"], "v"),
    ] {
        let refused = me.virtctl_fails(args);
        assert!(refused.contains(words), "{args:?}: {refused}");
    }
}

#[test]
fn odd_bodies_that_clients_send_are_taken() {
    let here = Namespace::new("bodies");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Halted"));
    let path = "/apis/subresources.kubevirt.io/v1alpha3/namespaces/bodies/virtualmachines/a/start";
    let file = std::env::temp_dir().join("nacelle-odd-body.json");
    std::fs::write(
        &file,
        r#"{"headers": {"normalizedNames": {}, "lazyUpdate": null}}"#,
    )
    .unwrap();
    me.kubectl(&["replace", "--raw", path, "-f", file.to_str().unwrap()]);
    me.until_status("a", "Running");
}

#[test]
fn a_report_is_taken_from_the_pod_that_it_is_about_alone() {
    let here = Namespace::new("reports");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let address = me.kubectl(&[
        "-n",
        "nacelle",
        "get",
        "service",
        "nacelle-controller",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]);
    // The token of a person, for us, but of no pod; and one of a service account for the API server.
    for audience in [
        "nacelle.io/report",
        "https://kubernetes.default.svc.cluster.local",
    ] {
        let token = me.kubectl(&["create", "token", "default", "--audience", audience]);
        let url = format!(
            "https://{}/report/v1/namespaces/reports/virtualmachineinstances/a",
            address.trim()
        );
        let output = support::output(
            support::script("in-node")
                .args([
                    "1",
                    "curl",
                    "-sk",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    "-X",
                    "POST",
                    &url,
                ])
                .args([
                    "-H",
                    &format!("Authorization: Bearer {}", token.trim()),
                    "-H",
                    "Content-Type: application/json",
                    "-d",
                    r#"{"state": "Failed"}"#,
                ]),
            "",
        );
        let code = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(["401", "403"].contains(&code.trim()), "{audience}: {code}");
    }
    assert_eq!(me.get("vmi", "a")["status"]["phase"], "Running");
}
