//! What the importer is to fetch. Pure: what cannot be done is refused by name, before anything is made.

use nacelle_api::datavolume::{
    DataSource, DataVolumeSource, DataVolumeSpec, HttpSource, ObjectStoreSource, RegistrySource,
};

/// What fills a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum Fetch {
    /// A file on the web.
    Http(HttpSource),
    /// The disk in a container image.
    Registry {
        /// `docker://...`.
        url: String,
        /// The rest of it.
        source: RegistrySource,
    },
    /// Another claim's disk.
    Claim {
        /// Its namespace; none is the DataVolume's.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// An object in a store.
    S3(ObjectStoreSource),
    /// What somebody sends.
    Upload,
    /// Nothing: an empty disk.
    Blank,
}

impl Fetch {
    /// The word for it in names of phases.
    pub fn verb(&self) -> &'static str {
        match self {
            Fetch::Claim { .. } => "Clone",
            Fetch::Upload => "Upload",
            Fetch::Http(_) | Fetch::Registry { .. } | Fetch::S3(_) | Fetch::Blank => "Import",
        }
    }
}

/// Whether an archive's files are wanted, not a disk.
pub fn is_archive(spec: &DataVolumeSpec) -> bool {
    spec.content_type.as_deref() == Some("archive")
}

/// Reads a spec whose source is `source`.
///
/// # Errors
/// It wants what this version does not do.
pub fn fetch(spec: &DataVolumeSpec, source: &DataVolumeSource) -> Result<Fetch, String> {
    let not_yet = |field: &str| Err(format!("{field} is not supported by this version of Nacelle"));
    let DataVolumeSource {
        http,
        s3,
        gcs,
        registry,
        pvc,
        snapshot,
        upload,
        blank,
        imageio,
        vddk,
    } = source;
    match spec.content_type.as_deref() {
        None | Some("" | "kubevirt" | "archive") => {}
        Some(other) => return not_yet(&format!("contentType {other}")),
    }
    if is_archive(spec) && http.is_none() && s3.is_none() && upload.is_none() {
        return Err("contentType archive is for the sources http, s3 and upload".into());
    }
    if !spec.checkpoints.is_empty() || spec.final_checkpoint == Some(true) {
        return not_yet("an import in several stages (checkpoints)");
    }
    for (name, set) in [
        ("gcs", gcs.is_some()),
        ("snapshot", snapshot.is_some()),
        ("imageio", imageio.is_some()),
        ("vddk", vddk.is_some()),
    ] {
        if set {
            return not_yet(&format!("source.{name}"));
        }
    }
    match (http, s3, registry, pvc, upload, blank) {
        (Some(http), None, None, None, None, None) => Ok(Fetch::Http(http.clone())),
        (None, Some(object), None, None, None, None) => Ok(Fetch::S3(object.clone())),
        (None, None, Some(registry), None, None, None) => image(registry),
        (None, None, None, Some(claim), None, None) => Ok(Fetch::Claim {
            namespace: claim.namespace.clone(),
            name: claim.name.clone(),
        }),
        (None, None, None, None, Some(_), None) => Ok(Fetch::Upload),
        (None, None, None, None, None, Some(_)) => Ok(Fetch::Blank),
        (None, None, None, None, None, None) => {
            Err("Data volume should have either Source or SourceRef".into())
        }
        _ => Err("Multiple Data volume sources".into()),
    }
}

/// A container image, pulled by the importer.
fn image(source: &RegistrySource) -> Result<Fetch, String> {
    let not_yet = |field: &str| {
        Err(format!(
            "source.registry.{field} is not supported by this version of Nacelle"
        ))
    };
    if source.image_stream.is_some() {
        return not_yet("imageStream");
    }
    if source
        .pull_method
        .as_deref()
        .is_some_and(|method| method != "pod")
    {
        return not_yet("pullMethod node");
    }
    match &source.url {
        Some(url) if url.starts_with("docker://") => Ok(Fetch::Registry {
            url: url.clone(),
            source: source.clone(),
        }),
        Some(url) if url.starts_with("oci-archive:") => not_yet("url oci-archive"),
        _ => Err("source.registry.url must begin with docker://".into()),
    }
}

/// The source that a DataSource of `namespace` names.
///
/// # Errors
/// It names none that this version reads.
pub fn named(source: &DataSource, namespace: &str) -> Result<DataVolumeSource, String> {
    let mut pvc = source.spec.source.pvc.clone();
    let Some(claim) = &mut pvc else {
        return Err(
            "the DataSource names no claim; others are not supported by this version of Nacelle".into(),
        );
    };
    claim.namespace.get_or_insert_with(|| namespace.to_owned());
    Ok(DataVolumeSource {
        pvc,
        ..DataVolumeSource::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_refused_by_its_name() {
        #[rustfmt::skip]
        let table = [
            ("source: {http: {url: 'https://a/b'}}", ""),
            ("source: {blank: {}}", ""),
            ("source: {s3: {url: 'https://a/b/c', secretRef: d}}", ""),
            ("source: {pvc: {name: a}}", ""),
            ("source: {vddk: {url: a}}", "source.vddk is not supported by this version of Nacelle"),
            ("source: {upload: {}}", ""),
            ("source: {gcs: {url: a}}", "source.gcs is not supported by this version of Nacelle"),
            ("source: {upload: {}, blank: {}}", "Multiple Data volume sources"),
            ("source: {http: {url: a}, blank: {}}", "Multiple Data volume sources"),
            ("source: {registry: {url: 'docker://a/b:1'}}", ""),
            ("source: {registry: {url: 'docker://a/b:1', pullMethod: node}}",
                "source.registry.pullMethod node is not supported by this version of Nacelle"),
            ("source: {registry: {url: 'a/b:1'}}", "source.registry.url must begin with docker://"),
            ("source: {}", "Data volume should have either Source or SourceRef"),
            ("source: {upload: {}}, contentType: archive", ""),
            ("source: {blank: {}}, contentType: archive", "contentType archive is for the sources http, s3 and upload"),
            ("source: {blank: {}}, contentType: other", "contentType other is not supported by this version of Nacelle"),
        ];
        for (spec, refused) in table {
            let spec: DataVolumeSpec = serde_saphyr::from_str(&format!("{{{spec}}}")).unwrap();
            let found = fetch(&spec, spec.source.as_ref().unwrap());
            assert_eq!(found.err().unwrap_or_default(), refused, "{spec:?}");
        }
    }
}
