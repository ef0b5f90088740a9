//! What the kinds have in common: an object of the API is metadata, a spec and a status.

/// Declares the object of a kind around its spec and status, as the API's clients want it (`k8s_openapi::Resource`).
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $plural:literal, $spec:ty, $status:ty) => {
        $crate::object::object!($(#[$doc])* $name, $plural, $spec, $status, "kubevirt.io", "v1");
    };
    ($(#[$doc:meta])* $name:ident, $plural:literal, $spec:ty, $status:ty, $group:literal, $version:literal) => {
        $crate::object::object!(
            $(#[$doc])* $name, $plural, $spec, $status, $group, $version, NamespaceResourceScope
        );
    };
    (
        $(#[$doc:meta])* $name:ident, $plural:literal, $spec:ty, $status:ty, $group:literal, $version:literal,
        $scope:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// Name, namespace, labels and the rest that every object has.
            pub metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// What a user wants of it.
            pub spec: $spec,
            /// What the controller reports of it.
            pub status: Option<$status>,
        }

        impl $name {
            /// An object that has a name and a spec.
            pub fn new(name: &str, spec: $spec) -> Self {
                let mut object = Self { spec, ..Self::default() };
                object.metadata.name = Some(name.to_owned());
                object
            }
        }

        impl k8s_openapi::Resource for $name {
            const API_VERSION: &'static str = concat!($group, "/", $version);
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($name);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::$scope;
        }

        impl k8s_openapi::Metadata for $name {
            type Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }

        // By hand, for the two fields that every object starts with and that are the same in all of a kind.
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use k8s_openapi::Resource;
                use serde::ser::SerializeStruct;
                let fields = if self.status.is_some() { 5 } else { 4 };
                let mut object = serializer.serialize_struct(Self::KIND, fields)?;
                object.serialize_field("apiVersion", Self::API_VERSION)?;
                object.serialize_field("kind", Self::KIND)?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                match &self.status {
                    Some(status) => object.serialize_field("status", status)?,
                    None => object.skip_field("status")?,
                }
                object.end()
            }
        }
    };
}

pub(crate) use object;
