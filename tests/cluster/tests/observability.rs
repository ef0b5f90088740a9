//! What Prometheus hears: a real one scrapes the cluster while a guest works, and its series are held against what the guest and
//! its control group count. What a person hears who asks why a machine does not run, and what logs say.
#![cfg(feature = "cluster")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use support::{Console, Namespace, PATIENCE, Person, linux, machine, output, script, uid};

/// Where it listens, in the control plane's network.
const PROMETHEUS: &str = "127.0.0.1:9790";
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");

/// A Prometheus that scrapes nodes and controllers every second.
struct Prometheus {
    child: Child,
    home: PathBuf,
}

impl Prometheus {
    fn start(me: &Person) -> Prometheus {
        let home = std::env::temp_dir().join(format!("nacelle-prometheus-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        let addresses = |selector: &str, path: &str, port: u16| -> Vec<String> {
            let found = me.kubectl(&["-n", "nacelle", "get", "pods", "-l", selector, "-o", path]);
            let found = found.split_whitespace();
            found.map(|address| format!("\"{address}:{port}\"")).collect()
        };
        let nodes = addresses("app=nacelle-node", "jsonpath={.items[*].status.hostIP}", 22482);
        let controllers = addresses(
            "app=nacelle-controller",
            "jsonpath={.items[*].status.podIP}",
            8443,
        );
        assert!(
            nodes.len() == 2 && !controllers.is_empty(),
            "{nodes:?} {controllers:?}"
        );
        // The rules are those that the Prometheus Operator would be given.
        let options = serde_saphyr::options! { budget: None };
        let monitors = std::fs::read_to_string(format!("{DEPLOY}/observability/monitors.yaml")).unwrap();
        let (_, rule) = monitors.split_once("\n---\n").unwrap();
        let rule: Value = serde_saphyr::from_str_with_options(rule, options).unwrap();
        std::fs::write(home.join("rules.yml"), rule["spec"].to_string()).unwrap();
        let configuration = format!(
            "
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
- {{job_name: nodes, honor_labels: true, static_configs: [{{targets: [{}]}}]}}
- job_name: controllers
  honor_labels: true
  scheme: https
  tls_config: {{insecure_skip_verify: true}}
  static_configs: [{{targets: [{}]}}]
",
            nodes.join(", "),
            controllers.join(", ")
        );
        std::fs::write(home.join("prometheus.yml"), configuration).unwrap();
        // It becomes Prometheus, which ends with us.
        let cluster = std::env::var("NACELLE_CLUSTER").unwrap_or_else(|_| "nacelle".into());
        let child = Command::new("ip")
            .args(["netns", "exec", &format!("{cluster}-cp")])
            .arg("prometheus")
            .arg(format!("--config.file={}/prometheus.yml", home.display()))
            .arg(format!("--storage.tsdb.path={}/data", home.display()))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(home.join("log")).unwrap())
            .spawn()
            .unwrap();
        Prometheus { child, home }
    }

    /// The series of a query: labels and value of each.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let url = format!("http://{PROMETHEUS}/api/v1/query");
        let parameter = format!("query={query}");
        let said = output(
            script("in-cp").args(["curl", "-s", "-G", &url, "--data-urlencode", &parameter]),
            "",
        );
        let said: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
        assert_ne!(said["status"], "error", "{query}: {said:#}");
        let list = said["data"]["result"].as_array().cloned().unwrap_or_default();
        let series = list.into_iter().map(|mut series| {
            let value = series["value"][1].as_str().unwrap().parse().unwrap();
            (series["metric"].take(), value)
        });
        series.collect()
    }

    /// Waits until a query has series.
    fn until(&self, query: &str) -> Vec<(Value, f64)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let series = self.query(query);
            if !series.is_empty() {
                return series;
            }
            let log = || std::fs::read_to_string(self.home.join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "{query} never has a series\n{}", log());
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }

    /// Waits until a query gives one series whose value is as wanted.
    fn until_value(&self, query: &str, holds: impl Fn(f64) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let series = self.query(query);
            if let [(_, value)] = series[..]
                && holds(value)
            {
                return;
            }
            assert!(Instant::now() < end, "{query} is {series:?}");
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn number(text: &str) -> f64 {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// The n-th word of what a command of the guest prints.
fn word(console: &mut Console, command: &str, n: usize) -> f64 {
    let said = console.runs(command);
    number(
        said.split_whitespace()
            .nth(n)
            .unwrap_or_else(|| panic!("{command}: {said}")),
    )
}

/// Seconds of processor time of the machine's container, by its control group.
fn group_time(me: &Person, name: &str) -> f64 {
    let pod = me.pod(name);
    let node = pod["spec"]["nodeName"]
        .as_str()
        .unwrap()
        .trim_start_matches("node")
        .to_owned();
    let list = pod["status"]["containerStatuses"].as_array().unwrap();
    let compute = list.iter().find(|status| status["name"] == "compute").unwrap();
    let id = compute["containerID"]
        .as_str()
        .unwrap()
        .trim_start_matches("containerd://")
        .to_owned();
    let metrics = output(
        script("in-node").args([
            &node,
            "ctr",
            "-n",
            "k8s.io",
            "tasks",
            "metrics",
            "--format=json",
            &id,
        ]),
        "",
    );
    let metrics: Value = serde_json::from_slice(&metrics.stdout).unwrap();
    // Version 1 of control groups counts nanoseconds, version 2 microseconds.
    let cpu = &metrics["cpu"];
    match cpu["usage"]["total"].as_f64() {
        Some(nanoseconds) => nanoseconds / 1e9,
        None => cpu["usage_usec"].as_f64().unwrap() / 1e6,
    }
}

#[test]
fn what_prometheus_hears_is_what_guest_and_control_group_count() {
    let here = Namespace::new("figures");
    let me = &here.admin;
    me.apply(&linux(
        "a",
        "runStrategy: Always",
        "",
        &[("data", "emptyDisk: {capacity: 64Mi}")],
    ));
    me.until_status("a", "Running");
    let prometheus = Prometheus::start(me);
    let mut console = me.console("a");
    console.shell();
    let of = "{namespace=\"figures\",name=\"a\"}";
    let of_data = "{namespace=\"figures\",name=\"a\",drive=\"data\"}";

    // The guest's own counters of its disk: sectors of 512 bytes, operations.
    console.runs("dd if=/dev/zero of=/dev/vdb bs=64k count=16 conv=fsync 2>/dev/null; dd if=/dev/vdb of=/dev/null bs=64k skip=16 count=16 2>/dev/null");
    let read = word(&mut console, "cat /sys/block/vdb/stat", 2) * 512.0;
    let reads = word(&mut console, "cat /sys/block/vdb/stat", 0);
    let written = word(&mut console, "cat /sys/block/vdb/stat", 6) * 512.0;
    assert!(read >= 1e6 && written >= 1e6, "{read} {written}");
    for (series, wanted) in [
        ("kubevirt_vmi_storage_read_traffic_bytes_total", read),
        ("kubevirt_vmi_storage_iops_read_total", reads),
        ("kubevirt_vmi_storage_write_traffic_bytes_total", written),
    ] {
        prometheus.until_value(&format!("{series}{of_data}"), |value| {
            (value - wanted).abs() < 1.0
        });
    }
    prometheus.until_value(
        &format!("kubevirt_vmi_storage_write_times_seconds_total{of_data}"),
        |time| time > 0.0,
    );

    // Its memory, as its balloon driver says: to the page.
    let total = word(&mut console, "grep MemTotal /proc/meminfo", 1) * 1024.0;
    prometheus.until_value(&format!("kubevirt_vmi_memory_available_bytes{of}"), |value| {
        (value - total).abs() < 1.0
    });
    prometheus.until_value(&format!("kubevirt_vmi_memory_domain_bytes{of}"), |value| {
        value == 192.0 * 1048576.0
    });
    prometheus.until(&format!("kubevirt_vmi_memory_used_bytes{of} > 0"));

    // What it received: both count whole frames, and a little may arrive meanwhile.
    let interface = "$(ls /sys/class/net | grep -v lo)";
    let counted = word(
        &mut console,
        &format!("cat /sys/class/net/{interface}/statistics/rx_packets"),
        0,
    );
    prometheus.until_value(
        &format!("kubevirt_vmi_network_receive_packets_total{of}"),
        |value| value >= counted && value <= counted + 50.0,
    );

    // Its processor time lies between what the control group says before and after.
    let before = group_time(me, "a");
    prometheus.until_value(&format!("kubevirt_vmi_cpu_usage_seconds_total{of}"), |value| {
        value >= before * 0.98
    });
    let [(_, counted)] = &prometheus.query(&format!("kubevirt_vmi_cpu_usage_seconds_total{of}"))[..] else {
        panic!("one series");
    };
    let after = group_time(me, "a");
    assert!(*counted <= after * 1.02 + 0.1, "{before} {counted} {after}");
    // Both vCPUs are part of it.
    prometheus.until_value(&format!("sum(kubevirt_vmi_vcpu_seconds_total{of})"), |vcpus| {
        vcpus > 0.0 && vcpus <= after * 1.1 + 5.0
    });

    // What it is.
    prometheus.until("kubevirt_vm_info{namespace=\"figures\",name=\"a\",status_group=\"running\"}");
    let info = prometheus.until("kubevirt_vmi_info{namespace=\"figures\",name=\"a\",phase=\"running\"}");
    let pod = me.pod("a");
    assert_eq!(info[0].0["vmi_pod"], pod["metadata"]["name"]);
    assert_eq!(info[0].0["node"], pod["spec"]["nodeName"]);
    prometheus.until_value("sum(kubevirt_virt_controller_leading_status)", |leaders| {
        leaders == 1.0
    });
    prometheus
        .until("kubevirt_vmi_phase_transition_time_from_creation_seconds_bucket{phase=\"Running\"} > 0");

    every_panel_has_series(&prometheus, &mut console);

    // Who ended is not told of any more.
    drop(console);
    me.virtctl(&["stop", "a", "--force", "--grace-period=0"]);
    me.until_status("a", "Stopped");
    prometheus.until("kubevirt_vm_info{namespace=\"figures\",name=\"a\",status=\"stopped\"}");
    prometheus.until_value("count(kubevirt_vmi_cpu_usage_seconds_total) or vector(0)", |_| {
        prometheus
            .query(&format!("kubevirt_vmi_cpu_usage_seconds_total{of}"))
            .is_empty()
    });
}

/// Every query of the dashboard, with its variables filled in, while the guest works.
fn every_panel_has_series(prometheus: &Prometheus, console: &mut Console) {
    console.runs(
        "(while sleep 1; do dd if=/dev/zero of=/dev/vdb bs=64k count=16 conv=fsync; \
         echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vdb of=/dev/null bs=64k count=16; done >/dev/null 2>&1 &)",
    );
    let dashboard = Path::new(DEPLOY).join("observability/dashboard.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(dashboard).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$namespace", "figures")
                .replace("$name", "a")
                .replace("$__rate_interval", "30s");
            prometheus.until(&query);
        }
    }
}

/// `nacelle explain`, as who looks after the cluster asks in the controller's own pod.
fn explained(me: &Person, machine: &str, more: &[&str]) -> String {
    let ask = [
        "-n",
        "nacelle",
        "exec",
        "deployment/nacelle-controller",
        "--",
        "nacelle",
        "explain",
        machine,
    ];
    me.kubectl(&[&ask[..], more].concat())
}

#[test]
fn who_asks_is_told_what_a_machine_waits_for_and_what_to_do() {
    let here = Namespace::new("why");
    let me = &here.admin;
    let claimed = machine("a", "runStrategy: Always").replace(
        "emptyDisk: {capacity: 16Mi}",
        "persistentVolumeClaim: {claimName: why}",
    );
    me.apply(&claimed);
    me.until_status("a", "ErrorPvcNotFound");
    let said = explained(me, "why/a", &[]);
    let lines = [
        "! FailedPvcNotFound",
        "PersistentVolumeClaim why does not exist",
        "-> make it",
    ];
    assert!(lines.iter().all(|line| said.contains(line)), "{said}");

    // Its claim is there, and no volume for it: the scheduler says so.
    me.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: why}, spec: {accessModes: [ReadWriteMany], \
         storageClassName: by-hand, resources: {requests: {storage: 16Mi}}}}",
    );
    me.until_status("a", "ErrorUnschedulable");
    let said = explained(me, "why/a", &[]);
    let lines = [
        "why/a: ErrorUnschedulable",
        "! Unschedulable",
        "unbound immediate PersistentVolumeClaims",
        "PersistentVolumeClaim why is not bound to a volume, storage class by-hand",
    ];
    assert!(lines.iter().all(|line| said.contains(line)), "{said}");
    let events = me.kubectl(&[
        "get",
        "events",
        "--field-selector=involvedObject.kind=VirtualMachineInstance",
    ]);
    for reason in ["FailedPvcNotFound", "Unschedulable"] {
        assert!(events.contains(reason), "{reason}: {events}");
    }

    // The volume is there: it runs, and nothing is left to say but that its guest has no agent.
    let folder = output(
        script("in-node").args(["1", "install", "-d", "-m", "777", "/mnt/shared/why"]),
        "",
    );
    assert!(folder.status.success());
    // One that was left by a test that failed belongs to another claim.
    me.kubectl(&["delete", "pv", "why", "--ignore-not-found"]);
    me.apply(
        "{apiVersion: v1, kind: PersistentVolume, metadata: {name: why}, spec: {capacity: {storage: 16Mi}, \
         accessModes: [ReadWriteMany], storageClassName: by-hand, hostPath: {path: /mnt/shared/why}, \
         claimRef: {namespace: why, name: why}}}",
    );
    me.until_status("a", "Running");
    let said = explained(me, "why/a", &["--output", "json"]);
    let explanation: Value = serde_json::from_str(&said).unwrap();
    let chain = explanation["chain"].as_array().unwrap();
    let kinds: Vec<_> = chain.iter().map(|link| link["kind"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["VirtualMachine", "VirtualMachineInstance", "Pod", "monitor"]
    );
    assert_eq!(chain[3]["state"], "its guest runs", "{said}");
    let findings = chain.iter().flat_map(|link| link["findings"].as_array().unwrap());
    let findings: Vec<_> = findings
        .map(|finding| (&finding["reason"], &finding["weight"]))
        .collect();
    assert!(
        findings.contains(&(&"AgentAbsent".into(), &"note".into())),
        "{said}"
    );
    assert!(findings.iter().all(|(_, weight)| *weight != "stuck"), "{said}");

    // Every line of the launcher's says whose it is, and those of the controller that are about it.
    let vmi = me.get("vmi", "a");
    let whose = format!("namespace=why name=a uid={}", uid(&vmi));
    let pod = me.pod("a");
    let pod = pod["metadata"]["name"].as_str().unwrap();
    // The kubelet has nothing of a container that it has not said to run.
    me.until("pod", pod, "Running", |pod| pod["status"]["phase"] == "Running");
    let log = me.kubectl(&["logs", pod, "-c", "compute"]);
    assert!(
        !log.is_empty() && log.lines().all(|line| line.ends_with(&whose)),
        "{log}"
    );
    let logs = [
        "-n",
        "nacelle",
        "logs",
        "-l",
        "app=nacelle-controller",
        "--tail=-1",
    ];
    let log = me.kubectl(&logs);
    let about = log
        .lines()
        .find(|line| line.contains(" why/a: ") && line.contains("-> Running"));
    assert!(about.is_some_and(|line| line.ends_with(&whose)), "{about:?}");
    me.kubectl(&["delete", "vm", "a"]);
    // A volume outlives its claim, and is no namespace's.
    me.kubectl(&["delete", "pvc", "why"]);
    me.kubectl(&["delete", "pv", "why"]);
}
