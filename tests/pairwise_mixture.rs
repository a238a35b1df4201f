//! Mixtures of objectives, on every backend, against the sums of their parts.

mod common;

use common::data::{Kind, Matrix, ODD, TIGHT, WIDE};
use common::mixture::{MixtureCase, every_pairwise, parts};
use common::pairwise::{PairwiseCase, pairwise_case, relative};
use common::{for_each_gradient, is_cuda, on_every_backend};
use simgrad::cpu::Cpu;
use simgrad::{
    Backend, Element, Error, GradientOf, MixtureObjective, Normalization, Objective, PairwiseObjective, PairwisePart,
    WriteMode, reference,
};

fn case<T: Element>(shape: (usize, usize, usize), parts: Vec<PairwisePart>, seed: u64) -> MixtureCase<T> {
    MixtureCase { batch: pairwise_case(Kind::Sphere, shape, PairwiseObjective::n_pair(), seed), parts }
}

/// All kinds of objectives over all pairs, with groups and masks.
fn every_kind<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for grouped in [false, true] {
        let mut mixture = case::<T>((150, 140, 24), every_pairwise(), 5);
        mixture.batch.upstream = 1.5;
        if grouped {
            mixture.batch = mixture.batch.grouped(40);
            mixture.batch.ignored =
                Some(((0..150).map(|i| i % 7 == 3).collect(), (0..140).map(|j| j % 9 == 4).collect()));
        }
        let got = mixture.run::<G>(backend, true, ODD);
        mixture.check(&format!("{} every kind, grouped {grouped}", T::DTYPE), &got, relative::<T>());
    }
}

#[test]
fn a_mixture_is_the_sum_of_its_parts() {
    on_every_backend(|backend| {
        every_kind::<f32, f32>(backend);
        every_kind::<half::bf16, f32>(backend);
        if !is_cuda(backend) {
            every_kind::<f64, f64>(backend);
        }
    });
}

/// A few parts of every sort, small, in every type.
fn few<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for (at, text) in [
        "infonce 0.5*siglip",
        "0.25*siglip -1*supcon 2*siglip",
        "triplet-all 0*ms-mined 0.5*circle",
        "0.1*nca-sig infonce",
        "supcon 0.01*hinge-con 0.02*nca-lin_ms",
        "hinge-con 0.5*nca-sig",
        "nca-sig_ms",
        "0.5*lifted",
    ]
    .into_iter()
    .enumerate()
    {
        for grouped in [false, true] {
            let mut mixture = case::<T>((23, 23, 9), parts(text), at as u64);
            mixture.batch.upstream = -0.75;
            if grouped {
                mixture.batch = mixture.batch.grouped(8);
            }
            let got = mixture.run::<G>(backend, true, WIDE);
            mixture.check(&format!("{} {text} grouped {grouped}", T::DTYPE), &got, relative::<T>());
        }
    }
}

#[test]
fn parts_of_every_sort_in_every_type() {
    on_every_backend(|backend| for_each_gradient!(backend, few()));
}

#[test]
fn options_go_to_the_parts_that_take_them() {
    on_every_backend(|backend| {
        let mut mixture = case::<f32>((30, 41, 12), parts("infonce 0.5*supcon -1*ms 2*triplet-all 0.5*siglip"), 3);
        mixture.batch.objective = PairwiseObjective::ALL[0];
        mixture.batch = mixture.batch.with_everything(4);
        let got = mixture.run::<f32>(backend, true, TIGHT);
        mixture.check("with everything", &got, relative::<f32>());
        mixture.batch.normalization = Normalization::None;
        let got = mixture.run::<f32>(backend, false, TIGHT);
        mixture.check("not normalised", &got, relative::<f32>());
    });
}

#[test]
fn a_set_with_itself() {
    on_every_backend(|backend| {
        for text in ["supcon 0.5*siglip -0.25*ms-mined", "0.5*circle", "infonce supcon"] {
            let mut mixture = case::<f32>((140, 140, 10), parts(text), 6);
            mixture.batch.single = true;
            mixture.batch = mixture.batch.grouped(30);
            let got = mixture.run::<f32>(backend, true, TIGHT);
            mixture.check(&format!("single {text}"), &got, relative::<f32>());
        }
    });
}

#[test]
fn a_goal_part_meets_zero_rows_hubs_and_rows_that_are_not_finite() {
    on_every_backend(|backend| {
        let text = "0.1*nca-sig infonce 0.2*hinge-con";
        let mut mixture = case::<f32>((40, 40, 6), parts(text), 11);
        mixture.batch.x.set_row(3, |_| 0.0);
        mixture.batch.y.set_row(9, |_| 0.0);
        let got = mixture.run::<f32>(backend, false, TIGHT);
        mixture.check("zero rows", &got, relative::<f32>());
        let mut hubs = mixture.clone();
        hubs.batch = pairwise_case(Kind::Hubs, (60, 60, 12), PairwiseObjective::n_pair(), 3);
        let got = hubs.run::<f32>(backend, false, TIGHT);
        hubs.check("hubs", &got, relative::<f32>());
        mixture.batch.y.set_row(17, |k| if k == 2 { f64::NAN } else { 1.0 });
        let got = mixture.run::<f32>(backend, false, TIGHT);
        mixture.check("a row with a NaN", &got, relative::<f32>());
    });
}

/// With GOAL parts alone, and in a step of theirs for the conflict: a row that is not finite has weights of 0 for the rows
/// that it does not meet.
fn goal_parts_alone<T: Element, G: GradientOf<T>>(backend: &Backend) {
    for text in ["hinge-con", "con-sig_ms 0.5*nca-sig"] {
        for of_x in [true, false] {
            let name = format!("{} {} {text}, NaN in x: {of_x}", backend.name(), T::DTYPE);
            let mut mixture = case::<T>((40, 40, 6), parts(text), 13);
            let spoil = |batch: &mut PairwiseCase<T>, at: usize| {
                let side = if of_x { &mut batch.x } else { &mut batch.y };
                side.set_row(at, |k| if k == 2 { f64::NAN } else { 1.0 });
            };
            spoil(&mut mixture.batch, 17);
            // Others share the group of row 17 and never meet it.
            let (alone, shared): (Vec<i64>, Vec<i64>) =
                (0..40).map(|i| (if i == 17 { 7 } else { 100 + i }, if i % 3 == 0 { 7 } else { 200 + i })).unzip();
            mixture.batch.groups = Some(if of_x { (alone, shared) } else { (shared, alone) });
            let got = mixture.run::<G>(backend, true, ODD);
            mixture.check(&format!("{name}, grouped"), &got, relative::<T>());
            for (side, gradient) in [("dx", &got.dx), ("dy", &got.dy)] {
                let nan = gradient.written(&name).iter().filter(|v| v.is_nan()).count();
                assert!(nan > 0 && nan < 40 * 6, "{name}: {nan} of {side}");
            }

            // The only row has no negative.
            let mut one = case::<T>((1, 1, 6), parts("hinge-con"), 13);
            spoil(&mut one.batch, 0);
            one.check(&format!("{name}, one pair"), &one.run::<G>(backend, true, ODD), relative::<T>());
        }
    }
}

#[test]
fn goal_parts_alone_do_not_meet_what_is_not_finite_in_their_group() {
    on_every_backend(|backend| for_each_gradient!(backend, goal_parts_alone()));
}

#[test]
fn anchors_of_a_goal_part_without_a_negative_have_none() {
    on_every_backend(|backend| {
        let mut mixture = case::<f32>((3, 3, 5), parts("hinge-con infonce 0.5*nca-sig"), 4);
        // Row 0 has the group of every column.
        mixture.batch.groups = Some((vec![1, 2, 2], vec![1, 1, 1]));
        let got = mixture.run::<f32>(backend, false, TIGHT);
        mixture.check("no negative", &got, relative::<f32>());
        let negatives = got.report.unwrap().parts.iter().map(|part| part.negatives).collect::<Vec<_>>();
        assert_eq!(negatives, [2, 4, 2]);
    });
}

/// Negatives of anchors in other tiles than the anchor's.
#[test]
fn a_goal_part_has_its_weights_in_every_tile() {
    on_every_backend(|backend| {
        for text in ["0.1*hinge-con infonce", "0.2*nca-sig_ms"] {
            let mixture = case::<f32>((150, 150, 9), parts(text), 5);
            let got = mixture.run::<f32>(backend, false, TIGHT);
            mixture.check(&format!("tiles {text}"), &got, relative::<f32>());
        }
    });
}

#[test]
fn one_part_of_weight_one_is_the_step_itself() {
    on_every_backend(|backend| {
        for objective in PairwiseObjective::ALL {
            let mixture = case::<f32>((40, 30, 8), vec![PairwisePart::new(1.0, objective)], 6);
            let got = mixture.run::<f32>(backend, false, ODD);
            let alone = PairwiseCase { objective, ..mixture.batch }.run::<f32>(backend, ODD);
            assert!(got.dx.same_buffer(&alone.dx) && got.dy.same_buffer(&alone.dy), "{objective}");
            let report = got.report.unwrap();
            let found = (report.loss, &report.parts[..], report.conflict);
            assert_eq!(found, (alone.report.loss, &[alone.report][..], None), "{objective}");
        }
    });
}

#[test]
fn gradients_are_added_to_what_is_there_and_overflow_is_counted_in_every_report() {
    on_every_backend(|backend| {
        let mut mixture = case::<half::f16>((9, 9, 4), parts("infonce 0.5*siglip 0.1*hinge-con"), 2);
        let fresh = mixture.run::<f32>(backend, false, TIGHT);
        let start = |rows: usize| Matrix::<f32>::new(&[3.0].repeat(rows * 4), rows, 4, TIGHT);
        let added = mixture.run_onto::<f32>(backend, false, WriteMode::Accumulate, start(9), start(9));
        for (fresh, added) in [(&fresh.dx, &added.dx), (&fresh.dy, &added.dy)] {
            let pairs = fresh.written("fresh").into_iter().zip(added.written("added"));
            pairs.for_each(|(f, a)| assert!((f + 3.0 - a).abs() <= 1e-6 * (3.0 + f.abs()), "{f} {a}"));
        }
        mixture.batch.upstream = 1e9;
        let got = mixture.run::<half::f16>(backend, false, TIGHT);
        let infinite = |m: &Matrix<half::f16>| m.written("gradient").iter().filter(|v| v.is_infinite()).count();
        let count = infinite(&got.dx) + infinite(&got.dy);
        let reports = got.report.unwrap().parts;
        assert!(count > 0 && reports.iter().all(|r| r.overflow as usize == count), "{count} {reports:?}");
    });
}

#[test]
fn a_conflict_does_not_overflow_where_the_gradients_do() {
    on_every_backend(|backend| {
        let mut mixture = case::<half::f16>((9, 9, 4), parts("infonce 0.5*siglip 0.1*hinge-con"), 2);
        mixture.batch.upstream = 1e9;
        let narrow = mixture.run::<half::f16>(backend, true, TIGHT);
        let wide = mixture.run::<f32>(backend, true, TIGHT);
        mixture.check("wide", &wide, relative::<half::f16>());
        assert!(narrow.dx.written("dx").iter().any(|v| v.is_infinite()));
        assert_eq!(narrow.report.unwrap().conflict, wide.report.unwrap().conflict);
    });
}

#[test]
fn empty_sets_have_gradient_zero() {
    on_every_backend(|backend| {
        for shape in [(0, 0, 4), (3, 0, 4), (0, 3, 4)] {
            let mixture = case::<f32>(shape, every_pairwise(), 1);
            let got = mixture.run::<f32>(backend, true, TIGHT);
            mixture.check("empty", &got, relative::<f32>());
        }
        let mixture = case::<f32>((0, 0, 4), parts("infonce hinge-con"), 1);
        mixture.check("no pairs", &mixture.run::<f32>(backend, true, TIGHT), relative::<f32>());
        let one = case::<f32>((1, 1, 4), parts("infonce hinge-con"), 1);
        one.check("one pair", &one.run::<f32>(backend, true, TIGHT), relative::<f32>());
    });
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let all = [every_pairwise(), parts("0.3*nca-sig_ms hinge-con")].concat();
    let mixture = case::<f32>((500, 500, 16), all, 7);
    let run = |threads| mixture.run::<f32>(&Backend::Cpu(Cpu::with_threads(threads).unwrap()), false, ODD);
    let (one, three) = (run(1), run(3));
    assert_eq!(one.report, three.report);
    assert!(one.dx.same_buffer(&three.dx) && one.dy.same_buffer(&three.dy));
}

#[test]
fn what_is_wrong_with_a_mixture_is_named() {
    on_every_backend(|backend| {
        let refused = |mixture: &MixtureCase<f32>, arg: &str| {
            let got = mixture.run::<f32>(backend, false, ODD);
            let batch = &mixture.batch;
            let rows = if batch.single { 0 } else { batch.y.rows };
            let untouched =
                [(batch.x.rows, &got.dx), (rows, &got.dy)].map(|(n, m)| m.same_buffer(&Matrix::poisoned(n, 5, ODD)));
            assert_eq!(untouched, [true; 2], "{arg}: something was written");
            let wanted = if batch.single { "pairwise_mixture_single" } else { "pairwise_mixture" };
            match got.report {
                Err(Error::InvalidOption { op, arg: named, .. } | Error::ShapeMismatch { op, arg: named, .. }) => {
                    assert_eq!((op, named), (wanted, arg));
                }
                other => panic!("{arg}: {other:?}"),
            }
        };
        let with = |parts: &[PairwisePart]| case::<f32>((4, 4, 5), parts.to_vec(), 8);
        refused(&with(&[]), "parts");
        refused(&with(&[PairwisePart::new(f64::NAN, PairwiseObjective::ALL[1])]), "parts.weight");
        for text in ["infonce 1e39*siglip", "-1e39*hinge-con"] {
            let large = with(&parts(text));
            if is_cuda(backend) {
                // f32 does not hold it.
                refused(&large, "parts.weight");
            } else {
                let got = large.run::<f32>(backend, false, ODD);
                assert!(got.report.is_ok(), "{text}: {:?}", got.report);
            }
        }
        let bad = PairwisePart::new(1.0, PairwiseObjective::SigLip { scale: 1.0, bias: f64::NAN });
        refused(&with(&[parts("siglip"), vec![bad]].concat()), "objective.bias");
        let mut corrected = with(&parts("siglip hinge-con"));
        corrected.batch.log_q = Some(vec![0.0; 4]);
        refused(&corrected, "options.log_q");
        corrected.parts = parts("siglip infonce hinge-con");
        corrected.check("one of them takes it", &corrected.run::<f32>(backend, false, ODD), relative::<f32>());

        let goal = parts("infonce hinge-con");
        refused(&case::<f32>((4, 3, 5), goal.clone(), 8), "y.rows");
        let mut single = with(&goal);
        single.batch.single = true;
        refused(&single, "parts.objective");
        let mut masked = with(&goal);
        masked.batch.ignored = Some((vec![false; 4], vec![false; 4]));
        refused(&masked, "options.ignore_rows");
        let mut weighted = with(&goal);
        weighted.batch.weights = Some((vec![1.0; 4], vec![1.0; 4]));
        refused(&weighted, "options.row_weights");
    });
}

#[test]
fn names_are_taken_back() {
    let all = PairwiseObjective::ALL.into_iter().map(MixtureObjective::from);
    for objective in all.chain(Objective::all().into_iter().map(MixtureObjective::from)) {
        assert_eq!(objective.to_string().parse::<MixtureObjective>(), Ok(objective));
    }
    assert!(matches!("clip".parse::<MixtureObjective>(), Err(Error::InvalidOption { arg: "name", .. })));
}

/// The references that the sums are made of know of no mixtures; that they differ from part to part is seen here.
#[test]
fn the_parts_differ() {
    let case = pairwise_case::<f64>(Kind::Sphere, (12, 12, 6), PairwiseObjective::n_pair(), 9);
    let options = case.options(WriteMode::Overwrite);
    let all: Vec<_> = PairwiseObjective::ALL
        .iter()
        .map(|o| {
            reference::pairwise_step(Matrix::new(&case.x.values(), 12, 6, TIGHT).view(), case.y.view(), o, &options).dx
        })
        .collect();
    for (a, first) in all.iter().enumerate() {
        assert!(all[a + 1..].iter().all(|second| first != second), "{}", PairwiseObjective::ALL[a]);
    }
}
