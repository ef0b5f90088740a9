//! One question to RBAC for each request: may this user do this verb on this subresource?

use axum::http::StatusCode;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use super::Refusal;
use super::route::Route;
use crate::context::Context;
use crate::server::User;

/// Asks it.
///
/// # Errors
/// The user may not, or RBAC cannot be asked.
pub(crate) async fn check(
    context: &Context,
    user: &User,
    attributes: ResourceAttributes,
) -> Result<(), Refusal> {
    let api: Api<SubjectAccessReview> = Api::all(context.client.clone());
    let review = review(user, attributes);
    let status = api
        .create(&PostParams::default(), &review)
        .await?
        .status
        .unwrap_or_default();
    if status.allowed {
        return Ok(());
    }
    let attributes = review.spec.resource_attributes.unwrap_or_default();
    let message = format!(
        "User \"{}\" cannot {} resource \"{}/{}\" in API group \"{}\" in the namespace \"{}\" {}",
        user.name,
        attributes.verb.unwrap_or_default(),
        attributes.resource.unwrap_or_default(),
        attributes.subresource.unwrap_or_default(),
        attributes.group.unwrap_or_default(),
        attributes.namespace.unwrap_or_default(),
        status.reason.unwrap_or_default(),
    );
    Err(Refusal::new(
        StatusCode::UNAUTHORIZED,
        "Unauthorized",
        message.trim(),
    ))
}

/// What a request to the subresource API is about.
pub(super) fn attributes(route: &Route) -> ResourceAttributes {
    let mut attributes = ResourceAttributes {
        group: Some("subresources.kubevirt.io".to_owned()),
        version: Some("v1".to_owned()),
        ..ResourceAttributes::default()
    };
    match route {
        Route::ExpandSpec { namespace } => {
            attributes.namespace = Some(namespace.clone());
            attributes.resource = Some("expand-vm-spec".to_owned());
            attributes.verb = Some("update".to_owned());
        }
        Route::Object(target) => {
            attributes.namespace = Some(target.namespace.clone());
            attributes.resource = Some(target.resource.as_str().to_owned());
            attributes.subresource = Some(target.subresource.clone());
            attributes.name = Some(target.name.clone());
            attributes.verb = Some(target.verb.to_owned());
        }
    }
    attributes
}

fn review(user: &User, attributes: ResourceAttributes) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::super::route::parse;
    use super::*;

    #[test]
    fn rbac_is_asked_what_people_wrote_into_their_roles() {
        let path =
            "/apis/subresources.kubevirt.io/v1/namespaces/n/virtualmachineinstances/a/portforward/22/tcp";
        let user = User {
            name: "alice".into(),
            groups: vec!["dev".into()],
            ..User::default()
        };
        let spec = review(&user, attributes(&parse(&Method::GET, path).unwrap())).spec;
        let asked = spec.resource_attributes.unwrap();
        assert_eq!(spec.user.as_deref(), Some("alice"));
        assert_eq!(asked.resource.as_deref(), Some("virtualmachineinstances"));
        assert_eq!(asked.subresource.as_deref(), Some("portforward"));
        assert_eq!(
            (asked.verb.as_deref(), asked.name.as_deref()),
            (Some("get"), Some("a"))
        );
    }
}
