//! What people have: kubectl, virtctl, and a namespace.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod shared;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far more than anything takes; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A script of tests/cluster.
pub fn script(name: &str) -> Command {
    Command::new(format!("{}/{name}", env!("CARGO_MANIFEST_DIR")))
}

/// Runs to the end; what it printed, on both, and whether it was well.
pub fn output(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Somebody with kubectl and virtctl.
#[derive(Clone)]
pub struct Person {
    user: &'static str,
    namespace: String,
}

impl Person {
    /// kubectl or virtctl, as this person, in this namespace.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = script(program);
        command
            .env("NACELLE_USER", self.user)
            .args(["-n", &self.namespace])
            .args(args);
        command
    }

    /// What kubectl says; it must be well.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.well("kubectl", args, "")
    }

    /// What virtctl says; it must be well.
    pub fn virtctl(&self, args: &[&str]) -> String {
        self.well("virtctl", args, "")
    }

    /// What virtctl says; it must refuse.
    pub fn virtctl_fails(&self, args: &[&str]) -> String {
        let output = output(&mut self.command("virtctl", args), "");
        assert!(
            !output.status.success(),
            "virtctl {args:?} was done: {}",
            text(&output)
        );
        text(&output)
    }

    /// What helm says, in the namespace of Nacelle; it must be well.
    pub fn helm(&self, args: &[&str]) -> String {
        let output = output(script("helm").args(args).arg("--namespace=nacelle"), "");
        assert!(output.status.success(), "helm {args:?}: {}", text(&output));
        text(&output)
    }

    /// Starts kubectl or virtctl, and leaves it running.
    pub fn starts(&self, program: &str, args: &[&str]) -> Running {
        let mut command = self.command(program, args);
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Running(piped.spawn().unwrap())
    }

    /// What kubectl says; it must refuse.
    pub fn kubectl_fails(&self, args: &[&str]) -> String {
        let output = output(&mut self.command("kubectl", args), "");
        assert!(
            !output.status.success(),
            "kubectl {args:?} was done: {}",
            text(&output)
        );
        text(&output)
    }

    /// `kubectl apply`; what it says.
    pub fn apply(&self, manifest: &str) -> String {
        self.well("kubectl", &["apply", "-f", "-"], manifest)
    }

    /// `kubectl apply`, again until it is taken: for when nobody serves admission just now.
    pub fn apply_when_served(&self, manifest: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = output(&mut self.command("kubectl", &["apply", "-f", "-"]), manifest);
            if output.status.success() {
                return;
            }
            assert!(Instant::now() < end, "it is never taken: {}", text(&output));
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// `kubectl apply` of what must be refused; what it says.
    pub fn refused(&self, manifest: &str) -> String {
        let output = output(&mut self.command("kubectl", &["apply", "-f", "-"]), manifest);
        assert!(!output.status.success(), "it was taken: {}", text(&output));
        text(&output)
    }

    fn well(&self, program: &str, args: &[&str], input: &str) -> String {
        let output = output(&mut self.command(program, args), input);
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
        text(&output)
    }

    /// An object, or null.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let output = output(
            &mut self.command("kubectl", &["get", kind, name, "-o", "json"]),
            "",
        );
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until something holds of an object.
    pub fn until(&self, kind: &str, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let object = self.get(kind, name);
            if holds(&object) {
                return object;
            }
            assert!(
                Instant::now() < end,
                "{kind} {name} is not {what}: {object:#}\n{}",
                self.events()
            );
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Waits until a machine runs that is not the instance `before`.
    pub fn until_another_run(&self, name: &str, before: &Value) -> Value {
        self.until("vmi", name, "another run, running", |vmi| {
            !vmi.is_null() && uid(vmi) != uid(before) && vmi["status"]["phase"] == "Running"
        })
    }

    /// Waits for the word that `kubectl get vm` shows.
    pub fn until_status(&self, vm: &str, word: &str) {
        let is = format!("--for=jsonpath={{.status.printableStatus}}={word}");
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        let wait = ["wait", &format!("vm/{vm}"), &is, &patience];
        let waited = output(&mut self.command("kubectl", &wait), "");
        assert!(
            waited.status.success(),
            "vm {vm} is not {word}: {}{:#}\n{}",
            text(&waited),
            self.get("vm", vm),
            self.events()
        );
    }

    /// Everything that was said about everything here.
    pub fn events(&self) -> String {
        self.kubectl(&["get", "events", "--sort-by=.metadata.creationTimestamp"])
    }

    /// The serial console, on a terminal as virtctl wants one.
    pub fn console(&self, name: &str) -> Console {
        let virtctl = format!(
            "{}/virtctl -n {} console {name}",
            env!("CARGO_MANIFEST_DIR"),
            self.namespace
        );
        // Ctrl-] is virtctl's way out: where nobody types any more, also as the test has ended.
        let terminal = format!("{{ cat; printf '\\035'; }} | exec script -qefc '{virtctl}' /dev/null");
        let mut child = Command::new("sh")
            .args(["-c", &terminal])
            .env("NACELLE_USER", self.user)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, said) = channel();
        let mut out = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = out.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let typed = child.stdin.take();
        let mut console = Console {
            child,
            typed,
            said,
            heard: String::new(),
        };
        console.says("Successfully connected to");
        console
    }

    /// The launcher pod of an instance.
    pub fn pod(&self, name: &str) -> Value {
        let created_by = format!("kubevirt.io/created-by={}", uid(&self.get("vmi", name)));
        let pods = self.kubectl(&["get", "pods", "-l", &created_by, "-o", "json"]);
        let mut pods: Value = serde_json::from_str(&pods).unwrap();
        assert_eq!(pods["items"].as_array().unwrap().len(), 1, "{pods:#}");
        pods["items"][0].take()
    }

    /// Has the machine fail: its launcher is killed, as a node that is out of memory would.
    pub fn crash(&self, name: &str) {
        let pod = self.pod(name);
        let node = pod["spec"]["nodeName"].as_str().unwrap();
        let id = pod["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap();
        let mut kill = script("in-node");
        kill.args([
            node.trim_start_matches("node"),
            "ctr",
            "-n",
            "k8s.io",
            "tasks",
            "kill",
            "-s",
            "SIGKILL",
        ]);
        let done = output(kill.arg(id.trim_start_matches("containerd://")), "");
        assert!(done.status.success(), "{}", text(&done));
    }
}

/// A program that is ended with its owner.
pub struct Running(Child);

impl Running {
    /// Types `words`; whether what it answers, until it ends, has `answer` in it.
    pub fn says(&mut self, words: &str, answer: &str) -> bool {
        self.0
            .stdin
            .as_mut()
            .unwrap()
            .write_all(words.as_bytes())
            .unwrap();
        let mut heard = String::new();
        let mut out = BufReader::new(self.0.stdout.as_mut().unwrap());
        while !heard.contains(answer) && out.read_line(&mut heard).unwrap() > 0 {}
        heard.contains(answer)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A console that somebody sits at.
pub struct Console {
    child: Child,
    typed: Option<ChildStdin>,
    said: Receiver<Vec<u8>>,
    heard: String,
}

impl Console {
    /// Types a line.
    pub fn types(&mut self, line: &str) {
        let typed = self.typed.as_mut().unwrap();
        typed.write_all(format!("{line}\r").as_bytes()).unwrap();
        typed.flush().unwrap();
    }

    /// Waits until it said this; what comes after it is left for the next time.
    pub fn says(&mut self, words: &str) {
        self.until(words);
    }

    /// Waits until it said this; what it said before.
    fn until(&mut self, words: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.heard.find(words) {
                let after = self.heard.split_off(at + words.len());
                let mut before = std::mem::replace(&mut self.heard, after);
                before.truncate(at);
                return before;
            }
            let wait = end.saturating_duration_since(Instant::now());
            let bytes = self.said.recv_timeout(wait);
            let bytes =
                bytes.unwrap_or_else(|_| panic!("the console never said {words:?}: {:?}", self.heard));
            self.heard.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Waits for the shell of a Linux guest that begins; who comes late is told what was said before.
    pub fn shell(&mut self) {
        self.until("nacelle-guest ready");
        self.until("/ # ");
    }

    /// Runs a command in the shell of a Linux guest; what it printed.
    pub fn runs(&mut self, command: &str) -> String {
        // The marks are not in what the terminal echoes.
        self.types(&format!("echo be''gun; {command}; echo e''nded"));
        self.until("begun");
        let mut said = self.until("ended").replace('\r', "");
        // The guest's DHCP client speaks up when it has something to say, in the midst of a line, too.
        for client in ["udhcpc: ", "nacelle-guest address "] {
            while let Some(begin) = said.find(client) {
                let end = said[begin..].find('\n').map_or(said.len(), |at| begin + at + 1);
                said.replace_range(begin..end, "");
            }
        }
        said.trim().to_owned()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(self.typed.take());
        let _ = self.child.wait();
    }
}

/// A namespace of a test's own, with its administrator.
pub struct Namespace {
    /// Who may do everything.
    pub admin: Person,
}

impl Namespace {
    /// Makes it.
    pub fn new(name: &str) -> Self {
        let admin = Person {
            user: "admin",
            namespace: name.to_owned(),
        };
        // One that was left by a test that failed.
        admin.kubectl(&[
            "delete",
            "namespace",
            name,
            "--ignore-not-found",
            "--timeout=180s",
        ]);
        admin.kubectl(&["create", "namespace", name]);
        // The first pod needs the namespace's account.
        admin.until("serviceaccount", "default", "made", |account| !account.is_null());
        Namespace { admin }
    }

    /// Somebody else: alice or bob.
    pub fn person(&self, user: &'static str) -> Person {
        Person {
            user,
            namespace: self.admin.namespace.clone(),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.admin
                .kubectl(&["delete", "namespace", &self.admin.namespace, "--timeout=180s"]);
        }
    }
}

/// A machine with the kernel of an image, a pod network, and disks whose serial numbers are their names; more of its spec
/// as given.
fn manifest(name: &str, run: &str, spec: &str, memory: &str, kernel: &str, disks: &[(&str, &str)]) -> String {
    let each = |what: &dyn Fn(&str, &str) -> String| {
        let each: Vec<_> = disks.iter().map(|(name, source)| what(name, source)).collect();
        each.join(", ")
    };
    let volumes = each(&|name, source| format!("{{name: {name}, {source}}}"));
    let disks = each(&|name, _| format!("{{name: {name}, serial: {name}, disk: {{bus: virtio}}}}"));
    format!(
        "
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {{name: {name}}}
spec:
  {run}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      {spec}
      domain:
        cpu: {{cores: 2}}
        memory: {{guest: {memory}}}
        firmware: {{kernelBoot: {kernel}}}
        devices:
          disks: [{disks}]
          interfaces: [{{name: default, masquerade: {{}}}}]
      networks: [{{name: default, pod: {{}}}}]
      volumes: [{volumes}]
"
    )
}

/// The classic machine, with `running` or `runStrategy` as given. Its guest is our bare-metal one, which begins in
/// milliseconds, and at whose console there is a prompt: `say WORDS`, `deaf` (to the power button), `poweroff`.
pub fn machine(name: &str, run: &str) -> String {
    let kernel = "{kernelArgs: shell, container: {image: 'localhost/payload:1', kernelPath: /payload, imagePullPolicy: Never}}";
    let disks = [
        ("scratch", "emptyDisk: {capacity: 16Mi}"),
        ("init", "cloudInitNoCloud: {userData: '#cloud-config'}"),
    ];
    manifest(
        name,
        run,
        "terminationGracePeriodSeconds: 5",
        "64Mi",
        kernel,
        &disks,
    )
}

/// A Linux guest on the disk of an image: it asks for its address by DHCP, and has a shell at its console. More of its
/// spec and more disks as given.
pub fn linux(name: &str, run: &str, spec: &str, disks: &[(&str, &str)]) -> String {
    // What software KVM lacks (docs/testing.md); harmless elsewhere.
    let arguments = "console=ttyS0 quiet reboot=k panic=-1 root=/dev/vda rw init=/init nacelle.dhcp clocksource=kvm-clock \
        noreplace-smp mitigations=off rodata=off random.trust_cpu=on no_timer_check noxsave \
        clearcpuid=smap,smep,popcnt,erms,fsrm,fsgsbase,invpcid,umip,cx16,rdpid,pku";
    let kernel = format!(
        "{{kernelArgs: '{arguments}', \
         container: {{image: 'localhost/linux:1', kernelPath: /boot/vmlinux, imagePullPolicy: Never}}}}"
    );
    let spec = format!("terminationGracePeriodSeconds: 180\n      {spec}");
    let root = (
        "root",
        "containerDisk: {image: 'localhost/linux:1', imagePullPolicy: Never}",
    );
    manifest(name, run, &spec, "192Mi", &kernel, &[&[root], disks].concat())
}

/// A claim of a folder that all nodes share, in which `made` was run.
pub fn claim(me: &Person, name: &str, made: &str) {
    let folder = format!("/mnt/shared/{name}");
    let script_ = format!("rm -rf {folder}; install -d -m 777 {folder}; cd {folder}; {made}");
    let done = output(script("in-node").args(["1", "sh", "-c", &script_]), "");
    assert!(done.status.success());
    me.kubectl(&["delete", "pv", name, "--ignore-not-found"]);
    me.apply(&format!(
        "
{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: {name}}}, spec: {{capacity: {{storage: 64Mi}}, \
 accessModes: [ReadWriteMany], storageClassName: by-hand, hostPath: {{path: {folder}}}}}}}
---
{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{accessModes: [ReadWriteMany], \
 storageClassName: by-hand, volumeName: {name}, resources: {{requests: {{storage: 64Mi}}}}}}}}
"
    ));
    let bound = "--for=jsonpath={.status.phase}=Bound";
    me.kubectl(&["wait", &format!("pvc/{name}"), bound, "--timeout=60s"]);
}

/// Whether a condition of an object is True.
pub fn is(object: &Value, condition: &str) -> bool {
    let list = object["status"]["conditions"].as_array();
    list.is_some_and(|list| {
        list.iter()
            .any(|c| c["type"] == condition && c["status"] == "True")
    })
}

/// The UID of an object.
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap()
}
