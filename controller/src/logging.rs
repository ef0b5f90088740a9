//! Log lines on standard error, for people or as JSON, each with the object that it is about.
//!
//! What is done for an object is done within [`about`]: every line from there, a library's too, names it.

use std::cell::OnceCell;
use std::future::Future;
use std::io::Write;

use clap::ValueEnum;
use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicObject;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use log::{LevelFilter, Log, Metadata, Record};
use serde_json::{Map, Value};
use tokio::task::futures::TaskLocalFuture;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Time, level, text, and the object.
    #[default]
    Human,
    /// One JSON object a line: `time`, `level`, `target`, `message`, and `kind`, `namespace`, `name`, `uid` of the object.
    Json,
}

impl Format {
    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Format::Human => "human",
            Format::Json => "json",
        }
    }
}

/// The object that something is done for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

impl Object {
    /// Of an object.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Object {
        Object {
            kind: K::kind(&()).into_owned(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
        }
    }

    /// Of what a reconciler was asked about.
    pub fn named(reference: &ObjectRef<DynamicObject>) -> Object {
        Object {
            kind: reference.dyntype.kind.clone(),
            namespace: reference.namespace.clone().unwrap_or_default(),
            name: reference.name.clone(),
            uid: reference.extra.uid.clone().unwrap_or_default(),
        }
    }

    fn fields(&self) -> [(&'static str, &str); 4] {
        [
            ("kind", &self.kind),
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("uid", &self.uid),
        ]
    }
}

tokio::task_local! {
    static ABOUT: Object;
}

/// Does it for an object.
pub fn about<F: Future>(object: Object, it: F) -> TaskLocalFuture<Object, F> {
    ABOUT.scope(object, it)
}

/// The same of what is done at once.
pub fn about_now(object: Object, it: impl FnOnce()) {
    ABOUT.sync_scope(object, it);
}

struct Lines(Format);

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are heard when they warn.
        metadata.target().starts_with("nacelle") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut line = self.line(record, Timestamp::now());
            line.push('\n');
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl Lines {
    fn line(&self, record: &Record<'_>, now: Timestamp) -> String {
        let time = now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
        let object = OnceCell::new();
        let _ = ABOUT.try_with(|about| object.set(about.clone()));
        let object = object.get();
        match self.0 {
            Format::Human => human(&time, record, object),
            Format::Json => json(time, record, object),
        }
    }
}

fn human(time: &str, record: &Record<'_>, object: Option<&Object>) -> String {
    let mut line = format!("{time} {:5} {}", record.level(), record.args());
    let fields = object.iter().flat_map(|object| object.fields());
    for (field, value) in fields.filter(|(_, value)| !value.is_empty()) {
        line.push_str(&format!(" {field}={value}"));
    }
    line
}

fn json(time: String, record: &Record<'_>, object: Option<&Object>) -> String {
    let mut line = Map::new();
    line.insert("time".into(), time.into());
    line.insert(
        "level".into(),
        record.level().as_str().to_ascii_lowercase().into(),
    );
    line.insert("target".into(), record.target().into());
    line.insert("message".into(), record.args().to_string().into());
    let fields = object.iter().flat_map(|object| object.fields());
    for (field, value) in fields.filter(|(_, value)| !value.is_empty()) {
        line.insert(field.into(), value.into());
    }
    Value::Object(line).to_string()
}

/// Starts logging; `verbose` is how often `-v` was said.
pub fn start(format: Format, verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    if log::set_boxed_logger(Box::new(Lines(format))).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use nacelle_api::VirtualMachineInstance;

    use super::*;

    fn line(format: Format) -> String {
        let mut record = Record::builder();
        record.level(log::Level::Warn).target("kube");
        let record = record.args(format_args!("no \"answer\"")).build();
        Lines(format).line(&record, Timestamp::UNIX_EPOCH)
    }

    #[tokio::test]
    async fn a_line_names_what_it_is_about() {
        let mut vmi = VirtualMachineInstance::new("a", Default::default());
        vmi.metadata.namespace = Some("n".into());
        vmi.metadata.uid = Some("u".into());
        about(Object::of(&vmi), async {
            assert_eq!(
                line(Format::Human),
                "1970-01-01T00:00:00.000Z WARN  no \"answer\" kind=VirtualMachineInstance namespace=n name=a uid=u"
            );
            let line: Value = serde_json::from_str(&line(Format::Json)).unwrap();
            assert_eq!(line["message"], "no \"answer\"");
            assert_eq!(line["level"], "warn");
            assert_eq!((&line["namespace"], &line["name"], &line["uid"]), (&"n".into(), &"a".into(), &"u".into()));
        })
        .await;
        assert_eq!(
            line(Format::Human),
            "1970-01-01T00:00:00.000Z WARN  no \"answer\""
        );
    }
}
