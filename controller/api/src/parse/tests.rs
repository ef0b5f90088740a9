use super::*;

/// The form that people have (issue 3).
const LEDGER: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: ledger}
spec:
  running: true
  template:
    spec:
      domain:
        cpu: {cores: 2}
        memory: {guest: 4Gi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}]
          interfaces: [{name: default, masquerade: {}}]
      networks: [{name: default, pod: {}}]
      volumes: [{name: root, dataVolume: {name: ledger-root}}]
";

fn vm(text: &str) -> VirtualMachine {
    match parse(text) {
        Ok(Manifest::VirtualMachine(vm)) => *vm,
        other => panic!("not a VirtualMachine: {other:?}"),
    }
}

#[test]
fn the_form_that_people_have() {
    let vm = vm(LEDGER);
    assert_eq!(vm.metadata.name.as_deref(), Some("ledger"));
    assert_eq!(vm.spec.running, Some(true));
    let spec = vm.spec.template.spec;
    assert_eq!(spec.domain.cpu.unwrap().cores, Some(2));
    assert_eq!(spec.domain.memory.unwrap().guest.unwrap().0, "4Gi");
    assert_eq!(
        spec.domain.devices.disks[0].disk.as_ref().unwrap().bus.as_deref(),
        Some("virtio")
    );
    assert!(spec.domain.devices.interfaces[0].masquerade.is_some());
    assert_eq!(spec.volumes[0].data_volume.as_ref().unwrap().name, "ledger-root");
}

/// Everything that is wrong in a document of the classic form with `from` replaced by `to`.
fn problems(from: &str, to: &str) -> Vec<String> {
    assert!(LEDGER.contains(from), "{from}");
    match parse(&LEDGER.replacen(from, to, 1)) {
        Err(ParseError::Fields(problems)) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{to}: {other:?}"),
    }
}

#[test]
fn what_is_misspelt_is_told_with_its_place_and_a_suggestion() {
    for (from, to, expected) in [
        (
            "disk: {bus: virtio}",
            "dsk: {bus: virtio}",
            "line 13: spec.template.spec.domain.devices.disks[0].dsk: unknown field; did you mean `disk`?",
        ),
        (
            "running",
            "runing",
            "line 6: spec.runing: unknown field; did you mean `running`?",
        ),
        (
            "cores: 2",
            "Cores: 2",
            "line 10: spec.template.spec.domain.cpu.Cores: unknown field; did you mean `cores`?",
        ),
        (
            "{cores: 2}",
            "{cors: 2}",
            "line 10: spec.template.spec.domain.cpu.cors: unknown field; did you mean `cores`?",
        ),
        (
            "cpu: {cores: 2}",
            "cores: 2",
            "line 10: spec.template.spec.domain.cores: unknown field; did you mean `cpu.cores`?",
        ),
        (
            "memory: {guest: 4Gi}",
            "guest: 4Gi",
            "line 11: spec.template.spec.domain.guest: unknown field; did you mean `memory.guest`?",
        ),
        (
            "memory: {guest: 4Gi}",
            "networks: []",
            "line 11: spec.template.spec.domain.networks: unknown field here; `networks` belongs in `spec.template.spec`",
        ),
        (
            "masquerade: {}",
            "masquerade: {nat: true}",
            "line 14: spec.template.spec.domain.devices.interfaces[0].masquerade.nat: unknown field",
        ),
        (
            "name: ledger",
            "name: ledger, lables: {a: b}",
            "line 4: metadata.lables: unknown field; did you mean `labels`?",
        ),
        (
            "running: true",
            "frobnicate: 1",
            "line 6: spec.frobnicate: unknown field",
        ),
    ] {
        assert_eq!(problems(from, to), [expected]);
    }
}

#[test]
fn a_wrong_type_says_what_was_found_and_what_is_wanted() {
    for (from, to, expected) in [
        (
            "cores: 2",
            "cores: two",
            "line 10: spec.template.spec.domain.cpu.cores: wanted a whole number, found the text \"two\"",
        ),
        (
            "cores: 2",
            "cores: '2'",
            "line 10: spec.template.spec.domain.cpu.cores: wanted a whole number, found the text \"2\"; leave out the quotes",
        ),
        (
            "cores: 2",
            "cores: 1.5",
            "line 10: spec.template.spec.domain.cpu.cores: wanted a whole number, found the number 1.5",
        ),
        (
            "cores: 2",
            "cores: -1",
            "line 10: spec.template.spec.domain.cpu.cores: -1 is out of range; from 0 to 4294967295 is possible",
        ),
        (
            "running: true",
            "running: maybe",
            "line 6: spec.running: wanted true or false, found the text \"maybe\"",
        ),
        (
            "running: true",
            "running: 'true'",
            "line 6: spec.running: wanted true or false, found the text \"true\"; leave out the quotes",
        ),
        (
            "name: ledger-root",
            "name: 12",
            "line 16: spec.template.spec.volumes[0].dataVolume.name: wanted text, found the number 12; put it in quotes",
        ),
        (
            "name: ledger-root",
            "name: true",
            "line 16: spec.template.spec.volumes[0].dataVolume.name: wanted text, found true; put it in quotes",
        ),
        (
            "masquerade: {}",
            "masquerade:",
            "line 14: spec.template.spec.domain.devices.interfaces[0].masquerade: wanted an object, found nothing; write `{}` or leave the field out",
        ),
        (
            "[{name: default, pod: {}}]",
            "{name: default, pod: {}}",
            "line 15: spec.template.spec.networks: wanted a list, found an object; start each element with `- `",
        ),
        (
            "cpu: {cores: 2}",
            "cpu: 2",
            "line 10: spec.template.spec.domain.cpu: wanted an object, found the number 2",
        ),
        (
            "guest: 4Gi",
            "guest: 4GB",
            "line 11: spec.template.spec.domain.memory.guest: '4GB' is not a quantity such as 4Gi, 500M, 1e9 or 100m",
        ),
        (
            "guest: 4Gi",
            "guest: {}",
            "line 11: spec.template.spec.domain.memory.guest: wanted a number or text, found an object",
        ),
        (
            "{name: root, disk: {bus: virtio}}",
            "{disk: {bus: virtio}}",
            "line 13: spec.template.spec.domain.devices.disks[0].name: this field is required",
        ),
        (
            "name: ledger}",
            "name: ledger, creationTimestamp: today}",
            "line 4: metadata.creationTimestamp: \"today\" is not a time such as 2026-01-31T12:00:00Z",
        ),
        (
            "[{name: default, pod: {}}]",
            "[~]",
            "line 15: spec.template.spec.networks[0]: this element is empty",
        ),
    ] {
        assert_eq!(problems(from, to), [expected]);
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let text = LEDGER
        .replace("running: true", "runing: true")
        .replace("cores: 2", "cores: two")
        .replace("4Gi", "4GB");
    let Err(ParseError::Fields(problems)) = parse(&text) else {
        panic!()
    };
    let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "spec.runing",
            "spec.template.spec.domain.cpu.cores",
            "spec.template.spec.domain.memory.guest"
        ]
    );
    assert_eq!(ParseError::Fields(problems).to_string().lines().count(), 3);
}

#[test]
fn what_a_person_may_write() {
    // Numbers as quantities, null for an absent scalar or map, a leading separator, the old words for true.
    for (from, to) in [
        ("guest: 4Gi", "guest: 4294967296"),
        ("guest: 4Gi", "guest: 1e9"),
        (
            "name: ledger",
            "name: ledger, creationTimestamp: null, labels: null",
        ),
        ("running: true", "running: yes"),
        ("\napiVersion", "---\napiVersion"),
        ("ledger-root}}]\n", "ledger-root}}]\n---\n"),
        (
            "ledger-root}}]\n",
            "ledger-root}}]\nstatus: {printableStatus: Running, anything: 1}\n",
        ),
        ("kubevirt.io/v1", "kubevirt.io/v1alpha3"),
        ("cpu: {cores: 2}", "cpu: &c {cores: 2}"),
    ] {
        assert!(LEDGER.contains(from), "{from}");
        if let Err(error) = parse(&LEDGER.replacen(from, to, 1)) {
            panic!("{to}: {error}");
        }
    }
    assert_eq!(
        vm(&LEDGER.replace("4Gi", "1e9"))
            .spec
            .template
            .spec
            .domain
            .memory
            .unwrap()
            .guest
            .unwrap()
            .0,
        "1000000000"
    );
    assert_eq!(vm(&LEDGER.replace("true", "yes")).spec.running, Some(true));
    assert_eq!(vm(&LEDGER.replace("true", "Off")).spec.running, Some(false));
    assert_eq!(
        vm(&LEDGER.replace("name: ledger}", "name: on}"))
            .metadata
            .name
            .as_deref(),
        Some("on")
    );
}

#[test]
fn json_is_taken_too() {
    let json = r#"{
        "apiVersion": "kubevirt.io\/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "tiny", "annotations": {"note": "\ud83d\ude80"}},
        "spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}}
    }"#;
    let Ok(Manifest::VirtualMachineInstance(vmi)) = parse(json) else {
        panic!("{:?}", parse(json))
    };
    assert_eq!(vmi.metadata.annotations.unwrap()["note"], "\u{1f680}");
    let error = parse(&json.replace("guest", "gest")).unwrap_err().to_string();
    assert_eq!(
        error,
        "line 4: spec.domain.memory.gest: unknown field; did you mean `guest`?"
    );
}

#[test]
fn what_is_no_machine() {
    for (text, expected) in [
        ("", "the manifest is empty"),
        ("---\n# nothing\n", "the manifest is empty"),
        (
            "hello",
            "the manifest is the text \"hello\", not an object with `kind` and `spec`",
        ),
        (
            "[]",
            "this is a list, which holds several objects; give one VirtualMachine or VirtualMachineInstance",
        ),
        (
            "spec: {}",
            "the manifest has no `kind`; it should start with `apiVersion: kubevirt.io/v1` and `kind: VirtualMachine`",
        ),
        (
            "{kind: List, apiVersion: v1, items: []}",
            "this is a List, which holds several objects; give one VirtualMachine or VirtualMachineInstance",
        ),
        (
            "{kind: Pod, apiVersion: v1}",
            "`kind: Pod` is not a machine; give a VirtualMachine or a VirtualMachineInstance",
        ),
        (
            "{kind: VirtualMachine, apiVersion: v1}",
            "`apiVersion` of a VirtualMachine should be `kubevirt.io/v1`, found `v1`",
        ),
        (
            "{kind: 3, apiVersion: v1}",
            "`kind` should be text, found the number 3",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "the file holds 2 documents, separated by `---`; give one VirtualMachine or VirtualMachineInstance",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
    }
    for text in ["a: [", "a: 1\na: 2", "a: *b", "a: !exec rm", "\u{0}", "{a: 1}}"] {
        assert!(
            matches!(parse(text), Err(ParseError::Syntax(_))),
            "{text}: {:?}",
            parse(text)
        );
    }
}

#[test]
fn hostile_input_is_bounded() {
    let head = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\n";
    let mut bomb = format!("{head}a0: &a0 [x, x]\n");
    for level in 1..30 {
        bomb += &format!("a{level}: &a{level} [*a{0}, *a{0}, *a{0}]\n", level - 1);
    }
    let nested = format!("{head}spec: {}{}", "[".repeat(5000), "]".repeat(5000));
    let json = format!("{{\"kind\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let blocks: String = (0..500)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    for text in [bomb, nested, json, blocks] {
        let error = parse(&text).unwrap_err();
        assert!(matches!(error, ParseError::Syntax(_)), "{error}");
        assert!(error.to_string().len() < 1000, "{error}");
    }
    let many: String = (0..10_000)
        .map(|field| format!("  {}{field}: 1\n", "f".repeat(50)))
        .collect();
    let Err(ParseError::Fields(problems)) = parse(&format!("{head}spec:\n{many}")) else {
        panic!()
    };
    assert_eq!(problems.len(), 100);
    let long = format!("{head}{}: 1\nspec: {{runing: {}}}", "x".repeat(1000), "\"y\u{1b}");
    assert!(parse(&long).is_err());
    assert_eq!(parse(&"x".repeat(2 << 20)), Err(ParseError::TooLarge(2 << 20)));
    // Of the processor, which this thread may have to share.
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    assert!(spent.tv_sec < 20, "{spent:?}");
}

/// What is written comes back: no field is lost on the way through the types.
#[test]
fn a_spec_survives_the_round() {
    let text = include_str!("everything.yaml");
    let vm = vm(text);
    let out = serde_json::to_value(&vm).unwrap();
    let mut documents = tree::read(text).unwrap();
    assert_eq!(out, documents.remove(0).into_json());
}

/// The file of the test above has every field of our own types, so that none escapes it.
#[test]
fn everything_is_everything() {
    fn keys(node: &Node, found: &mut std::collections::BTreeSet<String>) {
        match &node.value {
            Value::Map(fields) => {
                for (key, value) in fields {
                    found.insert(key.clone());
                    keys(value, found);
                }
            }
            Value::List(items) => items.iter().for_each(|item| keys(item, found)),
            _ => {}
        }
    }
    let mut found = std::collections::BTreeSet::new();
    keys(
        &tree::read(include_str!("everything.yaml")).unwrap()[0],
        &mut found,
    );
    let schema = schema_for!(VirtualMachine).to_value();
    let definitions = schema["$defs"].as_object().unwrap();
    // A manifest has no status.
    let status = [
        "Condition",
        "ControllerRevisionRef",
        "CpuTopology",
        "InstancetypeStatusRef",
        "PhaseTransition",
        "StartFailure",
        "StateChangeRequest",
    ];
    let ours = |name: &str| !name.contains('.') && !name.ends_with("Status") && !status.contains(&name);
    for (name, definition) in definitions.iter().filter(|(name, _)| ours(name)) {
        for field in definition["properties"]
            .as_object()
            .into_iter()
            .flat_map(serde_json::Map::keys)
        {
            assert!(found.contains(field), "{name}.{field}");
        }
    }
}
