//! A manifest as a person may write it: parsed, completed, validated, and held against what is honoured.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacelle_api::{
    FieldPath, Manifest, VirtualMachineInstanceSpec, defaults, parse, support, validate_vm, validate_vmi,
};

fn complete(spec: &mut VirtualMachineInstanceSpec) {
    let _ = support(spec, &FieldPath::new("spec"));
    defaults::apply(spec);
    let once = spec.clone();
    defaults::apply(spec);
    assert_eq!(*spec, once, "what is complete stays as it is");
    let _ = support(spec, &FieldPath::new("spec"));
}

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(Manifest::VirtualMachine(mut vm)) => {
            let _ = validate_vm(&vm);
            complete(&mut vm.spec.template.spec);
            let _ = validate_vm(&vm);
        }
        Ok(Manifest::VirtualMachineInstance(mut vmi)) => {
            let _ = validate_vmi(&vmi);
            complete(&mut vmi.spec);
            let _ = validate_vmi(&vmi);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
