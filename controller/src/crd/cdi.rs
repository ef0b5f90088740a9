//! CDI's kinds, to the letter as well.

use nacelle_api::cdiconfig::CDIConfig;
use nacelle_api::datavolume::{DataSource, DataVolume};

use super::kinds::{AGE, CORE, Kind, PHASE, Scope, Served, number, text};

/// Label of definitions whose objects we work on. Who installs CDI over them takes it away.
pub const SERVED_BY: (&str, &str) = ("nacelle.io/served-by", "nacelle-controller");

/// A kind of CDI.
const OURS: Kind = Kind {
    group: "cdi.kubevirt.io",
    versions: &["v1beta1"],
    storage: "v1beta1",
    deprecated: &[],
    ..CORE
};

/// The kinds.
pub const CDI: &[Kind] = &[
    Kind {
        name: "DataVolume",
        plural: "datavolumes",
        short: &["dv", "dvs"],
        columns: &[
            PHASE,
            text("Progress", ".status.progress"),
            number("Restarts", ".status.restartCount"),
            AGE,
        ],
        schema: Served::Typed(|| schemars::schema_for!(DataVolume)),
        ..OURS
    },
    Kind {
        name: "DataSource",
        plural: "datasources",
        short: &["das"],
        schema: Served::Typed(|| schemars::schema_for!(DataSource)),
        ..OURS
    },
    Kind {
        name: "CDIConfig",
        plural: "cdiconfigs",
        scope: Scope::Cluster,
        schema: Served::Typed(|| schemars::schema_for!(CDIConfig)),
        ..OURS
    },
];
