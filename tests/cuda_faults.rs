//! Failures of the driver, each in a process of its own: no driver, no device, no memory, refused images and launches, a
//! faulting kernel. Every one is a typed error, nothing panics, nothing leaks, and what was not computed is not written.
//!
//! The faults are injected through `GPUEMU_FAIL`; where the driver does not take it, only the tests that need no injection
//! run.
#![cfg(feature = "cuda")]

mod cuda_support;

use cuda_support::{Step, check_refused_launches, child, device, emulated, gpu_required, is_child, say};
use simgrad::cuda::host::{self, Cuda};
use simgrad::cuda::{self, DeviceStepOptions, Kernels};
use simgrad::{Error, MatMut, MatRef, Objective, StepOptions, StepReport, WriteMode};

const N: usize = 10;
const D: usize = 8;

fn objective() -> Objective {
    "cir-lin_ms".parse().unwrap()
}

/// A step on host memory; the outputs hold 7 before.
fn host_step(cuda: &Cuda) -> (simgrad::Result<StepReport>, Vec<f32>) {
    let x: Vec<f32> = cuda_support::numbers(N * D, 1);
    let y: Vec<f32> = cuda_support::numbers(N * D, 2);
    let (mut dx, mut dy) = (vec![7.0f32; N * D], vec![7.0f32; N * D]);
    let report = host::goal_step(
        cuda,
        MatRef::new(&x, N, D).unwrap(),
        MatRef::new(&y, N, D).unwrap(),
        &objective(),
        &StepOptions::default(),
        MatMut::new(&mut dx, N, D).unwrap(),
        MatMut::new(&mut dy, N, D).unwrap(),
    );
    dx.extend(dy);
    (report, dx)
}

/// Whether faults can be injected here; says so if not.
fn injectable() -> bool {
    if device().is_none() {
        return false;
    }
    let yes = emulated("child_steps_and_retries");
    if !yes {
        say("note: this driver does not take injected faults");
    }
    yes
}

#[test]
fn child_steps_and_retries() {
    if !is_child("child_steps_and_retries") {
        return;
    }
    // Every attempt either works, or says that memory is out and changes nothing, and then the next one works.
    let mut failures = 0;
    let cuda = loop {
        match Cuda::new(0) {
            Ok(cuda) => break cuda,
            Err(Error::OutOfMemory { .. }) if failures < 2 => failures += 1,
            Err(other) => panic!("Cuda::new: {other:?}"),
        }
    };
    let mut attempt = || loop {
        match host_step(&cuda) {
            (Ok(report), gradient) => break (report, gradient),
            (Err(Error::OutOfMemory { op: "goal_step", wanted }), untouched) if failures < 2 => {
                assert!(wanted > 0);
                assert!(untouched.iter().all(|&v| v == 7.0), "a failed call has written something");
                failures += 1;
            }
            (Err(other), _) => panic!("goal_step: {other:?}"),
        }
    };
    assert_eq!(attempt(), attempt());
    drop(cuda);
    say(&format!("failures: {failures}"));
}

#[test]
fn every_failing_allocation_is_an_error_that_leaks_nothing_and_can_be_retried() {
    if !injectable() {
        return;
    }
    let mut failed = 0;
    for k in 1.. {
        let rule = format!("alloc:{k}");
        let vars = [("GPUEMU_FAIL", Some(rule.as_str())), ("GPUEMU_LEAKS", Some("1"))];
        let run = child("child_steps_and_retries", &vars).expect("leaks: none");
        if run.text.contains("failures: 0") {
            break;
        }
        assert!(run.text.contains("failures: 1"), "{}", run.text);
        failed += 1;
        assert!(k < 100, "no end of allocations");
    }
    // Those of two steps.
    assert!(failed >= 10, "only {failed} allocations failed");
}

#[test]
fn child_steps_through_refused_launches() {
    if !is_child("child_steps_through_refused_launches") {
        return;
    }
    let (context, kernels) = device().expect("a device");
    let stream = context.new_stream().unwrap();
    let objective = objective();
    let mut step = Step::<f32, f32>::new(&stream, N, D, &objective, 3);
    let ones = vec![1.0f32; N * D];
    step.dx.set(&stream, &ones);
    step.dy.set(&stream, &ones);
    let options = || DeviceStepOptions { write: WriteMode::Accumulate, ..DeviceStepOptions::default() };
    match step.enqueue(kernels, &stream, &objective, &options()) {
        Err(Error::LaunchRefused { kernel, grid, block, .. }) => {
            assert!(grid.0 > 0 && block.0 > 0);
            say(&format!("refused: {kernel}"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(step.dx.read(&stream, "dx"), ones, "a refused step has added to dx");
    assert_eq!(step.dy.read(&stream, "dy"), ones, "a refused step has added to dy");
    step.enqueue(kernels, &stream, &objective, &options()).unwrap();
    assert_ne!(step.dx.read(&stream, "dx"), ones);
    context.check_err().unwrap();
}

#[test]
fn every_refused_launch_names_its_kernel_and_leaves_the_gradients_alone() {
    if injectable() {
        check_refused_launches(&["prepare_f32", "mine_stats_small_f32", "goal_small_f32_f32"]);
    }
}

#[test]
fn child_opens_the_device() {
    if !is_child("child_opens_the_device") {
        return;
    }
    match cuda::open_context(0).and_then(|context| Kernels::load(&context).map(drop)) {
        Ok(()) => say("opened"),
        Err(error) => say(&format!("error: {error:?}\nmessage: {error}")),
    }
    // The CPU does not care.
    let cpu = simgrad::cpu::Cpu::new();
    let mut norms = [0.0f32];
    simgrad::cpu::row_norms(&cpu, MatRef::new(&[3.0f32, 4.0], 1, 2).unwrap(), &mut norms).unwrap();
    say(&format!("cpu: {}", norms[0]));
}

fn opening(vars: &[(&str, Option<&str>)]) -> String {
    child("child_opens_the_device", vars).expect("cpu: 5").text
}

#[test]
fn what_keeps_cuda_from_being_used_has_its_own_error() {
    if !injectable() {
        return;
    }
    for (rule, error) in [
        ("init:1", "DeviceNotFound { ordinal: 0, available: 0 }"),
        ("init:1:34", "DriverNotFound"),
        ("init:1:803", "DriverTooOld"),
        ("init:1:999", "Driver { op: \"open_context\", call: \"cuInit\""),
        ("cuDevicePrimaryCtxRetain:1:2", "OutOfMemory"),
        ("module:1", "UnsupportedArchitecture"),
        ("module:2:222", "DriverTooOld"),
        ("module:3:218", "ImageRejected"),
        ("module:1:2", "OutOfMemory"),
        ("cuModuleGetFunction:2:500", "ImageRejected"),
        ("cuFuncSetAttribute:1:1", "ImageRejected"),
        ("cuCtxSetCurrent:1:201", "Driver {"),
    ] {
        let text = opening(&[("GPUEMU_FAIL", Some(rule)), ("GPUEMU_LEAKS", Some("1"))]);
        assert!(text.contains(&format!("error: {error}")), "{rule}:\n{text}");
        assert!(!text.contains("finding(s) at exit"), "{rule}:\n{text}");
    }
    let hidden = opening(&[("GPUEMU_DEVICES", Some("0"))]);
    assert!(hidden.contains("error: DeviceNotFound { ordinal: 0, available: 0 }"), "{hidden}");
    let old = opening(&[("GPUEMU_CC", Some("8.0"))]);
    assert!(old.contains("opened"), "{old}");
}

#[test]
fn without_a_driver_there_is_an_error_and_no_panic() {
    let text = opening(&[("LD_LIBRARY_PATH", None)]);
    let expected = if cuda::probe::kernels_built() { "error: DriverNotFound" } else { "error: KernelsNotBuilt" };
    // A machine may have a driver that is found without the variable.
    assert!(text.contains(expected) || text.contains("opened"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn child_meets_a_faulting_kernel() {
    if !is_child("child_meets_a_faulting_kernel") {
        return;
    }
    let cuda = Cuda::new(0).expect("a device");
    for attempt in 0..3 {
        let (report, untouched) = host_step(&cuda);
        let Err(Error::ContextPoisoned { detail, .. }) = report else { panic!("attempt {attempt}: {report:?}") };
        assert!(detail.contains("700"), "{detail}");
        assert!(untouched.iter().all(|&v| v == 7.0), "a faulted call has written something");
    }
    assert!(Cuda::new(0).is_err(), "a context that was lost is opened again");
    let cpu = simgrad::cpu::Cpu::new();
    let mut norms = [0.0f32];
    simgrad::cpu::row_norms(&cpu, MatRef::new(&[3.0f32, 4.0], 1, 2).unwrap(), &mut norms).unwrap();
    assert_eq!(norms, [5.0]);
    drop(cuda);
    say("survived");
}

#[test]
fn after_a_fault_every_call_says_so_the_cpu_works_and_drops_are_quiet() {
    if !injectable() {
        return;
    }
    for k in 1..=cuda::goal_step_launches(N) {
        let rule = format!("launch:{k}:700");
        let run = child("child_meets_a_faulting_kernel", &[("GPUEMU_FAIL", Some(rule.as_str()))]).expect("survived");
        assert!(!run.text.contains("panicked"), "{}", run.text);
    }
}

#[test]
fn child_mixes_devices() {
    if !is_child("child_mixes_devices") {
        return;
    }
    let (_, kernels) = device().expect("a device");
    let other = cuda::open_context(1).expect("a second device");
    let stream = other.new_stream().unwrap();
    let objective = objective();
    let mut step = Step::<f32, f32>::new(&stream, N, D, &objective, 3);
    // The other device's stream, then its buffers on the right device's stream.
    let error = step.enqueue(kernels, &stream, &objective, &DeviceStepOptions::default()).unwrap_err();
    assert_eq!(error, Error::DeviceMismatch { op: "goal_step", arg: "stream", expected: 0, got: 1 });
    let own = kernels.context().new_stream().unwrap();
    let error = step.enqueue(kernels, &own, &objective, &DeviceStepOptions::default()).unwrap_err();
    assert_eq!(error, Error::DeviceMismatch { op: "goal_step", arg: "x", expected: 0, got: 1 });
    assert!(matches!(cuda::open_context(2), Err(Error::DeviceNotFound { ordinal: 2, available: 2 })));
    say("told apart");
}

#[test]
fn buffers_and_streams_of_another_device_are_refused() {
    if injectable() {
        child("child_mixes_devices", &[("GPUEMU_DEVICES", Some("2"))]).expect("told apart");
    }
}

#[test]
fn a_required_device_is_there() {
    assert!(!gpu_required() || device().is_some());
}
