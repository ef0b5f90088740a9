//! Where in an object something is: `spec.domain.devices.disks[0].name`.

use std::fmt;

/// A field's path from the object's root, written as KubeVirt and kubectl do.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(String);

impl FieldPath {
    /// A path from its text; `""` is the object itself.
    pub fn new(text: impl Into<String>) -> Self {
        FieldPath(text.into())
    }

    /// The field `name` of what is here; a dotted name is several steps.
    pub fn field(&self, name: &str) -> Self {
        if self.0.is_empty() {
            FieldPath(name.to_owned())
        } else {
            FieldPath(format!("{}.{name}", self.0))
        }
    }

    /// The element `index` of the list that is here.
    pub fn index(&self, index: usize) -> Self {
        FieldPath(format!("{}[{index}]", self.0))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
