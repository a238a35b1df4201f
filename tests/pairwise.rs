//! Objectives over all pairs against the reference: shapes, element types, masks, degenerate rows.

mod common;

use common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, groups_in_order};
use common::pairwise::{PairwiseCase, ROUNDED, pairwise_case, relative};
use common::{for_each_gradient, full, is_cuda, on_every_backend};
use simgrad::cpu::Cpu;
use simgrad::{Backend, Element, Error, GradientOf, Normalization, PairwiseObjective, PairwiseOptions, WriteMode};

/// Calls `$f::<T, T::Acc>(backend)` for every element type that the backend takes.
macro_rules! for_each_wide {
    ($backend:expr, $f:ident()) => {{
        $f::<f32, f32>($backend);
        $f::<half::f16, f32>($backend);
        $f::<half::bf16, f32>($backend);
        if !is_cuda($backend) {
            $f::<f64, f64>($backend);
        }
    }};
}

/// Shapes with every kind of edge, of both sides and of the depth.
fn shapes(backend: &Backend) -> Vec<(usize, usize, usize)> {
    match (is_cuda(backend), full()) {
        (true, false) => vec![(1, 1, 1), (7, 5, 3), (40, 33, 64), (130, 20, 17)],
        (false, false) => {
            vec![(1, 1, 1), (2, 1, 3), (7, 5, 3), (33, 40, 64), (130, 129, 17), (70, 300, 129), (400, 257, 33)]
        }
        _ => {
            vec![(1, 1, 1), (7, 5, 3), (127, 129, 100), (128, 128, 64), (300, 257, 513), (513, 70, 65), (1000, 900, 96)]
        }
    }
}

fn shape_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for (s, shape) in shapes(backend).into_iter().enumerate() {
        for (o, objective) in PairwiseObjective::ALL.into_iter().enumerate() {
            let case = pairwise_case::<T>(Kind::Sphere, shape, objective, 1 + s as u64);
            let name = format!("{} {objective} {shape:?} {}", backend.name(), T::DTYPE);
            case.check(&name, &case.run::<G>(backend, LAYOUTS[o % LAYOUTS.len()]), relative::<T>());
        }
    }
}

#[test]
fn every_objective_on_every_shape() {
    on_every_backend(|backend| {
        for_each_gradient!(backend, shape_cell());
    });
}

fn everything_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let shapes = if is_cuda(backend) { vec![(40, 33, 20)] } else { vec![(40, 33, 20), (150, 300, 40)] };
    for shape in shapes {
        for objective in PairwiseObjective::ALL {
            let case = pairwise_case::<T>(Kind::Clustered, shape, objective, 11).with_everything(3);
            let name = format!("{} everything {objective} {shape:?} {}", backend.name(), T::DTYPE);
            case.check(&name, &case.run::<G>(backend, ODD), relative::<T>());
        }
    }
}

#[test]
fn groups_masks_weights_and_corrections() {
    on_every_backend(|backend| {
        everything_cell::<f32, f32>(backend);
        everything_cell::<half::bf16, f32>(backend);
        if !is_cuda(backend) {
            everything_cell::<f64, f64>(backend);
        }
    });
}

fn in_order_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let (n, m) = (300, 530);
    for objective in [PairwiseObjective::InfoNce { scale: 8.0 }, PairwiseObjective::SupCon { tau: 0.2 }] {
        let mut case = pairwise_case::<T>(Kind::Sphere, (n, m, 24), objective, 13);
        case.groups = Some(groups_in_order(n, m));
        case.check(&format!("{objective} {}", T::DTYPE), &case.run::<G>(backend, TIGHT), relative::<T>());
    }
}

/// Most tiles have no pair of one group, some no more than numbers that end alike.
#[test]
fn groups_in_order_of_their_numbers() {
    on_every_backend(|backend| {
        in_order_cell::<f32, f32>(backend);
        in_order_cell::<half::bf16, f32>(backend);
    });
}

fn single_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for objective in PairwiseObjective::ALL {
        for kinds in [3, 20] {
            let mut case = pairwise_case::<T>(Kind::Sphere, (60, 0, 24), objective, 21);
            case.single = true;
            let case = case.grouped(kinds);
            let name = format!("{} single {objective} {kinds} groups {}", backend.name(), T::DTYPE);
            case.check(&name, &case.run::<G>(backend, ODD), relative::<T>());
        }
    }
}

#[test]
fn a_single_set_is_its_own_candidates() {
    on_every_backend(|backend| {
        for_each_wide!(backend, single_cell());
    });
}

fn accumulate_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let case = pairwise_case::<T>(Kind::Sphere, (20, 30, 12), PairwiseObjective::InfoNce { scale: 5.0 }, 31);
    let fill = |rows: usize| Matrix::<G>::new(&vec![0.5; rows * 12], rows, 12, ODD);
    let got = case.run_onto::<G>(backend, WriteMode::Accumulate, fill(20), fill(30));
    let want = case.reference();
    let name = format!("{} accumulate {}", backend.name(), G::DTYPE);
    let rounded = got.rounded;
    for (got, want) in [(got.dx.values(), want.dx), (got.dy.values(), want.dy)] {
        let largest = want.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        for (g, w) in got.iter().zip(&want) {
            let rounding = common::check::rounding::<G>();
            let terms = if rounded { ROUNDED * largest } else { 1e-4 * w.abs() };
            assert!((g - (w + 0.5)).abs() <= terms + 1e-6 + 1.01 * rounding, "{name}: {g} for {w} + 0.5");
        }
    }
}

#[test]
fn gradients_are_added_where_that_is_asked_for() {
    on_every_backend(|backend| {
        for_each_gradient!(backend, accumulate_cell());
    });
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let [one, two, five] = [1, 2, 5].map(|t| Backend::Cpu(Cpu::with_threads(t).unwrap()));
    for objective in PairwiseObjective::ALL {
        let case = pairwise_case::<f32>(Kind::Sphere, (500, 700, 40), objective, 41).grouped(50);
        let first = case.run::<f32>(&one, TIGHT);
        for other in [&two, &five] {
            let again = case.run::<f32>(other, TIGHT);
            assert_eq!(first.report, again.report, "{objective}");
            assert!(first.dx.same_buffer(&again.dx) && first.dy.same_buffer(&again.dy), "{objective}");
        }
    }
}

/// Gradients row by row: those of rows with small ones are as good as those of rows with large ones.
fn scales_cell(backend: &Backend, n: usize, m: usize) {
    // Without normalisation, rows with norms 30 apart: logits reach hundreds in some rows and columns and 0 in others.
    let d = 8;
    let mut case = pairwise_case::<f32>(Kind::Sphere, (n, m, d), PairwiseObjective::InfoNce { scale: 1.0 }, 1);
    case.normalization = Normalization::None;
    let lengthen = |rows: &Matrix<f32>, every: usize, by: f64| {
        let mut values = rows.values();
        values.iter_mut().enumerate().for_each(|(at, v)| *v *= if at / d % every == 0 { by } else { 1.0 });
        Matrix::<f32>::new(&values, rows.rows, d, TIGHT)
    };
    (case.x, case.y) = (lengthen(&case.x, 3, 30.0), lengthen(&case.y, 5, 10.0));
    let (got, want) = (case.run::<f32>(backend, TIGHT), case.reference());
    let loss = got.report.loss / want.report.loss;
    assert!((loss - 1.0).abs() < 1e-5, "{}: {loss}", backend.name());
    // Logits are rounded at 300 and not at 1.
    for (got, want) in [(got.dx.written("dx"), want.dx), (got.dy.written("dy"), want.dy)] {
        for (at, (got, want)) in got.chunks(d).zip(want.chunks(d)).enumerate() {
            let largest = want.iter().fold(0.0f64, |a, w| a.max(w.abs()));
            let worst = got.iter().zip(want).fold(0.0f64, |a, (g, w)| a.max((g - w).abs()));
            assert!(worst <= 2e-4 * largest, "{}: row {at} off by {worst:e} of {largest:e}", backend.name());
        }
    }
}

#[test]
fn anchors_of_very_different_scale_in_one_tile() {
    on_every_backend(|backend| {
        scales_cell(backend, 140, 300);
        scales_cell(backend, 300, 140);
    });
}

/// Rows of which the logarithms differ by 40 from one row's, and a column that is as far below it: terms that vanish beside
/// their row are most of that column.
#[test]
fn logarithms_far_apart_on_both_sides_of_a_row() {
    on_every_backend(|backend| {
        let n = 302;
        let mut s = vec![-60.0; n * n];
        let mut set = |i: usize, j: usize, v: f64| s[i * n + j] = v;
        let c = n - 1;
        (0..n).for_each(|i| set(i, c, -90.0));
        set(0, 0, 0.0);
        for i in 1..c {
            set(i, i, 39.99);
            set(i, c, -47.4);
        }
        set(c, c, -39.6);
        set(c, 1, -5.0);
        let unit: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
        let mut case = pairwise_case::<f32>(Kind::Sphere, (n, n, n), PairwiseObjective::InfoNce { scale: 1.0 }, 1);
        case.normalization = Normalization::None;
        (case.x, case.y) = (Matrix::new(&s, n, n, TIGHT), Matrix::new(&unit, n, n, TIGHT));
        for upstream in [1.0, 65_536.0 * 100.0] {
            case.upstream = upstream;
            let (got, want) = (case.run::<f32>(backend, TIGHT), case.reference());
            // dx is W itself.
            let of = |dx: &[f64]| (1..c).map(|i| dx[i * n + c]).sum::<f64>() * 2.0 * n as f64 / upstream;
            let (got, want) = (of(&got.dx.values()), of(&want.dx));
            assert!(want > 0.05 && (got - want).abs() < 1e-4, "{}: {got} for {want}", backend.name());
        }
    });
}

/// More similarities than the CPU keeps, in more columns than make a narrow tile, with a narrow rest of both.
#[test]
fn waves_that_are_not_kept() {
    let cpu = Backend::cpu();
    let objectives = [PairwiseObjective::InfoNce { scale: 5.0 }, PairwiseObjective::ALL[4]];
    for objective in objectives {
        let case = pairwise_case::<f32>(Kind::Sphere, (3700, 3500, 3), objective, 91);
        case.check(&format!("not kept {objective}"), &case.run::<f32>(&cpu, TIGHT), relative::<f32>());
    }
}

/// Ten pairs at similarity 1, all else at 0, scale 100: probabilities of 1 − 3e-43, which no `p − 1` survives.
fn converged_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    let n = 10;
    let eye: Vec<f64> = (0..n * n).map(|k| if k / n == k % n { 1.0 } else { 0.0 }).collect();
    for scale in [10.0, 30.0, 100.0] {
        let mut case = pairwise_case::<T>(Kind::Sphere, (n, n, n), PairwiseObjective::InfoNce { scale }, 1);
        (case.x, case.y) = (Matrix::new(&eye, n, n, TIGHT), Matrix::new(&eye, n, n, TIGHT));
        let got = case.run::<G>(backend, TIGHT);
        let name = format!("{} converged at {scale} {}", backend.name(), T::DTYPE);
        let loss = (n as f64 - 1.0) * (-scale).exp();
        // Below the smallest normal number of f32 exponentials are 0.
        let floor = if T::DTYPE == simgrad::DType::F64 { 0.0 } else { 1e-35 };
        assert!((got.report.loss - loss.ln_1p()).abs() <= 1e-5 * loss + floor, "{name}: {:e}", got.report.loss);
        let want = case.reference();
        let largest = want.dx.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        common::check::close(&name, &got.dx.values(), &want.dx, |_| 5e-3 * largest + floor);
    }
}

#[test]
fn a_converged_batch_keeps_its_gradient() {
    on_every_backend(|backend| {
        for_each_wide!(backend, converged_cell());
    });
}

fn degenerate_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for objective in PairwiseObjective::ALL {
        let mut case = pairwise_case::<T>(Kind::Sphere, (9, 11, 8), objective, 51);
        case.x.set_row(2, |_| 0.0);
        case.y.set_row(10, |_| 0.0);
        // All parallel: distance 0 from each other.
        case.x.set_row(3, |k| (k + 1) as f64);
        case.y.set_row(3, |k| (k + 1) as f64 * 0.5);
        case.y.set_row(4, |k| (k + 1) as f64 * -2.0);
        let name = format!("{} zero rows {objective} {}", backend.name(), T::DTYPE);
        // The distance forms divide by √(2 − 2s), which near 0 is as inexact as the root of what s is off by; and
        // rounding decides whether a similarity of 1 is below the contrastive loss's margin.
        let continuous = !matches!(
            objective,
            PairwiseObjective::Lifted { .. }
                | PairwiseObjective::RankedList { .. }
                | PairwiseObjective::Contrastive { .. }
        );
        let got = case.run::<G>(backend, ODD);
        let finite = |m: &Matrix<G>| m.values().iter().all(|v| v.is_finite());
        assert!(finite(&got.dx) && finite(&got.dy) && got.report.loss.is_finite(), "{name}: not finite");
        assert_eq!((got.report.zero_x, got.report.zero_y), (1, 1), "{name}");
        assert!(got.dx.view().row(2).iter().all(|v| v.to_f64() == 0.0), "{name}: gradient of a zero row");
        if continuous {
            case.check(&name, &got, relative::<T>());
        }
    }
}

#[test]
fn zero_and_parallel_rows_are_finite() {
    on_every_backend(|backend| {
        for_each_wide!(backend, degenerate_cell());
    });
}

fn nan_cell<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for objective in PairwiseObjective::ALL {
        let mut case = pairwise_case::<T>(Kind::Sphere, (12, 15, 8), objective, 61);
        case.y.set_row(4, |k| if k == 3 { f64::NAN } else { 1.0 });
        let name = format!("{} NaN {objective} {}", backend.name(), T::DTYPE);
        let got = case.run::<G>(backend, ODD);
        let want = case.reference();
        let nan = |v: &[f64]| v.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
        assert_eq!(nan(&got.dx.written(&name)), nan(&want.dx), "{name}: dx");
        assert_eq!(nan(&got.dy.written(&name)), nan(&want.dy), "{name}: dy");
        assert_eq!((got.report.nan_x, got.report.nan_y), (0, 1), "{name}");
        assert!(got.report.loss.is_nan(), "{name}: {}", got.report.loss);

        // Where nobody looks it has no effect.
        case.ignored = Some((vec![false; 12], (0..15).map(|j| j == 4).collect()));
        case.check(&format!("{name} ignored"), &case.run::<G>(backend, ODD), relative::<T>());
    }
}

#[test]
fn nan_reaches_whom_it_meets_and_nobody_else() {
    on_every_backend(|backend| {
        for_each_wide!(backend, nan_cell());
    });
}

#[test]
fn ignored_by_group_and_not_a_number_has_no_effect() {
    on_every_backend(|backend| {
        let mut case = pairwise_case::<f32>(Kind::Sphere, (6, 6, 8), PairwiseObjective::InfoNce { scale: 5.0 }, 71);
        case.y.set_row(5, |_| f64::NAN);
        // Rows 0 and 1 share the group of the NaN column and never meet it.
        case.groups = Some((vec![1, 1, 2, 3, 4, 5], vec![6, 7, 2, 3, 4, 1]));
        let (got, want) = (case.run::<f32>(backend, ODD), case.reference());
        let nan = |v: &[f64]| v.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
        assert!(want.dx[..16].iter().all(|v| !v.is_nan()) && want.dx[16..].iter().any(|v| v.is_nan()));
        assert_eq!(nan(&got.dx.values()), nan(&want.dx), "{}: dx", backend.name());
        assert_eq!(nan(&got.dy.values()), nan(&want.dy), "{}: dy", backend.name());
    });
}

#[test]
fn empty_sides_have_no_gradient() {
    on_every_backend(|backend| {
        for (n, m) in [(0, 0), (0, 3), (3, 0)] {
            for objective in PairwiseObjective::ALL {
                let case = pairwise_case::<f32>(Kind::Sphere, (n, m, 4), objective, 1);
                let got = case.run::<f32>(backend, ODD);
                let name = format!("{} {n} × {m} {objective}", backend.name());
                assert!(got.dx.written(&name).iter().chain(&got.dy.written(&name)).all(|v| *v == 0.0), "{name}");
                assert_eq!(got.report.loss, 0.0, "{name}");
            }
        }
    });
}

#[test]
fn everything_ignored_has_no_gradient() {
    on_every_backend(|backend| {
        for objective in PairwiseObjective::ALL {
            let mut case = pairwise_case::<f32>(Kind::Sphere, (5, 6, 4), objective, 1);
            case.ignored = Some((vec![true; 5], vec![false; 6]));
            let got = case.run::<f32>(backend, ODD);
            assert!(got.dx.values().iter().chain(&got.dy.values()).all(|v| *v == 0.0), "{objective}");
            assert_eq!(got.report.loss, 0.0, "{} {objective}", backend.name());
        }
    });
}

#[test]
fn rows_as_they_are() {
    on_every_backend(|backend| {
        for objective in PairwiseObjective::ALL {
            let mut case = pairwise_case::<f32>(Kind::Sphere, (40, 50, 16), objective, 81);
            case.normalization = Normalization::None;
            let name = format!("{} unnormalised {objective}", backend.name());
            case.check(&name, &case.run::<f32>(backend, ODD), 1e-4);
        }
    });
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_written() {
    on_every_backend(|backend| {
        let case =
            pairwise_case::<f32>(Kind::Sphere, (3, 4, 5), PairwiseObjective::SigLip { scale: 1.0, bias: 0.0 }, 1);
        let refused = |objective: PairwiseObjective, options: &PairwiseOptions<'_>| {
            let (mut dx, mut dy) = (Matrix::<f32>::poisoned(3, 5, TIGHT), Matrix::<f32>::poisoned(4, 5, TIGHT));
            let (before_x, before_y) = (dx.clone(), dy.clone());
            let (x, y) = (case.x.view(), case.y.view());
            let got = backend.pairwise_step(x, y, &objective, options, dx.view_mut(), dy.view_mut());
            assert!(dx.same_buffer(&before_x) && dy.same_buffer(&before_y), "{objective}: something was written");
            got.expect_err("an error")
        };
        let plain = PairwiseOptions::default();
        let named = |error: Error, expected: &str| {
            let text = error.to_string();
            assert!(text.contains("pairwise_step") && text.contains(expected), "{text} lacks {expected}");
        };
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            named(refused(PairwiseObjective::InfoNce { scale: bad }, &plain), "objective.scale");
            named(refused(PairwiseObjective::SupCon { tau: bad }, &plain), "objective.tau");
        }
        named(refused(PairwiseObjective::TripletAll { margin: f64::NAN }, &plain), "objective.margin");
        let balance = PairwiseObjective::RankedList { alpha: 1.0, margin: 0.1, temperature: 1.0, balance: 1.5 };
        named(refused(balance, &plain), "objective.balance");
        let options = PairwiseOptions { ignore_rows: Some(&[false; 4]), ..plain };
        named(refused(case.objective, &options), "options.ignore_rows");
        let options = PairwiseOptions { row_weights: Some(&[1.0; 2]), ..plain };
        named(refused(case.objective, &options), "options.row_weights");
        let options = PairwiseOptions { log_q: Some(&[0.0; 4]), ..plain };
        named(refused(case.objective, &options), "options.log_q");
        let options = PairwiseOptions { col_weights: Some(&[0.0; 4]), ..plain };
        named(refused(case.objective, &options), "options.col_weights");
    });
}

#[test]
fn names_are_read_back() {
    for objective in PairwiseObjective::ALL {
        assert_eq!(objective.to_string().parse::<PairwiseObjective>(), Ok(objective));
    }
    assert!("clip".parse::<PairwiseObjective>().is_err());
}

/// A case must be able to fail: the same check with a wrong expectation does.
#[test]
#[should_panic(expected = "elements are wrong")]
fn a_wrong_gradient_is_noticed() {
    let backend = Backend::cpu();
    let case: PairwiseCase<f32> = pairwise_case(Kind::Sphere, (20, 20, 8), PairwiseObjective::n_pair(), 1);
    let got = case.run::<f32>(&backend, TIGHT);
    let other = PairwiseCase { upstream: 1.01, ..case };
    other.check("a different upstream factor", &got, 1e-4);
}
