use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use nacelle_api::VirtualMachineInstance;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::spans::{Start, spans};
use super::*;

const UID: &str = "0f7b1c9e-3a52-4d6e-8f10-223344556677";

fn vmi(made: Option<&str>) -> VirtualMachineInstance {
    let annotations = made.map(|made| json!({MADE: made}));
    serde_json::from_value(
        json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "a", "namespace": "n", "uid": UID, "creationTimestamp": "1970-01-01T00:00:10Z",
            "annotations": annotations},
        "spec": {"domain": {"devices": {}}}}),
    )
    .unwrap()
}

fn pod(made: Option<&str>) -> k8s_openapi::api::core::v1::Pod {
    let annotations = made.map(|made| json!({MADE: made}));
    serde_json::from_value(json!({"metadata": {"name": "p", "creationTimestamp": "1970-01-01T00:00:10Z", "annotations": annotations},
        "spec": {"nodeName": "node1", "containers": []},
        "status": {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:10Z"}]}}))
    .unwrap()
}

fn start() -> Start {
    serde_json::from_value(json!({"began": 12_500_000, "parts": [["images", 200_000], ["machine", 50_000]], "firstLine": 13_000_000}))
        .unwrap()
}

fn told(
    vmi: &VirtualMachineInstance,
    pod: &k8s_openapi::api::core::v1::Pod,
    start: &Start,
) -> Vec<(String, u64, u64)> {
    spans(vmi, pod, start)
        .into_iter()
        .map(|span| (span.name, span.from, span.to))
        .collect()
}

#[test]
fn the_parts_of_a_start_are_the_whole() {
    let spans = told(&vmi(Some("10100000")), &pod(Some("10400000")), &start());
    let expected = [
        ("start", 10_100_000, 13_000_000),
        ("controller", 10_100_000, 10_400_000),
        ("scheduler", 10_400_000, 10_400_000),
        ("kubelet", 10_400_000, 12_500_000),
        ("launcher", 12_500_000, 12_750_000),
        ("guest", 12_750_000, 13_000_000),
        ("images", 12_500_000, 12_700_000),
        ("machine", 12_700_000, 12_750_000),
    ];
    assert_eq!(
        spans,
        expected.map(|(name, from, to)| (name.to_owned(), from, to))
    );
}

#[test]
fn clocks_that_differ_and_times_that_are_not_known_give_no_span_that_ends_before_it_began() {
    let early = Start {
        began: 1,
        parts: vec![("images".into(), u64::MAX), ("more".into(), 1)],
        first_line: 2,
    };
    for (vmi, pod, start) in [
        (vmi(None), pod(None), start()),
        (vmi(Some("nonsense")), pod(Some("10400000")), start()),
        (vmi(Some("10100000")), pod(Some("99000000")), start()),
        (vmi(Some("10100000")), pod(None), early),
    ] {
        for (name, from, to) in told(&vmi, &pod, &start) {
            assert!(from <= to, "{name}: {from} to {to}");
        }
    }
}

#[test]
fn a_collector_is_an_address_of_http() {
    assert!(collector("http://collector.monitoring:4318").is_ok());
    for wrong in ["https://collector:4318", "collector:4318", "http://", "/path", ""] {
        assert!(collector(wrong).is_err(), "{wrong}");
    }
}

/// A collector that answers with a status; what it hears.
async fn listening(status: StatusCode) -> (Uri, mpsc::UnboundedReceiver<(String, Bytes)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = service_fn(move |request: Request<Incoming>| {
            let tell = tell.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let _ = tell.send((path, body));
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = status;
                Ok::<_, hyper::Error>(response)
            }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), answer)
            .await;
    });
    (collector(&address).unwrap(), heard)
}

#[tokio::test]
async fn a_collector_is_sent_what_the_official_types_read() {
    let (collector, mut heard) = listening(StatusCode::OK).await;
    let spans = spans(&vmi(Some("10100000")), &pod(Some("10400000")), &start());
    export(&collector, UID, &spans).await.unwrap();
    let (path, body) = heard.recv().await.unwrap();
    assert_eq!(path, "/v1/traces");
    let read: ExportTraceServiceRequest = serde_json::from_slice(&body).unwrap();
    let read = &read.resource_spans[0].scope_spans[0].spans;
    assert_eq!(read.len(), spans.len());
    let of = |name: &str| read.iter().find(|span| span.name == name).unwrap();
    let whole = of("start");
    assert_eq!(whole.trace_id, uuid::Uuid::parse_str(UID).unwrap().as_bytes());
    assert!(whole.parent_span_id.is_empty());
    assert_eq!(whole.start_time_unix_nano, 10_100_000_000);
    assert_eq!(whole.end_time_unix_nano, 13_000_000_000);
    assert!(
        whole
            .attributes
            .iter()
            .any(|attribute| attribute.key == "nacelle.vmi.name")
    );
    assert_eq!(of("launcher").parent_span_id, whole.span_id);
    assert_eq!(of("images").parent_span_id, of("launcher").span_id);
}

#[tokio::test]
async fn a_collector_that_will_not_have_it_is_told_of() {
    let (collector, _heard) = listening(StatusCode::UNAUTHORIZED).await;
    let refused = export(&collector, UID, &[]).await.unwrap_err();
    assert!(refused.to_string().contains("401"), "{refused}");
}
