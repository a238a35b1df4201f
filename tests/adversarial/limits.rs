//! Subnormal numbers, alignment, ids, indices, overflow, large offsets, ranks.

use crate::common::check::{close, equal, not_all_zero};
use crate::common::data::{Kind, LAYOUTS, Matrix, ODD, TIGHT, group_ids, pair, to_f64};
use crate::common::goal::{Case, Shape};
use crate::common::{for_each_dtype, for_each_gradient, on_every_backend};
use crate::{case, objective, plain};
use half::f16;
use simgrad::{
    Backend, CosineOptions, Element, GradOptions, GradientOf, Groups, MineOptions, Normalization, Objective,
    PairWeight, RecallOptions, TiePolicy, TripletWeight, WeightTriples,
};

#[test]
fn a26_subnormal_numbers_are_kept() {
    on_every_backend(|backend| {
        let tiny = f64::from(1e-40f32);
        let none = Normalization::None;
        let x = [tiny, 0.0, 0.0, tiny];
        let y = [0.0, 1.0, 2.0, 1.0];
        // S = [0, 2 tiny; tiny, tiny].
        let case = case::<f32>(&x, &y, 2, objective("con-con"), none);
        let got = case.run::<f32>(backend, TIGHT);
        let name = format!("{} subnormal", backend.name());
        equal(&name, &to_f64(&got.detail.it.neg_value), &[2.0 * tiny, tiny]);
        equal(&name, &to_f64(&got.detail.positive), &[0.0, tiny]);
        equal(&name, &got.dy.written(&name), &case.reference().dy);
        assert!(case.reference().dy.iter().any(|&v| v != 0.0));

        let mut s = Matrix::<f32>::poisoned(2, 2, TIGHT);
        let options = CosineOptions { normalization: none, ..CosineOptions::default() };
        backend
            .cosine_matrix(case.x.view().into(), case.y.view().into(), &options, s.view_mut().into())
            .expect("cosine_matrix");
        equal(&name, &s.written(&name), &[0.0, 2.0 * tiny, tiny, tiny]);

        // A subnormal gradient.
        let mut small = plain::<f32>(6, 5, "con-con", 3);
        small.normalization = none;
        small.upstream = 1e-40;
        let (got, want) = (small.run::<f32>(backend, TIGHT), small.reference());
        close(&name, &got.dx.written(&name), &want.dx, |_| 4.0 * 2f64.powi(-149));
        not_all_zero(&name, &got.dx.values());
    });
}

fn alignment_cell<T: Element, G: GradientOf<T>>(backend: &Backend, d: usize) {
    let n = 21;
    let run = |layout| {
        let shape = Shape { layout, ..Shape::new(n, d) };
        let got = Case::<T>::raw(&shape, objective("nca-sig"), 2).run::<G>(backend, layout);
        got.dx.written("dx").into_iter().chain(got.dy.written("dy")).collect::<Vec<_>>()
    };
    let plain = run(TIGHT);
    for layout in LAYOUTS {
        equal(&format!("{} {} {layout:?}", backend.name(), T::DTYPE), &run(layout), &plain);
    }
}

#[test]
fn a27_a28_neither_base_nor_stride_needs_more_than_element_alignment() {
    on_every_backend(|backend| {
        for d in [1, 7, 16, 33] {
            for_each_gradient!(backend, alignment_cell(d));
        }
    });
}

#[test]
fn a31_a32_ids_of_any_size_cost_nothing_and_mean_equality() {
    on_every_backend(|backend| {
        let n = 30;
        let case = plain::<f32>(n, 8, "con-con", 4);
        let (wide, small) = (group_ids(5, n, 7), {
            let ids = group_ids(5, n, 7);
            let mut kinds = ids.clone();
            kinds.sort_unstable();
            kinds.dedup();
            ids.iter().map(|id| kinds.iter().position(|k| k == id).expect("known") as i64).collect::<Vec<_>>()
        });
        assert!(wide.contains(&i64::MIN) && wide.contains(&i64::MAX));
        let run = |ids: &[i64]| {
            let grouped = Case { groups: Some((ids.to_vec(), ids.to_vec())), ..case.clone() };
            let got = grouped.run::<f32>(backend, TIGHT);
            (got.detail, got.dx.elements())
        };
        assert_eq!(run(&wide), run(&small), "{}", backend.name());

        // Ids that differ in the upper half only are different.
        let rows = [1i64, 1 << 32 | 1, i64::MAX];
        let x = Matrix::<f32>::new(&[1.0; 3], 3, 1, TIGHT);
        let options = MineOptions {
            normalization: Normalization::None,
            groups: Some(Groups { rows: &rows, cols: &[1, 1, 9_000_000_000_000_000_000] }),
            second: false,
        };
        let got = backend.mine(x.view(), x.view(), &options).expect("mine");
        assert_eq!((got.rows.index, got.cols.index), (vec![2, 0, 0], vec![1, 2, 0]), "{}", backend.name());
    });
}

#[test]
fn a33_an_index_out_of_range_is_left_out_and_counted() {
    on_every_backend(|backend| {
        let x = Matrix::<f32>::new(&[1.0, 2.0, 3.0, 4.0], 2, 2, TIGHT);
        let w = WeightTriples { rows: &[0, 2, -1, 1], cols: &[1, 0, 0, 2], values: &[1.0, 9.0, 9.0, 9.0] };
        let options = GradOptions { normalization: Normalization::None, ..GradOptions::default() };
        let (mut dx, mut dy) = (Matrix::<f32>::poisoned(2, 2, ODD), Matrix::<f32>::poisoned(2, 2, ODD));
        let report = backend
            .weighted_grad(x.view(), x.view(), &w, &options, dx.view_mut(), dy.view_mut())
            .expect("weighted_grad");
        assert_eq!((report.bad_index, report.overflow), (3, 0));
        equal("dx", &dx.written("dx"), &[3.0, 4.0, 0.0, 0.0]);
        equal("dy", &dy.written("dy"), &[0.0, 0.0, 1.0, 2.0]);
    });
}

#[test]
fn a34_parameters_out_of_range_are_refused_by_name() {
    let error = Objective::new(TripletWeight::Nca { tau: f64::NAN }, PairWeight::Con).expect_err("NaN");
    assert_eq!(error.to_string(), "Objective::new: `tau` is NaN, expected a finite number above 0");
}

fn overflow_cell<T: Element, G: GradientOf<T>>(backend: &Backend, upstream: f64, overflows: bool) {
    let mut case = plain::<T>(10, 8, "con-con", 2);
    case.upstream = upstream;
    let got = case.run::<G>(backend, ODD);
    let (dx, dy) = (got.dx.written("dx"), got.dy.written("dy"));
    let infinite = dx.iter().chain(&dy).filter(|v| v.is_infinite()).count();
    let name = format!("{} {}->{} upstream {upstream}", backend.name(), T::DTYPE, G::DTYPE);
    assert_eq!(infinite as u32, got.report.overflow, "{name}");
    assert_eq!(infinite > 0, overflows, "{name}");
    assert!(dx.iter().chain(&dy).all(|v| !v.is_nan()), "{name}");
    let want = case.reference();
    for (g, w) in dx.iter().zip(&want.dx).filter(|(g, _)| g.is_infinite()) {
        assert!(w.abs() > 6e4 && g.signum() == w.signum(), "{name}: {w} became {g}");
    }
    let triples = WeightTriples { rows: &[0], cols: &[0], values: &[T::Acc::from_f64(upstream)] };
    let options = GradOptions { normalization: Normalization::None, ..GradOptions::default() };
    let (mut dx, mut dy) = (Matrix::<G>::poisoned(10, 8, ODD), Matrix::<G>::poisoned(10, 8, ODD));
    let report = backend
        .weighted_grad(case.x.view(), case.y.view(), &triples, &options, dx.view_mut(), dy.view_mut())
        .expect("weighted_grad");
    let infinite = dx.written("dx").iter().chain(&dy.written("dy")).filter(|v| v.is_infinite()).count();
    assert_eq!(infinite as u32, report.overflow, "{name}");
}

#[test]
fn a35_overflowing_gradients_are_infinite_and_counted() {
    on_every_backend(|backend| {
        overflow_cell::<f16, f16>(backend, 1e6, true);
        overflow_cell::<f16, f16>(backend, 1.0, false);
        overflow_cell::<f16, f32>(backend, 1e6, false);
        overflow_cell::<half::bf16, half::bf16>(backend, 1e6, false);
        overflow_cell::<f32, f32>(backend, 1e6, false);
    });
}

/// Rows more than 2³⁰ elements apart: offsets beyond 2³¹ without the memory, as nothing between the rows is touched.
#[cfg(target_pointer_width = "64")]
#[test]
fn a36_offsets_beyond_2_to_the_31() {
    let backend = Backend::cpu();
    let (n, d, stride) = (4usize, 5usize, (1usize << 30) + 3);
    let (x, y) = pair(Kind::Sphere, 3, n, n, d);
    let Ok(mut far) = bytemuck::allocation::try_zeroed_slice_box::<f16>((n - 1) * stride + d) else {
        println!("no address space for the test");
        return;
    };
    for (at, v) in x.iter().enumerate() {
        far[at / d * stride + at % d] = f16::from_f64(*v);
    }
    let near = Matrix::<f16>::new(&x, n, d, TIGHT);
    let y = Matrix::<f16>::new(&y, n, d, TIGHT);
    let far = simgrad::MatRef::with_stride(&far[..], n, d, stride).expect("x");
    let options = MineOptions { second: true, ..MineOptions::default() };
    assert_eq!(backend.mine(far, y.view(), &options), backend.mine(near.view(), y.view(), &options));
    let step = |x| {
        let (mut dx, mut dy) = (Matrix::<f16>::poisoned(n, d, TIGHT), Matrix::<f16>::poisoned(n, d, TIGHT));
        let options = simgrad::StepOptions::default();
        let report = backend.goal_step(x, y.view(), &objective("nca-con"), &options, dx.view_mut(), dy.view_mut());
        (report.expect("goal_step"), dx.elements(), dy.elements())
    };
    assert_eq!(step(far), step(near.view()));
}

fn constant_cell<T: Element>(backend: &Backend) {
    let (n, m) = (20, 33);
    let (x, y) = (Matrix::<T>::new(&vec![0.5; n * 4], n, 4, TIGHT), Matrix::<T>::new(&vec![0.5; m * 4], m, 4, TIGHT));
    let recall = |ties| {
        let options = RecallOptions { ties, ..RecallOptions::default() };
        backend.recall(x.view(), y.view(), &options).expect("recall")
    };
    let lowest = recall(TiePolicy::LowestIndex);
    assert_eq!((lowest.x_to_y.r1, lowest.x_to_y.r5, lowest.x_to_y.r10), (5.0, 25.0, 50.0), "{}", backend.name());
    assert_eq!((recall(TiePolicy::Optimistic).rsum, recall(TiePolicy::Pessimistic).rsum), (600.0, 0.0));
    assert_eq!(lowest.y_to_x.without_positive, 13);
}

#[test]
fn a38_constant_embeddings_rank_as_the_policy_says() {
    on_every_backend(|backend| for_each_dtype!(backend, constant_cell()));
}

fn nan_rank_cell<T: Element>(backend: &Backend) {
    let (n, d) = (40, 6);
    let (x, y) = pair(Kind::Sphere, 1, n, n, d);
    let (x, mut y) = (Matrix::<T>::new(&x, n, d, TIGHT), Matrix::<T>::new(&y, n, d, TIGHT));
    y.set_row(11, |_| f64::NAN);
    let got = backend.ranks(x.view(), y.view(), &RecallOptions::default()).expect("ranks");
    let name = format!("{} {}", backend.name(), T::DTYPE);
    assert_eq!((got.rows[11], got.cols[11]), (39, 39), "{name}: a NaN positive ranks last");
    assert!((0..n).all(|i| i == 11 || got.rows[i] >= 1), "{name}: a NaN candidate ranks above everything");
}

#[test]
fn nan_never_improves_a_rank() {
    on_every_backend(|backend| for_each_dtype!(backend, nan_rank_cell()));
}
