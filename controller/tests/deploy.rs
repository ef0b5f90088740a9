//! What is installed by kubectl and by Helm is the same, and is what the program is made for.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's leave for tests does not reach helpers of integration tests"
)]

use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
/// Files that the chart is made of; the others are taken as they are.
const FILES: [&str; 4] = ["api", "controller", "node", "roles"];

fn file(path: &str) -> String {
    read_to_string(Path::new(DEPLOY).join(path)).unwrap()
}

#[test]
fn the_definitions_are_those_of_the_program() {
    for (name, flag, ours) in [
        ("crds", "", nacelle_controller::crd::all()),
        ("datavolumes", " --cdi", nacelle_controller::crd::cdi()),
    ] {
        let ours = ours.unwrap();
        let text = |crd| format!("---\n{}", serde_saphyr::to_string(crd).unwrap());
        assert!(
            file(&format!("{name}.yaml")) == ours.iter().map(text).collect::<String>(),
            "run: cargo run -p nacelle-controller -- crds{flag} >deploy/{name}.yaml"
        );
    }
}

#[test]
fn the_chart_is_made_of_the_same_files() {
    let out = std::env::temp_dir().join(format!("nacelle-chart-{}", std::process::id()));
    let rendered = Command::new(format!("{DEPLOY}/helm/render"))
        .arg(&out)
        .status()
        .unwrap();
    assert!(rendered.success());
    for name in FILES.into_iter().chain(["observability"]) {
        let again = read_to_string(out.join(format!("{name}.yaml"))).unwrap();
        assert_eq!(
            file(&format!("helm/templates/{name}.yaml")),
            again,
            "run: deploy/helm/render"
        );
    }
    for name in ["datavolumes", "uploads"] {
        let volumes = format!(
            "{{{{- if .Values.dataVolumes }}}}\n{}{{{{- end }}}}\n",
            file(&format!("{name}.yaml"))
                .replace("namespace: nacelle\n", "namespace: {{ .Release.Namespace }}\n")
        );
        assert_eq!(
            file(&format!("helm/templates/{name}.yaml")),
            volumes,
            "run: deploy/helm/render"
        );
    }
    std::fs::remove_dir_all(&out).unwrap();
    let definitions = std::fs::read_link(Path::new(DEPLOY).join("helm/templates/crds.yaml")).unwrap();
    assert_eq!(definitions, Path::new("../../crds.yaml"));
}

#[test]
fn the_chart_with_its_own_values_installs_what_kubectl_does() {
    let values: serde_json::Value = serde_saphyr::from_str(&file("helm/values.yaml")).unwrap();
    for name in FILES {
        let mut text =
            file(&format!("helm/templates/{name}.yaml")).replace("{{ .Release.Namespace }}", "nacelle");
        for (key, value) in values.as_object().unwrap() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text = text.replace(&format!("{{{{ .Values.{key} }}}}"), &value);
        }
        assert!(
            !text.contains("{{"),
            "{name} takes a value that values.yaml does not have"
        );
        assert_eq!(text, file(&format!("{name}.yaml")));
    }
    let listed = file("kustomization.yaml");
    for name in FILES
        .into_iter()
        .chain(["namespace", "crds", "datavolumes", "uploads"])
    {
        assert!(listed.contains(&format!("- {name}.yaml")), "{name}");
    }
}

#[test]
fn people_may_look_at_every_kind() {
    let roles = file("roles.yaml");
    for kind in nacelle_controller::crd::KINDS
        .iter()
        .chain(nacelle_controller::crd::CDI)
    {
        assert!(
            roles.contains(&format!("- {}\n", kind.plural)),
            "nobody may look at {}",
            kind.plural
        );
    }
}
