//! What sets of instances and pools of machines have in common: which objects are theirs, and what is reported.
//!
//! Both work on caches that hear of a write a moment later. Nothing is counted on top of them: names are numbered and the
//! order in which objects go is always the same, so that who acts on an old cache makes nothing twice and deletes no other;
//! and before something is made, the API server is asked whether the cache has heard of all.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, OwnerReference,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::runtime::reflector::Store;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::conditions;
use nacelle_api::replicaset::ReplicaStatus;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Error, Result, absent_is_done};

/// Most objects that are made or deleted at one look.
pub const BURST: usize = 250;
/// Objects come and go by the hundred: what happens in this time is looked at once.
pub const SETTLE: Duration = Duration::from_millis(200);
/// Until the next look where nothing happens: a machine may have failed for too long, a cache may have missed an end.
pub const AGAIN: Duration = Duration::from_secs(30);
/// Until what could not be done is tried again.
pub const RETRY: Duration = Duration::from_secs(10);

/// Whether a cache has heard of all that is selected, by the API server's own word: what it has not heard of must not be made
/// again. A cache that begins is empty. (It cannot be waited for: kube's store wakes one who waits, and its reconciler does.)
///
/// # Errors
/// As the API server says.
pub async fn heard_of_all<K>(
    namespace: &str,
    selector: &Selector,
    known: &BTreeSet<String>,
    context: &Context,
) -> Result<bool>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let params = ListParams::default().labels(&selector.to_string());
    let there = api
        .list_metadata(&params)
        .await
        .doing("looking for what the cache has not heard of")?;
    Ok(there
        .items
        .iter()
        .all(|object| known.contains(&object.name_any())))
}

/// All objects of a namespace.
pub fn of<K: Resource<DynamicType = ()> + Clone>(store: &Store<K>, namespace: &str) -> Vec<Arc<K>> {
    store.state_filter(|object| object.meta().namespace.as_deref() == Some(namespace))
}

/// The selector as something that matches.
///
/// # Errors
/// A sentence, for a selector that means nothing.
pub fn selector(selector: &LabelSelector) -> Result<Selector, String> {
    for LabelSelectorRequirement {
        key,
        operator,
        values,
    } in selector.match_expressions.iter().flatten()
    {
        let given = values.as_ref().is_some_and(|values| !values.is_empty());
        match operator.as_str() {
            "In" | "NotIn" if !given => {
                return Err(format!(
                    "{key}: for 'in', 'notin' operators, values set can't be empty"
                ));
            }
            "Exists" | "DoesNotExist" if given => {
                return Err(format!(
                    "{key}: values set must be empty for exists and does not exist"
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => return Err(format!("{other:?} is not a valid label selector operator")),
        }
    }
    Selector::try_from(selector.clone()).map_err(|error| error.to_string())
}

/// Which objects are whose.
#[derive(Debug)]
pub struct Claims<K> {
    /// Owned and selected.
    pub mine: Vec<Arc<K>>,
    /// Selected, and nobody's.
    pub orphans: Vec<Arc<K>>,
    /// Owned, and not selected any more.
    pub strays: Vec<Arc<K>>,
}

/// Sorts objects by whose they are; those of others are left out. What is being deleted is adopted by nobody.
pub fn claim<K: Resource>(uid: &str, selector: &Selector, objects: Vec<Arc<K>>) -> Claims<K> {
    let mut claims = Claims {
        mine: Vec::new(),
        orphans: Vec::new(),
        strays: Vec::new(),
    };
    for object in objects {
        let owner = object
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true));
        match (
            owner.map(|owner| owner.uid == uid),
            selector.matches(object.labels()),
        ) {
            (Some(true), true) => claims.mine.push(object),
            (Some(true), false) => claims.strays.push(object),
            (None, true) if object.meta().deletion_timestamp.is_none() => claims.orphans.push(object),
            _ => {}
        }
    }
    claims
}

/// Writes who owns an object. Somebody who was faster is not overruled.
///
/// # Errors
/// As the API server says.
pub async fn set_owner<K>(object: &K, owners: Vec<OwnerReference>, context: &Context) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let patch = json!({"metadata": {
        "uid": object.uid(), "resourceVersion": object.resource_version(), "ownerReferences": owners,
    }});
    let done = api
        .patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("writing whose an object is")
}

/// Lets go of what is owned and no longer selected.
///
/// # Errors
/// As the API server says.
pub async fn release<K>(strays: &[Arc<K>], uid: &str, context: &Context) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    for stray in strays {
        let others = stray.owner_references().iter().filter(|owner| owner.uid != uid);
        set_owner(&**stray, others.cloned().collect(), context).await?;
    }
    Ok(())
}

/// Deletes an object, that one and none of its name that came later.
///
/// # Errors
/// As the API server says; one that is gone already is no error.
pub async fn delete<K>(object: &K, context: &Context) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.uid(),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    absent_is_done(api.delete(&object.name_any(), &params).await)
}

/// Why something could not be done: a word, and a sentence.
pub type Failure = (&'static str, String);

/// What was seen of a set or a pool.
pub struct Seen {
    /// Objects that count.
    pub replicas: usize,
    /// Those that are ready.
    pub ready: usize,
    /// Why the last step failed.
    pub failure: Option<Failure>,
    /// Reason and message of `ReplicaPaused`, where it is paused.
    pub paused: Option<(&'static str, &'static str)>,
}

/// The status that follows.
pub fn status(
    old: Option<&ReplicaStatus>,
    selector: &Selector,
    seen: &Seen,
    now: Timestamp,
) -> ReplicaStatus {
    let mut status = old.cloned().unwrap_or_default();
    let count = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
    status.replicas = count(seen.replicas);
    status.ready_replicas = count(seen.ready);
    status.label_selector = Some(selector.to_string());
    let list = &mut status.conditions;
    // What an earlier version said of kinds that it did not know.
    list.retain(|condition| condition.reason.as_deref() != Some("NotSupported"));
    match &seen.failure {
        Some((reason, message)) => conditions::set(list, "ReplicaFailure", true, reason, message, now),
        None => conditions::clear(list, "ReplicaFailure"),
    }
    match seen.paused {
        Some((reason, message)) => conditions::set(list, "ReplicaPaused", true, reason, message, now),
        None => conditions::clear(list, "ReplicaPaused"),
    }
    status
}

/// Writes a status that changed.
///
/// # Errors
/// As the API server says.
pub async fn report<K>(
    object: &K,
    old: Option<&ReplicaStatus>,
    new: &ReplicaStatus,
    context: &Context,
) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    if old == Some(new) {
        return Ok(());
    }
    let status = serde_json::to_value(new).map_err(|error| Error::Json("the status", error))?;
    let patch = json!({"metadata": {"resourceVersion": object.resource_version()}, "status": status});
    let api: Api<K> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let done = api
        .patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("reporting the status")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nacelle_api::VirtualMachineInstance;

    use super::*;

    fn selected() -> LabelSelector {
        LabelSelector {
            match_labels: Some(BTreeMap::from([("app".to_owned(), "a".to_owned())])),
            match_expressions: None,
        }
    }

    fn vmi(name: &str, app: &str, owner: Option<&str>, leaving: bool) -> Arc<VirtualMachineInstance> {
        let mut vmi = VirtualMachineInstance::new(name, Default::default());
        vmi.labels_mut().insert("app".into(), app.into());
        if let Some(uid) = owner {
            vmi.owner_references_mut().push(OwnerReference {
                uid: uid.into(),
                controller: Some(true),
                ..OwnerReference::default()
            });
        }
        if leaving {
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
            vmi.metadata.deletion_timestamp = Some(now);
        }
        Arc::new(vmi)
    }

    #[test]
    fn what_is_selected_and_nobodys_is_adopted_and_what_is_not_selected_any_more_is_let_go() {
        let objects = vec![
            vmi("mine", "a", Some("u"), false),
            vmi("mine-leaving", "a", Some("u"), true),
            vmi("stray", "b", Some("u"), false),
            vmi("orphan", "a", None, false),
            vmi("orphan-leaving", "a", None, true),
            vmi("others", "a", Some("v"), false),
            vmi("strangers", "b", None, false),
        ];
        let claims = claim("u", &selector(&selected()).unwrap(), objects);
        let names = |list: &[Arc<VirtualMachineInstance>]| -> Vec<String> {
            list.iter().map(|vmi| vmi.name_any()).collect()
        };
        assert_eq!(names(&claims.mine), ["mine", "mine-leaving"]);
        assert_eq!(names(&claims.orphans), ["orphan"]);
        assert_eq!(names(&claims.strays), ["stray"]);
    }

    #[test]
    fn a_selector_that_means_nothing_is_told_apart() {
        let with = |operator: &str, values: &[&str]| LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "tier".into(),
                operator: operator.into(),
                values: Some(values.iter().map(ToString::to_string).collect()),
            }]),
        };
        assert_eq!(
            selector(&with("In", &["b", "a"])).unwrap().to_string(),
            "tier in (a,b)"
        );
        for (bad, words) in [
            (with("In", &[]), "values set can't be empty"),
            (with("Exists", &["a"]), "must be empty"),
            (
                with("Near", &["a"]),
                "\"Near\" is not a valid label selector operator",
            ),
        ] {
            let said = selector(&bad).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_status_says_why_it_stands_still_and_forgets_it_afterwards() {
        let selector = selector(&selected()).unwrap();
        let seen = Seen {
            replicas: 2,
            ready: 1,
            failure: Some(("FailedCreate", "no room".into())),
            paused: Some(("Paused", "Controller got paused")),
        };
        let first = status(None, &selector, &seen, Timestamp::now());
        assert_eq!((first.replicas, first.ready_replicas), (Some(2), Some(1)));
        assert_eq!(first.label_selector.as_deref(), Some("app=a"));
        assert!(conditions::is_true(&first.conditions, "ReplicaFailure"));
        assert!(conditions::is_true(&first.conditions, "ReplicaPaused"));
        assert_eq!(status(Some(&first), &selector, &seen, Timestamp::now()), first);
        let well = Seen {
            failure: None,
            paused: None,
            ..seen
        };
        assert!(
            status(Some(&first), &selector, &well, Timestamp::now())
                .conditions
                .is_empty()
        );
    }
}
