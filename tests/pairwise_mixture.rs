//! Mixtures of objectives over all pairs, on the CPU.

mod common;

use common::check::close;
use common::data::{Kind, Matrix, ODD, TIGHT};
use common::pairwise::{PairwiseCase, pairwise_case};
use simgrad::cpu::{self, Cpu};
use simgrad::{
    Element, Error, GradientOf, MixtureReport, PairwiseObjective, PairwisePart, Result, WriteMode, reference,
};

/// Every kind at once, some of them pulling the other way.
fn parts() -> Vec<PairwisePart> {
    let weight = |k: usize| [1.0, -0.5, 2.0, 0.25][k % 4];
    PairwiseObjective::ALL
        .into_iter()
        .enumerate()
        .map(|(k, objective)| PairwisePart { weight: weight(k), objective })
        .collect()
}

type Mixed<G> = (Result<MixtureReport>, Matrix<G>, Matrix<G>);

fn mixture<T: Element, G: GradientOf<T>>(
    cpu: &Cpu,
    case: &PairwiseCase<T>,
    parts: &[PairwisePart],
    conflict: bool,
) -> Mixed<G> {
    let mut dx = Matrix::<G>::poisoned(case.x.rows, case.x.cols, ODD);
    let mut dy = Matrix::<G>::poisoned(case.y.rows, case.y.cols, ODD);
    let options = case.options(WriteMode::Overwrite);
    let (x, y) = (case.x.view(), case.y.view());
    let report = cpu::pairwise_mixture(cpu, x, y, parts, &options, conflict, dx.view_mut(), dy.view_mut());
    (report, dx, dy)
}

fn sum_cell<T: Element, G: GradientOf<T>>(relative: f64) {
    let cpu = Cpu::with_threads(2).unwrap();
    for grouped in [false, true] {
        let mut case = pairwise_case::<T>(Kind::Sphere, (150, 170, 24), PairwiseObjective::n_pair(), 5);
        case.upstream = 1.5;
        let case = if grouped { case.grouped(40) } else { case };
        let (report, dx, dy) = mixture::<T, G>(&cpu, &case, &parts(), true);
        let report = report.unwrap();
        let conflict = report.conflict.as_ref().unwrap();
        let count = parts().len();
        let (mut want_x, mut want_y) = (vec![0.0; 150 * 24], vec![0.0; 170 * 24]);
        let mut gradients = Vec::new();
        let mut loss = 0.0;
        for (k, part) in parts().into_iter().enumerate() {
            let one = PairwiseCase { objective: part.objective, ..case.clone() };
            let want = one.reference();
            want_x.iter_mut().zip(&want.dx).for_each(|(a, b)| *a += part.weight * b);
            want_y.iter_mut().zip(&want.dy).for_each(|(a, b)| *a += part.weight * b);
            loss += part.weight * want.report.loss;
            let got = report.parts[k];
            assert!(
                (got.loss - want.report.loss).abs() <= relative * (1.0 + want.report.loss.abs()),
                "{}",
                part.objective
            );
            let close = |got: f64, want: f64| (got - part.weight * want).abs() <= relative * (1.0 + want.abs());
            assert!(
                close(got.d_scale, want.report.d_scale) && close(got.d_bias, want.report.d_bias),
                "{}",
                part.objective
            );
            gradients.push(want.dx.into_iter().chain(want.dy).map(|v| part.weight * v).collect::<Vec<f64>>());
        }
        let largest = want_x.iter().chain(&want_y).fold(0.0f64, |a, b| a.max(b.abs()));
        let name = format!("mixture {} grouped {grouped}", T::DTYPE);
        close(&name, &dx.written(&name), &want_x, |_| relative * largest);
        close(&name, &dy.written(&name), &want_y, |_| relative * largest);
        assert!((report.loss - loss).abs() <= relative * (1.0 + loss.abs()), "{name}");
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for a in 0..count {
            let norm = dot(&gradients[a], &gradients[a]).sqrt();
            assert!((conflict.norms[a] - norm).abs() <= relative * norm, "{name}: norm {a}");
            for b in 0..count {
                let cosine = dot(&gradients[a], &gradients[b]) / (norm * dot(&gradients[b], &gradients[b]).sqrt());
                assert!((conflict.cosines[a * count + b] - cosine).abs() <= relative, "{name}: cosine {a} {b}");
            }
        }
    }
}

#[test]
fn a_mixture_is_the_sum_of_its_parts() {
    sum_cell::<f32, f32>(2e-4);
    sum_cell::<f64, f64>(1e-10);
}

#[test]
fn one_part_of_weight_one_is_the_step_itself() {
    let cpu = Cpu::with_threads(2).unwrap();
    for objective in PairwiseObjective::ALL {
        let case = pairwise_case::<f32>(Kind::Sphere, (40, 30, 8), objective, 6);
        let (report, dx, dy) = mixture::<f32, f32>(&cpu, &case, &[PairwisePart { weight: 1.0, objective }], false);
        let report = report.unwrap();
        let alone = case.run::<f32>(&simgrad::Backend::Cpu(cpu.clone()), ODD);
        assert!(dx.same_buffer(&alone.dx) && dy.same_buffer(&alone.dy), "{objective}");
        assert_eq!((report.loss, &report.parts[..], report.conflict), (alone.report.loss, &[alone.report][..], None));
    }
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let case = pairwise_case::<f32>(Kind::Sphere, (500, 600, 16), PairwiseObjective::n_pair(), 7);
    let [one, three] =
        [1, 3].map(|threads| mixture::<f32, f32>(&Cpu::with_threads(threads).unwrap(), &case, &parts(), false));
    assert_eq!(one.0, three.0);
    assert!(one.1.same_buffer(&three.1) && one.2.same_buffer(&three.2));
}

#[test]
fn what_is_wrong_with_a_mixture_is_named() {
    let cpu = Cpu::with_threads(1).unwrap();
    let case = pairwise_case::<f32>(Kind::Sphere, (3, 4, 5), PairwiseObjective::n_pair(), 8);
    let refused = |case: &PairwiseCase<f32>, parts: &[PairwisePart], arg: &str| {
        let (got, dx, dy) = mixture::<f32, f32>(&cpu, case, parts, false);
        let untouched = (Matrix::<f32>::poisoned(3, 5, ODD), Matrix::<f32>::poisoned(4, 5, ODD));
        assert!(dx.same_buffer(&untouched.0) && dy.same_buffer(&untouched.1), "{arg}: something was written");
        match got {
            Err(Error::InvalidOption { op: "pairwise_mixture", arg: named, .. }) => assert_eq!(named, arg),
            other => panic!("{arg}: {other:?}"),
        }
    };
    let objective = PairwiseObjective::SigLip { scale: 1.0, bias: 0.0 };
    refused(&case, &[], "parts");
    refused(&case, &[PairwisePart { weight: f64::NAN, objective }], "parts.weight");
    let bad = PairwiseObjective::SigLip { scale: 1.0, bias: f64::NAN };
    refused(
        &case,
        &[PairwisePart { weight: 1.0, objective }, PairwisePart { weight: 1.0, objective: bad }],
        "objective.bias",
    );
    let corrected = PairwiseCase { log_q: Some(vec![0.0; 4]), ..case.clone() };
    refused(&corrected, &[PairwisePart { weight: 1.0, objective }], "options.log_q");
    let infonce = PairwisePart { weight: 1.0, objective: PairwiseObjective::InfoNce { scale: 1.0 } };
    let both = mixture::<f32, f32>(&cpu, &corrected, &[PairwisePart { weight: 1.0, objective }, infonce], false);
    assert!(both.0.is_ok());
}

/// The reference that the sums are compared with knows of no mixtures; that it differs from part to part is seen here.
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
