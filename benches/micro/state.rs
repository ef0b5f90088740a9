//! A machine's state: encoded and read back.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use criterion::{Criterion, criterion_group, criterion_main};
use nacelle_vmm::VmState;
use nacelle_vmm::vcpu::state::VcpuState;

fn encode(criterion: &mut Criterion) {
    let state = VmState {
        vcpus: vec![VcpuState::default(); 4],
        ..VmState::default()
    };
    let bytes = serde_json::to_vec(&state).unwrap();
    criterion.bench_function("state of 4 vCPUs: encode", |bencher| {
        bencher.iter(|| serde_json::to_vec(&state).unwrap());
    });
    criterion.bench_function("state of 4 vCPUs: decode", |bencher| {
        bencher.iter(|| serde_json::from_slice::<VmState>(&bytes).unwrap());
    });
}

criterion_group!(benches, encode);
criterion_main!(benches);
