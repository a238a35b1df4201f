//! Shapes that only the kernels' less travelled paths see: rows wider than a block, more targets than one digit, hubs.
#![cfg(feature = "cuda")]

mod cuda_support;

use cuda_support::{device, numbers, turn};
use half::bf16;
use simgrad::cuda::host::{self, Cuda};
use simgrad::{Element, GradOptions, MatMut, MatRef, Normalization, WeightTriples, WriteMode, reference};

/// Largest difference over the largest magnitude.
fn error(got: &[f32], want: &[f64]) -> f64 {
    let largest = want.iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs()));
    got.iter().zip(want).fold(0.0, |worst: f64, (&g, w)| worst.max((f64::from(g) - w).abs() / largest))
}

/// The gradient of `triples` by CUDA and by the reference.
fn compare<T: Element<Acc = f32>>(
    (n, m, d): (usize, usize, usize),
    triples: &[(i32, i32, f32)],
    normalization: Normalization,
) where
    f32: simgrad::GradientOf<T>,
{
    let cuda = Cuda::new(0).expect("a device");
    let fill = |len, seed| numbers::<f32>(len, seed).into_iter().map(T::from_acc).collect::<Vec<T>>();
    let (x, y) = (fill(n * d, 1), fill(m * d, 2));
    let (x, y) = (MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap());
    let rows: Vec<i32> = triples.iter().map(|t| t.0).collect();
    let cols: Vec<i32> = triples.iter().map(|t| t.1).collect();
    let values: Vec<f32> = triples.iter().map(|t| t.2).collect();
    let options = GradOptions { normalization, upstream: 0.5, write: WriteMode::Overwrite };
    let (mut dx, mut dy) = (vec![f32::NAN; n * d], vec![f32::NAN; m * d]);
    let w = WeightTriples { rows: &rows, cols: &cols, values: &values };
    let out = (MatMut::new(&mut dx, n, d).unwrap(), MatMut::new(&mut dy, m, d).unwrap());
    let report = host::weighted_grad(&cuda, x, y, &w, &options, out.0, out.1).unwrap();
    let exact: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let w = WeightTriples { rows: &rows, cols: &cols, values: &exact };
    let (want_dx, want_dy, want_report) = reference::weighted_grad(x, y, &w, &options);
    assert_eq!(report, want_report);
    assert!(error(&dx, &want_dx) < 1e-5, "dx: {}", error(&dx, &want_dx));
    assert!(error(&dy, &want_dy) < 1e-5, "dy: {}", error(&dy, &want_dy));
}

#[test]
fn rows_wider_than_a_block() {
    if device().is_none() {
        return;
    }
    let _turn = turn();
    let triples = [(0, 1, 1.0), (2, 1, -0.5), (1, 0, 2.0), (0, 1, 0.25)];
    for normalization in [Normalization::None, Normalization::L2] {
        compare::<bf16>((3, 2, 16_500), &triples, normalization);
        compare::<f32>((3, 2, 2_049), &triples, normalization);
    }
}

#[test]
fn more_targets_than_two_digits_of_the_sort_tell_apart() {
    if device().is_none() {
        return;
    }
    let _turn = turn();
    let n = 66_000;
    // The same low 16 bits, neighbours, the ends, and one row often.
    let rows = [464, 66_000 - 1, 464 + 65_536, 0, 1, 65_535, 65_536, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300];
    let triples: Vec<(i32, i32, f32)> = rows.iter().zip(0..).map(|(&r, k)| (r, k % 3, 1.0 + k as f32)).collect();
    compare::<f32>((n, 3, 2), &triples, Normalization::L2);
}

#[test]
fn a_row_that_most_triples_meet() {
    if device().is_none() {
        return;
    }
    let _turn = turn();
    // More terms than a block has threads, and more than 32 entries per warp of the sort.
    let triples: Vec<(i32, i32, f32)> =
        (0..1500).map(|k| (k % 70, if k % 9 == 0 { k % 40 } else { 7 }, (k % 5) as f32 - 1.5)).collect();
    compare::<f32>((70, 40, 300), &triples, Normalization::None);
    compare::<bf16>((70, 40, 24), &triples, Normalization::L2);
}
