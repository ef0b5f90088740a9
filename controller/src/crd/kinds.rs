//! Every kind that is served: names, versions, columns. KubeVirt's, to the letter: people and tools read them.

use nacelle_api::instancetype::{self, Data};
use nacelle_api::kubevirt::KubeVirt;
use nacelle_api::migration::MigrationPolicySpec;
use nacelle_api::{
    InstancetypeSpec, PreferenceSpec, VirtualMachine, VirtualMachineInstance,
    VirtualMachineInstanceMigration, VirtualMachineInstanceReplicaSet, VirtualMachinePool,
};
use schemars::Schema;

/// A kind.
pub struct Kind {
    /// API group.
    pub group: &'static str,
    /// Kind, in CamelCase.
    pub name: &'static str,
    /// Its plural, as in URLs.
    pub plural: &'static str,
    /// What kubectl takes for it.
    pub short: &'static [&'static str],
    /// Whether it lives in a namespace.
    pub scope: Scope,
    /// Versions that are served; their schemas are the same.
    pub versions: &'static [&'static str],
    /// The version that is stored.
    pub storage: &'static str,
    /// Versions of which the API server warns.
    pub deprecated: &'static [&'static str],
    /// Whether the status is written apart from the rest.
    pub status: bool,
    /// Whether `kubectl scale` works.
    pub scale: bool,
    /// What `kubectl get` shows.
    pub columns: &'static [Column],
    /// What it may hold, and what works on it.
    pub schema: Served,
}

/// Where a kind lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In the cluster.
    Cluster,
}

/// What becomes of a kind's objects.
pub enum Served {
    /// A type of ours; a controller works on it.
    Typed(fn() -> Schema),
    /// Stored whole, whatever it holds; nothing works on it yet, and a condition says so.
    Stored,
    /// Stored whole; it has no status that could say so. Admission warns.
    Data,
}

/// A column of `kubectl get`.
pub struct Column {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) type_: &'static str,
    pub(super) wide: bool,
}

pub(super) const fn text(name: &'static str, path: &'static str) -> Column {
    Column {
        name,
        path,
        type_: "string",
        wide: false,
    }
}

pub(super) const fn number(name: &'static str, path: &'static str) -> Column {
    Column {
        type_: "integer",
        ..text(name, path)
    }
}

const fn date(name: &'static str, path: &'static str) -> Column {
    Column {
        type_: "date",
        ..text(name, path)
    }
}

const fn wide(name: &'static str, path: &'static str) -> Column {
    Column {
        wide: true,
        ..text(name, path)
    }
}

pub(super) const AGE: Column = date("Age", ".metadata.creationTimestamp");
pub(super) const PHASE: Column = text("Phase", ".status.phase");
const READY: Column = text("Ready", ".status.conditions[?(@.type=='Ready')].status");
const READY_TO_USE: Column = text("ReadyToUse", ".status.readyToUse");
const CREATION_TIME: Column = date("CreationTime", ".status.creationTime");
const ERROR: Column = text("Error", ".status.error.message");
const SOURCE_KIND: Column = text("SourceKind", ".spec.source.kind");
const SOURCE_NAME: Column = text("SourceName", ".spec.source.name");
const REPLICAS: &[Column] = &[
    number("Desired", ".spec.replicas"),
    number("Current", ".status.replicas"),
    number("Ready", ".status.readyReplicas"),
    AGE,
];

/// A kind of the group `kubevirt.io`, stored as v1.
pub(super) const CORE: Kind = Kind {
    group: "kubevirt.io",
    name: "",
    plural: "",
    short: &[],
    scope: Scope::Namespaced,
    versions: &["v1", "v1alpha3"],
    storage: "v1",
    deprecated: &["v1alpha3"],
    status: true,
    scale: false,
    columns: &[],
    schema: Served::Stored,
};

/// A kind that came later, stored as v1beta1.
const BETA: Kind = Kind {
    versions: &["v1beta1", "v1alpha1"],
    storage: "v1beta1",
    deprecated: &["v1alpha1"],
    ..CORE
};

/// Instance types: data that machines refer to.
const INSTANCETYPE: Kind = Kind {
    group: instancetype::GROUP,
    versions: &["v1beta1"],
    storage: "v1beta1",
    deprecated: &[],
    status: false,
    schema: Served::Typed(|| schemars::schema_for!(Data<InstancetypeSpec>)),
    ..CORE
};

/// Preferences: the same.
const PREFERENCE: Kind = Kind {
    schema: Served::Typed(|| schemars::schema_for!(Data<PreferenceSpec>)),
    ..INSTANCETYPE
};

/// A kind of the group `backup.kubevirt.io`.
const BACKUP: Kind = Kind {
    group: "backup.kubevirt.io",
    versions: &["v1alpha1"],
    storage: "v1alpha1",
    deprecated: &[],
    ..CORE
};

/// The kinds.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "VirtualMachine",
        plural: "virtualmachines",
        short: &["vm", "vms"],
        columns: &[AGE, text("Status", ".status.printableStatus"), READY],
        schema: Served::Typed(|| schemars::schema_for!(VirtualMachine)),
        ..CORE
    },
    Kind {
        name: "VirtualMachineInstance",
        plural: "virtualmachineinstances",
        short: &["vmi", "vmis"],
        status: false,
        columns: &[
            AGE,
            PHASE,
            text("IP", ".status.interfaces[0].ipAddress"),
            text("NodeName", ".status.nodeName"),
            READY,
            wide(
                "Live-Migratable",
                ".status.conditions[?(@.type=='LiveMigratable')].status",
            ),
            wide("Paused", ".status.conditions[?(@.type=='Paused')].status"),
        ],
        schema: Served::Typed(|| schemars::schema_for!(VirtualMachineInstance)),
        ..CORE
    },
    Kind {
        name: "VirtualMachineInstancePreset",
        plural: "virtualmachineinstancepresets",
        short: &["vmipreset", "vmipresets"],
        storage: "v1alpha3",
        deprecated: &["v1", "v1alpha3"],
        status: false,
        schema: Served::Data,
        ..CORE
    },
    Kind {
        name: "VirtualMachineInstanceReplicaSet",
        plural: "virtualmachineinstancereplicasets",
        short: &["vmirs", "vmirss"],
        scale: true,
        columns: REPLICAS,
        schema: Served::Typed(|| schemars::schema_for!(VirtualMachineInstanceReplicaSet)),
        ..CORE
    },
    Kind {
        name: "VirtualMachineInstanceMigration",
        plural: "virtualmachineinstancemigrations",
        short: &["vmim", "vmims"],
        columns: &[
            PHASE,
            text("VMI", ".spec.vmiName"),
            text("Waiting", ".status.conditions[?(@.type=='Waiting')].message"),
            wide("Source", ".status.migrationState.sourceNode"),
            wide("Target", ".status.migrationState.targetNode"),
            wide("Failure", ".status.migrationState.failureReason"),
        ],
        schema: Served::Typed(|| schemars::schema_for!(VirtualMachineInstanceMigration)),
        ..CORE
    },
    Kind {
        name: "KubeVirt",
        plural: "kubevirts",
        short: &["kv", "kvs"],
        columns: &[AGE, PHASE],
        schema: Served::Typed(|| schemars::schema_for!(KubeVirt)),
        ..CORE
    },
    Kind {
        group: "pool.kubevirt.io",
        name: "VirtualMachinePool",
        plural: "virtualmachinepools",
        short: &["vmpool", "vmpools"],
        scale: true,
        columns: REPLICAS,
        schema: Served::Typed(|| schemars::schema_for!(VirtualMachinePool)),
        ..BETA
    },
    Kind {
        group: "snapshot.kubevirt.io",
        name: "VirtualMachineSnapshot",
        plural: "virtualmachinesnapshots",
        short: &["vmsnapshot", "vmsnapshots"],
        columns: &[
            SOURCE_KIND,
            SOURCE_NAME,
            PHASE,
            READY_TO_USE,
            CREATION_TIME,
            ERROR,
        ],
        ..BETA
    },
    Kind {
        group: "snapshot.kubevirt.io",
        name: "VirtualMachineSnapshotContent",
        plural: "virtualmachinesnapshotcontents",
        short: &["vmsnapshotcontent", "vmsnapshotcontents"],
        columns: &[READY_TO_USE, CREATION_TIME, ERROR],
        ..BETA
    },
    Kind {
        group: "snapshot.kubevirt.io",
        name: "VirtualMachineRestore",
        plural: "virtualmachinerestores",
        short: &["vmrestore", "vmrestores"],
        columns: &[
            text("TargetKind", ".spec.target.kind"),
            text("TargetName", ".spec.target.name"),
            text("Complete", ".status.complete"),
            date("RestoreTime", ".status.restoreTime"),
            ERROR,
        ],
        ..BETA
    },
    Kind {
        group: "export.kubevirt.io",
        name: "VirtualMachineExport",
        plural: "virtualmachineexports",
        short: &["vmexport", "vmexports"],
        versions: &["v1", "v1beta1"],
        deprecated: &["v1beta1"],
        columns: &[SOURCE_KIND, SOURCE_NAME, PHASE],
        ..CORE
    },
    Kind {
        group: "clone.kubevirt.io",
        name: "VirtualMachineClone",
        plural: "virtualmachineclones",
        short: &["vmclone", "vmclones"],
        columns: &[
            PHASE,
            text("SourceVirtualMachine", ".spec.source.name"),
            text("TargetVirtualMachine", ".spec.target.name"),
        ],
        ..BETA
    },
    Kind {
        name: "VirtualMachineInstancetype",
        plural: "virtualmachineinstancetypes",
        short: &["vminstancetype", "vminstancetypes", "vmf", "vmfs"],
        ..INSTANCETYPE
    },
    Kind {
        name: "VirtualMachineClusterInstancetype",
        plural: "virtualmachineclusterinstancetypes",
        short: &["vmclusterinstancetype", "vmclusterinstancetypes", "vmcf", "vmcfs"],
        scope: Scope::Cluster,
        ..INSTANCETYPE
    },
    Kind {
        name: "VirtualMachinePreference",
        plural: "virtualmachinepreferences",
        short: &["vmpref", "vmprefs", "vmp", "vmps"],
        ..PREFERENCE
    },
    Kind {
        name: "VirtualMachineClusterPreference",
        plural: "virtualmachineclusterpreferences",
        short: &["vmcp", "vmcps"],
        scope: Scope::Cluster,
        ..PREFERENCE
    },
    Kind {
        group: "migrations.kubevirt.io",
        name: "MigrationPolicy",
        plural: "migrationpolicies",
        scope: Scope::Cluster,
        versions: &["v1alpha1"],
        storage: "v1alpha1",
        deprecated: &[],
        schema: Served::Typed(|| schemars::schema_for!(Data<MigrationPolicySpec>)),
        ..CORE
    },
    Kind {
        name: "VirtualMachineBackup",
        plural: "virtualmachinebackups",
        short: &["vmbackup", "vmbackups"],
        columns: &[
            SOURCE_KIND,
            SOURCE_NAME,
            text("Type", ".status.type"),
            text("CheckpointName", ".status.checkpointName"),
        ],
        ..BACKUP
    },
    Kind {
        name: "VirtualMachineBackupTracker",
        plural: "virtualmachinebackuptrackers",
        short: &["vmbackuptracker", "vmbackuptrackers"],
        ..BACKUP
    },
];
