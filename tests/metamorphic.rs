//! Relations between runs that hold whatever the right numbers are.

mod common;

use common::check::{bound, close, rounding};
use common::data::{Kind, Matrix, ODD, TIGHT, WIDE, bits_equal, to_f64};
use common::goal::{Case, Got, Shape};
use common::{for_each_dtype, for_each_gradient, is_cuda, on_every_backend};
use simgrad::cpu::Cpu;
use simgrad::{
    Backend, CosineOptions, Element, GradientOf, MineOptions, Normalization, Objective, RecallOptions, Reduction,
};

fn objective(name: &str) -> Objective {
    name.parse().expect("a name")
}

fn rows_of<T: Element>(m: &Matrix<T>, order: &[usize]) -> Matrix<T> {
    let (values, d) = (m.values(), m.cols);
    let moved: Vec<f64> = order.iter().flat_map(|&i| values[i * d..][..d].to_vec()).collect();
    Matrix::new(&moved, order.len(), d, TIGHT)
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Equal but for the order of sums: some roundings of the largest element.
#[track_caller]
fn nearly<T: Element, G: Element>(name: &str, got: &[f64], want: &[f64]) {
    let scale = largest(want);
    assert!(scale > 0.0, "{name}: all zero");
    close(name, got, want, |at| 200.0 * rounding::<T::Acc>() * scale + 2.02 * rounding::<G>() * want[at].abs());
}

fn permute_cell<T: Element, G: GradientOf<T>>(backend: &Backend, objective: Objective) {
    let n = 45;
    let case = Case::<T>::clear(&Shape { kind: Kind::Hubs, ..Shape::new(n, 30) }, objective, 1);
    let order: Vec<usize> = (0..n).map(|i| (i * 19 + 7) % n).collect();
    let moved = Case { x: rows_of(&case.x, &order), y: rows_of(&case.y, &order), ..case.clone() };
    let (a, b) = (case.run::<G>(backend, TIGHT), moved.run::<G>(backend, ODD));
    let name = format!("{} permuted {objective} {}", backend.name(), T::DTYPE);
    for (at, &i) in order.iter().enumerate() {
        assert_eq!(b.detail.positive[at], a.detail.positive[i], "{name}");
        assert_eq!(b.detail.it.neg_value[at], a.detail.it.neg_value[i], "{name}");
        assert_eq!(b.detail.ti.neg_value[at], a.detail.ti.neg_value[i], "{name}");
        assert_eq!(order[b.detail.it.neg_index[at] as usize], a.detail.it.neg_index[i] as usize, "{name}");
    }
    nearly::<T, G>(&name, &b.dx.written(&name), &rows_of(&a.dx, &order).values());
    nearly::<T, G>(&name, &b.dy.written(&name), &rows_of(&a.dy, &order).values());
}

#[test]
fn permuting_the_pairs_permutes_the_result() {
    on_every_backend(|backend| {
        for name in ["nca-con", "hinge-lin", "con-sig_ms"] {
            for_each_gradient!(backend, permute_cell(objective(name)));
        }
    });
}

fn swap_cell<T: Element, G: GradientOf<T>>(backend: &Backend, objective: Objective) {
    let case = Case::<T>::clear(&Shape::new(41, 35), objective, 2);
    let swapped = Case { x: case.y.clone(), y: case.x.clone(), ..case.clone() };
    let (a, b) = (case.run::<G>(backend, TIGHT), swapped.run::<G>(backend, TIGHT));
    let name = format!("{} swapped {objective} {}", backend.name(), T::DTYPE);
    assert_eq!(a.detail.it.neg_index, b.detail.ti.neg_index, "{name}");
    assert_eq!(a.detail.ti.rs_neg_count, b.detail.it.rs_neg_count, "{name}");
    let tolerance = 2.0 * bound::<T>();
    close(&name, &to_f64(&b.detail.ti.neg_value), &to_f64(&a.detail.it.neg_value), |_| tolerance);
    close(&name, &[b.report.log_ti, b.report.log_it], &[a.report.log_it, a.report.log_ti], |_| 41.0 * tolerance);
    let (dx, dy) = (a.dx.written("dx"), a.dy.written("dy"));
    let relative = |want: &[f64]| 300.0 * tolerance * largest(want);
    let rounded = |want: f64| 2.02 * rounding::<G>() * want.abs();
    close(&name, &b.dy.written("dy"), &dx, |at| relative(&dx) + rounded(dx[at]));
    close(&name, &b.dx.written("dx"), &dy, |at| relative(&dy) + rounded(dy[at]));
}

#[test]
fn swapping_the_modalities_swaps_the_gradients() {
    on_every_backend(|backend| {
        for name in ["cir-lin", "con-lin_ms", "nca-sig_ms"] {
            for_each_gradient!(backend, swap_cell(objective(name)));
        }
    });
}

/// Every row times its own power of two: the same similarities to the bit, the gradients over that power.
fn scale_cell<T: Element, G: GradientOf<T>>(backend: &Backend, exponents: &[i32]) {
    let (n, d) = (33, 40);
    let case = Case::<T>::raw(&Shape { kind: Kind::Clustered, ..Shape::new(n, d) }, objective("nca-sig"), 3);
    let factor = |i: usize| 2f64.powi(exponents[i % exponents.len()]);
    let scaled = |m: &Matrix<T>| {
        let values: Vec<f64> = m.values().iter().enumerate().map(|(at, v)| v * factor(at / d)).collect();
        Matrix::<T>::new(&values, n, d, ODD)
    };
    let moved = Case { x: scaled(&case.x), y: scaled(&case.y), ..case.clone() };
    let (a, b) = (case.run::<G>(backend, TIGHT), moved.run::<G>(backend, TIGHT));
    let name = format!("{} scaled rows {}->{}", backend.name(), T::DTYPE, G::DTYPE);
    assert_eq!(a.detail, b.detail, "{name}");
    for (got, want) in [(&b.dx, &a.dx), (&b.dy, &a.dy)] {
        let want: Vec<f64> =
            want.written("before").iter().enumerate().map(|(at, v)| G::from_f64(v / factor(at / d)).to_f64()).collect();
        close(&name, &got.written(&name), &want, |_| 0.0);
    }
}

#[test]
fn scaling_a_row_scales_its_gradient_inversely() {
    on_every_backend(|backend| {
        scale_cell::<f32, f32>(backend, &[0, 100, -90, 7, -1]);
        scale_cell::<half::bf16, f32>(backend, &[0, 100, -90, 7, -1]);
        scale_cell::<half::f16, f32>(backend, &[0, 3, 2, 1]);
        if !is_cuda(backend) {
            scale_cell::<f64, f64>(backend, &[0, 900, -900, 7, -1]);
        }
    });
}

fn same_bits<T: Element, G: GradientOf<T>>(name: &str, a: &Got<T, G>, b: &Got<T, G>) {
    assert!(bits_equal(&a.dx.elements(), &b.dx.elements()), "{name}: dX");
    assert!(bits_equal(&a.dy.elements(), &b.dy.elements()), "{name}: dY");
    assert_eq!(bytemuck::bytes_of(&a.report), bytemuck::bytes_of(&b.report), "{name}: report");
    assert_eq!(a.detail, b.detail, "{name}: detail");
}

fn upstream_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for name in ["nca-con", "cir-sig_ms"] {
        let mut case = Case::<T>::raw(&Shape::new(37, 25), objective(name), 4);
        let one = case.run::<G>(backend, TIGHT);
        case.upstream = 2.0;
        let two = case.run::<G>(backend, TIGHT);
        case.upstream = 0.0;
        let zero = case.run::<G>(backend, TIGHT);
        let label = format!("{} upstream {name} {}->{}", backend.name(), T::DTYPE, G::DTYPE);
        for (a, b, z) in [(&one.dx, &two.dx, &zero.dx), (&one.dy, &two.dy, &zero.dy)] {
            let twice: Vec<f64> = a.values().iter().map(|v| 2.0 * v).collect();
            let slack = |at: usize| {
                // A subnormal result of the 16-bit types is rounded before it is doubled.
                if twice[at].abs() < 2.0 * 6.2e-5 && G::DTYPE == simgrad::DType::F16 { 6e-8 } else { 0.0 }
            };
            close(&label, &b.written(&label), &twice, slack);
            assert!(z.written(&label).iter().all(|&v| v == 0.0), "{label}: upstream 0");
        }
        for other in [&two, &zero] {
            assert_eq!(bytemuck::bytes_of(&one.report), bytemuck::bytes_of(&other.report), "{label}: the report moved");
            assert_eq!(one.detail, other.detail, "{label}");
        }
    }
}

#[test]
fn twice_the_upstream_factor_is_twice_the_gradient() {
    on_every_backend(|backend| for_each_gradient!(backend, upstream_cell()));
}

#[test]
fn the_mean_is_the_sum_over_the_number_of_pairs() {
    on_every_backend(|backend| {
        // With a power of two the division is exact.
        let case = Case::<f32>::raw(&Shape::new(32, 20), objective("con-sig"), 5);
        let mean = Case { objective: case.objective.with_reduction(Reduction::Mean), ..case.clone() };
        let (a, b) = (case.run::<f32>(backend, TIGHT), mean.run::<f32>(backend, TIGHT));
        let scaled = |m: &Matrix<f32>| m.values().iter().map(|v| v / 32.0).collect::<Vec<_>>();
        close(backend.name(), &b.dx.written("dx"), &scaled(&a.dx), |_| 0.0);
        close(backend.name(), &b.dy.written("dy"), &scaled(&a.dy), |_| 0.0);
        let (s, m) = (a.report, b.report);
        close("report", &[m.loss, m.log_it, m.log_ti], &[s.loss / 32.0, s.log_it / 32.0, s.log_ti / 32.0], |_| 1e-6);
        assert_eq!((s.mean_positive, s.mean_negative_it), (m.mean_positive, m.mean_negative_it));
        assert_eq!(a.detail, b.detail);
    });
}

fn repeat_cell<T: Element, G: GradientOf<T>>(backend: &Backend, repeats: usize) {
    for (name, n) in [("nca-lin", 70), ("con-sig_ms", 131)] {
        let shape = Shape { kind: Kind::Hubs, groups: 40, ..Shape::new(n, 33) };
        let case = Case::<T>::raw(&shape, objective(name), 6);
        let first = case.run::<G>(backend, WIDE);
        for _ in 0..repeats {
            // Another size in between: whatever it leaves in workspaces must not show.
            Case::<T>::raw(&Shape::new(9, 5), objective("cir-lin_ms"), 1).run::<G>(backend, TIGHT);
            let label = format!("{} again {name} {}->{}", backend.name(), T::DTYPE, G::DTYPE);
            same_bits(&label, &case.run::<G>(backend, WIDE), &first);
        }
    }
}

#[test]
fn a_repeated_call_gives_the_same_bits() {
    on_every_backend(|backend| for_each_gradient!(backend, repeat_cell(if is_cuda(backend) { 1 } else { 5 })));
}

/// Everything that an operation of each kind returns, as bytes.
fn everything<T: Element, G: GradientOf<T>>(backend: &Backend, n: usize, d: usize) -> Vec<u8> {
    let shape = Shape { kind: Kind::Hubs, layout: ODD, ..Shape::new(n, d) };
    let mut bytes = Vec::new();
    for name in ["nca-con", "con-sig_ms", "cir-lin_ms"] {
        let case = Case::<T>::raw(&shape, objective(name), 7);
        let got = case.run::<G>(backend, TIGHT);
        bytes.extend_from_slice(bytemuck::cast_slice(&got.dx.elements()));
        bytes.extend_from_slice(bytemuck::cast_slice(&got.dy.elements()));
        bytes.extend_from_slice(bytemuck::bytes_of(&got.report));
        bytes.extend(format!("{:?}", got.detail).bytes());
    }
    let case = Case::<T>::raw(&shape, objective("con-con"), 8);
    let (x, y) = (case.x.view(), case.y.view());
    for normalization in [Normalization::L2, Normalization::None] {
        let mined = backend.mine(x, y, &MineOptions { normalization, second: true, groups: None }).expect("mine");
        bytes.extend(format!("{mined:?}").bytes());
        let ranks = backend.ranks(x, y, &RecallOptions { normalization, ..RecallOptions::default() }).expect("ranks");
        bytes.extend(format!("{ranks:?}").bytes());
        let mut s = Matrix::<T>::poisoned(n, n, TIGHT);
        let options = CosineOptions { normalization, scale: 3.0, ..CosineOptions::default() };
        backend.cosine_matrix(x.into(), y.into(), &options, s.view_mut().into()).expect("S");
        bytes.extend_from_slice(bytemuck::cast_slice(&s.elements()));
    }
    bytes
}

fn threads_cell<T: Element, G: GradientOf<T>>(cpus: &[Backend], n: usize, d: usize) {
    let first = everything::<T, G>(&cpus[0], n, d);
    for cpu in &cpus[1..] {
        assert!(everything::<T, G>(cpu, n, d) == first, "{cpu:?} {} n={n} d={d}", T::DTYPE);
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let cpus: Vec<Backend> =
        [1, 2, 3, 7].into_iter().map(|n| Backend::Cpu(Cpu::with_threads(n).expect("threads"))).collect();
    for (n, d) in [(3, 5), (130, 33), (403, 64)] {
        threads_cell::<f32, f32>(&cpus, n, d);
        threads_cell::<f64, f64>(&cpus, n, d);
        threads_cell::<half::bf16, half::bf16>(&cpus, n, d);
        threads_cell::<half::f16, f32>(&cpus, n, d);
    }
}

#[test]
fn concurrent_calls_give_the_same_bits() {
    on_every_backend(|backend| {
        let n = if is_cuda(backend) { 20 } else { 90 };
        let alone = everything::<f32, f32>(backend, n, 17);
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| everything::<f32, f32>(backend, n, 17))).collect();
            for call in calls {
                assert!(call.join().expect("no panic") == alone, "{}", backend.name());
            }
        });
    });
}

/// Both sides turned by the same rotation (a reflection, exact for power-of-two weights): the same similarities, and
/// gradients turned along.
fn rotate_cell(backend: &Backend) {
    let (n, d) = (30, 16);
    let case =
        Case::<f32>::clear(&Shape { normalization: Normalization::None, ..Shape::new(n, d) }, objective("nca-lin"), 9);
    // x − 2 v (v·x) with v = (1, …, 1) / √d.
    let turn = |m: &[f64]| -> Vec<f64> {
        let mean = |i: usize| m[i * d..][..d].iter().sum::<f64>() / d as f64;
        (0..m.len()).map(|at| m[at] - 2.0 * mean(at / d)).collect()
    };
    let turned = |m: &Matrix<f32>| Matrix::<f32>::new(&turn(&m.values()), n, d, TIGHT);
    let moved = Case { x: turned(&case.x), y: turned(&case.y), ..case.clone() };
    let (a, b) = (case.run::<f32>(backend, TIGHT), moved.run::<f32>(backend, TIGHT));
    assert_eq!(a.detail.it.neg_index, b.detail.it.neg_index, "{}", backend.name());
    for (got, want) in [(&b.dx, &a.dx), (&b.dy, &a.dy)] {
        let want = turn(&want.values());
        close("turned", &got.written("turned"), &want, |_| 2e-5 * largest(&want));
    }
}

#[test]
fn a_rotation_turns_the_gradient_along() {
    on_every_backend(rotate_cell);
}

fn same_matrix_cell<T: Element>(backend: &Backend) {
    let case = Case::<T>::raw(&Shape::new(50, 31), objective("con-con"), 10);
    let options = MineOptions { second: true, ..MineOptions::default() };
    // One buffer as both sides, whole and in part.
    let own = backend.mine(case.x.view(), case.x.view(), &options).expect("mine");
    assert_eq!(own.rows.index, own.cols.index, "{} {}", backend.name(), T::DTYPE);
    let part = simgrad::MatRef::with_stride(case.x.view().data(), 20, 31, case.x.stride).expect("rows");
    let rect = backend.mine(part, case.x.view(), &options).expect("mine");
    assert_eq!(rect.rows.index[..], own.rows.index[..20], "{} {}", backend.name(), T::DTYPE);
    assert_eq!(rect.rows.value[..], own.rows.value[..20], "{} {}", backend.name(), T::DTYPE);
}

#[test]
fn one_buffer_may_be_both_sides() {
    on_every_backend(|backend| for_each_dtype!(backend, same_matrix_cell()));
}
