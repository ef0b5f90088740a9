//! Which versions of objects our own writes replaced. The cache hears of a write a moment later than who made it, and an event
//! of what the object owns may have it looked at before that: what is made of the old version would be refused as a conflict,
//! so that nothing is made of it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::{Resource, ResourceExt};

/// The version of each object, by its UID, that the last write replaced.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, String>>);

impl Written {
    fn replaced(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write to `old` succeeded and made `new`, which is the same version where nothing changed.
    pub fn note<K: Resource>(&self, old: &K, new: &K) {
        if let (Some(uid), Some(version)) = (old.uid(), old.resource_version())
            && new.resource_version().as_ref() != Some(&version)
        {
            self.replaced().insert(uid, version);
        }
    }

    /// Whether this is an object as it was before our last write: the cache will have the next version soon.
    pub fn is_old<K: Resource>(&self, object: &K) -> bool {
        let (uid, version) = (object.uid(), object.resource_version());
        let replaced = self.replaced();
        let last = uid.and_then(|uid| replaced.get(&uid));
        last.is_some() && last == version.as_ref()
    }

    /// The object goes.
    pub fn forget<K: Resource>(&self, object: &K) {
        if let Some(uid) = object.uid() {
            self.replaced().remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use nacelle_api::VirtualMachineInstance;

    use super::*;

    fn vmi(uid: &str, version: &str) -> VirtualMachineInstance {
        let mut vmi = VirtualMachineInstance::new("a", Default::default());
        vmi.metadata.uid = Some(uid.into());
        vmi.metadata.resource_version = Some(version.into());
        vmi
    }

    #[test]
    fn only_what_a_write_of_ours_replaced_is_old() {
        let written = Written::default();
        assert!(!written.is_old(&vmi("u", "1")));
        written.note(&vmi("u", "1"), &vmi("u", "2"));
        assert!(written.is_old(&vmi("u", "1")));
        assert!(!written.is_old(&vmi("u", "2")) && !written.is_old(&vmi("v", "1")));
        // One that changes nothing replaces nothing: no event would come.
        written.note(&vmi("u", "2"), &vmi("u", "2"));
        assert!(!written.is_old(&vmi("u", "2")));
        written.forget(&vmi("u", "2"));
        assert!(!written.is_old(&vmi("u", "1")));
    }
}
