//! How a machine names its instance type and its preference. Pure.

use nacelle_api::instancetype::GROUP;
use nacelle_api::vm::{InstancetypeMatcher, InstancetypeStatusRef, VirtualMachineSpec, VirtualMachineStatus};
use nacelle_api::{Cause, CauseKind, FieldPath};

use crate::crd::{KINDS, Kind, Scope};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The instance type.
    Instancetype,
    /// The preference.
    Preference,
}

impl Role {
    /// Its word in fields and messages.
    pub fn word(self) -> &'static str {
        match self {
            Role::Instancetype => "instancetype",
            Role::Preference => "preference",
        }
    }

    /// Its kinds end with this.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Role::Instancetype => "Instancetype",
            Role::Preference => "Preference",
        }
    }

    /// What the machine names.
    pub fn matcher(self, spec: &VirtualMachineSpec) -> Option<&InstancetypeMatcher> {
        match self {
            Role::Instancetype => spec.instancetype.as_ref(),
            Role::Preference => spec.preference.as_ref(),
        }
    }

    /// What the machine was found to use.
    pub(super) fn reference(self, status: &VirtualMachineStatus) -> Option<&InstancetypeStatusRef> {
        match self {
            Role::Instancetype => status.instancetype_ref.as_ref(),
            Role::Preference => status.preference_ref.as_ref(),
        }
    }

    /// The kind that is meant: singular or plural, however it is written, the cluster-wide one where nothing is said.
    ///
    /// # Errors
    /// It is none of the two.
    pub fn kind(self, asked: Option<&str>) -> Result<&'static Kind, String> {
        let asked = asked.unwrap_or_default();
        let name = if asked.is_empty() { self.default() } else { asked }.to_lowercase();
        let ours = |kind: &&Kind| kind.group == GROUP && kind.name.ends_with(self.suffix());
        let mut kinds = KINDS.iter().filter(ours);
        kinds
            .find(|kind| kind.plural == name || kind.name.to_lowercase() == name)
            .ok_or_else(|| format!("got unexpected kind in {}Matcher: {asked}", self.suffix()))
    }

    pub(super) fn default(self) -> &'static str {
        match self {
            Role::Instancetype => "virtualmachineclusterinstancetype",
            Role::Preference => "virtualmachineclusterpreference",
        }
    }

    /// The annotation of instances that holds its name.
    pub(super) fn annotation(self, kind: &Kind) -> String {
        let cluster = match kind.scope {
            Scope::Cluster => "cluster-",
            Scope::Namespaced => "",
        };
        format!("kubevirt.io/{cluster}{}-name", self.word())
    }

    /// The labels by which a volume names it: its name and its kind.
    pub(super) fn labels(self) -> [String; 2] {
        ["", "-kind"].map(|end| format!("{GROUP}/default-{}{end}", self.word()))
    }

    fn path(self) -> FieldPath {
        FieldPath::new("spec").field(self.word())
    }
}

/// Fills in the kinds that are not said.
pub fn defaults(spec: &mut VirtualMachineSpec) {
    for (role, matcher) in [
        (Role::Instancetype, &mut spec.instancetype),
        (Role::Preference, &mut spec.preference),
    ] {
        if let Some(matcher) = matcher {
            matcher.kind.take_if(|kind| kind.is_empty());
            matcher.kind.get_or_insert_with(|| role.default().to_owned());
        }
    }
}

/// What is wrong with the way in which a machine names them.
pub fn check(spec: &VirtualMachineSpec, old: Option<&VirtualMachineSpec>) -> Vec<Cause> {
    let mut causes = Vec::new();
    for role in [Role::Instancetype, Role::Preference] {
        let Some(matcher) = role.matcher(spec) else {
            continue;
        };
        let path = role.path();
        let word = role.word();
        causes.extend(super::infer::check(matcher, &path));
        if !said(&matcher.name) && !said(&matcher.infer_from_volume) {
            causes.push(Cause {
                kind: CauseKind::FieldValueNotFound,
                message: format!(
                    "Either Name or InferFromVolume should be provided within the {word} matcher"
                ),
                field: path.clone(),
            });
        }
        if let Some(old) = old.and_then(|old| role.matcher(old))
            && said(&old.revision_name)
            && old.name != matcher.name
            && old.revision_name == matcher.revision_name
        {
            causes.push(super::invalid(
                path.field("revisionName"),
                "the Matcher Name has been updated without updating the RevisionName".to_owned(),
            ));
        }
    }
    causes
}

pub(super) fn said(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

/// A cause that names the matcher: what it names is not there.
pub(super) fn not_found(role: Role, why: &str) -> Cause {
    Cause {
        kind: CauseKind::FieldValueNotFound,
        message: format!("Failure to find {}: {why}", role.word()),
        field: role.path(),
    }
}
