//! The GOAL step against the f64 reference.

mod common;

use common::check::{bound, equal, not_all_zero};
use common::data::{Kind, LAYOUTS, Layout, Matrix, ODD, TIGHT, WIDE};
use common::goal::{Case, Shape, counters};
use common::{for_each_gradient, full, is_cuda, on_every_backend};
use simgrad::{
    Backend, Element, GradientOf, NONE, Normalization, Objective, PairWeight, Reduction, TripletWeight, WriteMode,
};

/// Sizes that leave a remainder in every tile dimension, smallest first.
const SIZES: [(usize, usize); 18] = [
    (2, 3),
    (3, 8),
    (17, 33),
    (31, 65),
    (33, 127),
    (65, 31),
    (127, 64),
    (1, 1),
    (2, 300),
    (129, 33),
    (130, 3),
    (128, 32),
    (129, 129),
    (64, 257),
    (257, 8),
    (257, 65),
    (256, 128),
    (257, 300),
];

/// All 20 objectives, each with its defaults and with sharper parameters.
fn objectives() -> Vec<Objective> {
    let sharp = |o: &Objective| {
        let triplet = match o.triplet() {
            TripletWeight::Hinge { .. } => TripletWeight::Hinge { margin: 0.5 },
            TripletWeight::Nca { .. } => TripletWeight::Nca { tau: 10.0 },
            TripletWeight::Cir { .. } => TripletWeight::Cir { tau: 8.0, offset: 0.3 },
            other => other,
        };
        let pair = match o.pair() {
            PairWeight::Sig { .. } => PairWeight::Sig { alpha: 5.0, beta: 20.0, lambda: 0.3 },
            PairWeight::LinMs { .. } => PairWeight::LinMs { eps: 0.3 },
            PairWeight::SigMs { .. } => PairWeight::SigMs { alpha: 3.0, beta: 6.0, lambda: 0.7, eps: 0.3 },
            other => other,
        };
        Objective::new(triplet, pair).expect("valid").with_reduction(Reduction::Mean)
    };
    let defaults = Objective::all();
    let sharper: Vec<_> = defaults.iter().map(sharp).collect();
    defaults.into_iter().chain(sharper).collect()
}

fn lattice_cell<T: Element, G: GradientOf<T>>(
    backend: &Backend,
    index: usize,
    objective: Objective,
    size: (usize, usize),
) {
    let (n, d) = size;
    // Under normalisation rows of one or two elements tie all the time.
    let normalization = if d >= 3 && !index.is_multiple_of(3) { Normalization::L2 } else { Normalization::None };
    let shape = Shape {
        kind: [Kind::Sphere, Kind::Clustered, Kind::Hubs, Kind::Sphere][index % 4],
        normalization,
        layout: LAYOUTS[index % 4],
        groups: [0, 0, 7, 0, 2 * n][index % 5],
        upstream: [1.0, -0.5, 1024.0][index % 3],
        ..Shape::new(n, d)
    };
    // Of a handful of values on a line, two are soon too close to each other.
    if d == 1 && n > 3 {
        return;
    }
    Case::<T>::clear(&shape, objective, index as u64).check::<G>(backend, LAYOUTS[(index / 4) % 4]);
}

/// One cell of the lattice for each objective and gradient type; which size comes with which objective differs from
/// type to type, so that the sizes meet all objectives.
fn lattice(backend: &Backend, first: usize, cells: usize, sizes: &[(usize, usize)]) {
    for (at, objective) in objectives().into_iter().enumerate() {
        for cell in 0..cells {
            let index = first + at * cells + cell + at / sizes.len();
            let size = |dtype: usize| sizes[(index + 5 * dtype) % sizes.len()];
            lattice_cell::<f32, f32>(backend, index, objective, size(0));
            lattice_cell::<half::f16, half::f16>(backend, index, objective, size(1));
            lattice_cell::<half::bf16, half::bf16>(backend, index, objective, size(2));
            if cell == 0 {
                lattice_cell::<half::f16, f32>(backend, index, objective, size(3));
                lattice_cell::<half::bf16, f32>(backend, index, objective, size(4));
            }
            if !is_cuda(backend) {
                lattice_cell::<f64, f64>(backend, index, objective, size(5));
            }
        }
    }
}

#[test]
fn small_shapes() {
    on_every_backend(|backend| {
        let cells = if full() { 8 } else { 1 + usize::from(!is_cuda(backend)) };
        lattice(backend, 0, cells, &SIZES[..9]);
    });
}

#[test]
fn large_shapes() {
    on_every_backend(|backend| match (full(), is_cuda(backend)) {
        (true, _) => lattice(backend, 1, 10, &SIZES),
        (false, false) => lattice(backend, 1, 2, &SIZES[9..13]),
        (false, true) => lattice(backend, 1, 1, &SIZES[9..13]),
    });
}

/// Apart, since they take as long as all others together.
#[test]
fn large_shapes_of_more_rows() {
    on_every_backend(|backend| match (full(), is_cuda(backend)) {
        (true, _) => {}
        (false, false) => lattice(backend, 1, 2, &SIZES[13..]),
        (false, true) => lattice(backend, 1, 1, &SIZES[13..15]),
    });
}

/// Exactly representable numbers: with unit weights the whole step is exact, so every path gives the same bits.
fn integers_cell<T: Element, G: GradientOf<T>>(backend: &Backend, n: usize, d: usize, margin: f64, groups: usize) {
    for triplet in [TripletWeight::Con, TripletWeight::Hinge { margin }] {
        let objective = Objective::new(triplet, PairWeight::Con).expect("valid");
        let shape =
            Shape { kind: Kind::Integers, normalization: Normalization::None, layout: ODD, groups, ..Shape::new(n, d) };
        let case = Case::<T>::raw(&shape, objective, 7);
        let want = case.reference();
        let got = case.run::<G>(backend, WIDE);
        let name = format!("{} integers {objective} {} n={n} d={d}", backend.name(), T::DTYPE);
        let exact = |v: &[f64]| v.iter().map(|v| G::from_f64(*v).to_f64()).collect::<Vec<_>>();
        if n > 1 && groups == 0 {
            not_all_zero(&name, &want.dx);
        }
        equal(&format!("{name} dX"), &got.dx.written(&name), &exact(&want.dx));
        equal(&format!("{name} dY"), &got.dy.written(&name), &exact(&want.dy));
        assert_eq!(got.detail.it.neg_index, want.detail.it.neg_index, "{name}");
        assert_eq!(got.detail.ti.neg_index, want.detail.ti.neg_index, "{name}");
        assert_eq!(counters(&got.report), counters(&want.report), "{name}");
        equal(&name, &[got.report.log_it, got.report.log_ti], &[want.report.log_it, want.report.log_ti]);
    }
}

#[test]
fn integers_are_exact() {
    on_every_backend(|backend| {
        let sizes: &[(usize, usize)] = if is_cuda(backend) && !full() {
            &[(1, 5), (2, 1), (33, 31), (129, 65)]
        } else {
            &[(1, 5), (2, 1), (3, 2), (17, 3), (33, 31), (65, 64), (129, 65), (130, 300), (257, 33), (300, 257)]
        };
        for (at, &(n, d)) in sizes.iter().enumerate() {
            let groups = [0, 5][at % 2];
            for_each_gradient!(backend, integers_cell(n, d, 2.0, groups));
        }
    });
}

/// What was there plus the gradient, rounded once.
fn accumulate_cell<T: Element, G: GradientOf<T>>(backend: &Backend, objective: Objective) {
    let (n, d) = (35, 40);
    let shape = Shape { layout: ODD, ..Shape::new(n, d) };
    let case = Case::<T>::clear(&shape, objective, 3);
    let before = |seed| {
        let values: Vec<f64> = common::data::pair(Kind::Sphere, seed, n, 1, d).0;
        Matrix::<G>::new(&values, n, d, ODD)
    };
    let (old_x, old_y) = (before(1), before(2));
    let (mut dx, mut dy) = (old_x.clone(), old_y.clone());
    let options = simgrad::StepOptions { write: WriteMode::Accumulate, ..case.options() };
    backend
        .goal_step(case.x.view(), case.y.view(), &case.objective, &options, dx.view_mut(), dy.view_mut())
        .expect("goal_step");
    let want = case.reference();
    for (name, got, old, gradient) in [("dX", dx, old_x, want.dx), ("dY", dy, old_y, want.dy)] {
        let name = format!("{} accumulated {name} {} {objective}", backend.name(), T::DTYPE);
        let sum: Vec<f64> = old.values().iter().zip(&gradient).map(|(a, b)| a + b).collect();
        let largest = gradient.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let slack = 2e3 * bound::<T>() * largest;
        common::check::close(&name, &got.written(&name), &sum, |at| {
            slack + 1.01 * common::check::rounding::<G>() * sum[at].abs()
        });
    }
}

#[test]
fn accumulates_onto_the_output() {
    on_every_backend(|backend| {
        for name in ["nca-con", "con-lin", "cir-sig_ms"] {
            let objective: Objective = name.parse().expect("a name");
            for_each_gradient!(backend, accumulate_cell(objective));
        }
    });
}

#[test]
fn every_layout_gives_the_same_bits() {
    on_every_backend(|backend| {
        let objective: Objective = "nca-sig_ms".parse().expect("a name");
        for normalization in [Normalization::L2, Normalization::None] {
            let run = |input: Layout, output: Layout| {
                let shape = Shape { layout: input, normalization, ..Shape::new(37, 45) };
                let got = Case::<f32>::raw(&shape, objective, 5).run::<f32>(backend, output);
                (got.dx.elements(), got.dy.elements(), got.detail)
            };
            let plain = run(TIGHT, TIGHT);
            for layout in LAYOUTS {
                assert_eq!(run(layout, TIGHT), plain, "{} input {layout:?} {normalization:?}", backend.name());
                assert_eq!(run(TIGHT, layout), plain, "{} output {layout:?} {normalization:?}", backend.name());
            }
        }
    });
}

/// Everything in one group, every row in its own, and one anchor alone without a negative.
fn groups_cell<T: Element, G: GradientOf<T>>(backend: &Backend, objective: Objective) {
    let n = 20;
    let mut case = Case::<T>::raw(&Shape::new(n, 24), objective, 11);
    let ids: Vec<i64> = (0..n as i64).collect();
    let without = case.run::<G>(backend, TIGHT);
    case.groups = Some((ids.clone(), ids));
    let distinct = case.run::<G>(backend, TIGHT);
    assert_eq!(distinct.detail, without.detail, "{}: distinct ids are no ids", backend.name());
    assert_eq!(distinct.dx.elements(), without.dx.elements());

    case.groups = Some((vec![i64::MIN; n], vec![i64::MIN; n]));
    let same = case.run::<G>(backend, TIGHT);
    assert!(same.detail.it.neg_index.iter().chain(&same.detail.ti.neg_index).all(|&i| i == NONE));
    assert_eq!((same.report.empty_it, same.report.empty_ti), (n as u32, n as u32));
    assert!(same.dx.written("dx").iter().chain(&same.dy.written("dy")).all(|&v| v == 0.0), "{objective}");

    // Row 0 shares its id with every column but not the other way round: the columns keep candidates.
    let mut ids: Vec<i64> = (100..100 + n as i64).collect();
    ids[0] = 5;
    let mut one = case;
    one.objective = Objective::new(one.objective.triplet(), PairWeight::Con).expect("valid");
    for flip in [false, true] {
        one.groups = Some(if flip { (vec![5; n], ids.clone()) } else { (ids.clone(), vec![5; n]) });
        let (got, want) = (one.run::<G>(backend, TIGHT), one.reference().report);
        assert_eq!((got.report.empty_it, got.report.empty_ti), if flip { (0, 1) } else { (1, 0) });
        let (alone, others) = if flip { (got.detail.ti, got.detail.it) } else { (got.detail.it, got.detail.ti) };
        assert_eq!(alone.neg_index[0], NONE);
        assert!(others.neg_index.iter().all(|&i| i > 0));
        let sums = |r: &simgrad::StepReport| [r.log_it, r.log_ti, r.mean_negative_it, r.mean_negative_ti];
        common::check::close("report", &sums(&got.report), &sums(&want), |_| 2.0 * n as f64 * bound::<T>());
    }
}

#[test]
fn groups_leave_candidates_out() {
    on_every_backend(|backend| {
        for objective in Objective::all() {
            groups_cell::<f32, f32>(backend, objective);
        }
        groups_cell::<half::bf16, f32>(backend, "con-lin_ms".parse().expect("a name"));
    });
}

#[test]
fn an_empty_batch_reports_zeros() {
    on_every_backend(|backend| {
        for objective in Objective::all() {
            let case = Case::<f32>::raw(&Shape::new(0, 5), objective, 1);
            let got = case.run::<f32>(backend, WIDE);
            assert_eq!(got.report, simgrad::StepReport::default());
            got.dx.written("dx");
            assert!(got.detail.positive.is_empty() && got.detail.it.neg_index.is_empty());
        }
    });
}

#[test]
fn the_stride_of_a_single_row_does_not_matter() {
    use simgrad::{MatMut, MatRef, StepOptions};
    on_every_backend(|backend| {
        let (x, y) = ([1f32, 2.0, -1.0], [0.5f32, 0.0, 3.0]);
        for stride in [0, 1, 3, usize::MAX] {
            let (mut dx, mut dy) = ([f32::NAN; 3], [f32::NAN; 3]);
            let view = |m| MatRef::with_stride(m, 1, 3, stride).expect("a row");
            let (a, b) = (MatMut::with_stride(&mut dx, 1, 3, stride), MatMut::with_stride(&mut dy, 1, 3, stride));
            let objective: Objective = "nca-con".parse().expect("a name");
            let options = StepOptions::default();
            let got = backend.goal_step(view(&x), view(&y), &objective, &options, a.expect("dx"), b.expect("dy"));
            assert_eq!(got.expect("goal_step").empty_it, 1);
            assert_eq!((dx, dy), ([0.0; 3], [0.0; 3]), "{} stride {stride}", backend.name());
        }
    });
}
