//! Shapes that devices with clusters sweep in their largest tiles, where other tests have small batches: blocks beyond the last
//! row, more steps of k than stages, rectangles of several tiles. On other devices the same calls with other kernels.
#![cfg(feature = "cuda")]

mod common;

use common::check::similarities;
use common::cuda;
use common::data::{Kind, Matrix, ODD, TIGHT, WIDE, group_ids, groups_in_order, pair, poison};
use half::{bf16, f16};
use simgrad::cuda::{PlanDevice, Scheme, SweepKernel, SweepPlan, SweepShape};
use simgrad::{
    Backend, BatchMut, BatchRef, CosineOptions, DType, Element, Groups, MatRef, MineOptions, NONE, Normalization,
    PositiveRanksOptions, RecallOptions, RelevantPairs, TiePolicy, TopKOptions, reference,
};

/// 9 tiles of 128 rows, of which clusters take 2 at a time, and 9 of 256 columns; the last ones are cut off.
const SHAPE: (usize, usize, usize) = (1100, 2100, 72);
/// Batch and shape of the matrices: 72 units, of which some of the 66 clusters of 132 multiprocessors have two.
const MATRICES: (usize, usize, usize, usize) = (12, 300, 530, 72);
/// Two tiles of 128 rows, and four steps of 256 columns for each of 16 blocks beside each other.
const UNEVEN: (usize, usize) = (256, 4 * 16 * 256);
/// 1, 2 and 3 steps of k: none is as many as there are stages.
const UNEVEN_D: [usize; 3] = [8, 128, 136];

fn backend() -> Option<&'static Backend> {
    match cuda() {
        Ok(backend) => Some(backend),
        Err(reason) => {
            assert!(!common::gpu_required(), "SIMGRAD_REQUIRE_GPU is set, but CUDA cannot be used: {reason}");
            eprintln!("note: skipped: {reason}");
            None
        }
    }
}

#[test]
fn the_shapes_are_large_enough() {
    let (n, m, d) = SHAPE;
    let one = SweepShape { batch: 1, n, m, d, dtype: DType::Bf16 };
    let (batch, n, m, d) = MATRICES;
    let matrices = SweepShape { batch, n, m, d, dtype: DType::Bf16 };
    let kernels = [SweepKernel::Mine, SweepKernel::Ranks];
    let uneven = UNEVEN_D.map(|d| (SweepKernel::Mine, SweepShape { n: UNEVEN.0, m: UNEVEN.1, d, ..one }));
    let shapes = kernels.map(|k| (k, one)).into_iter().chain([(SweepKernel::CosineMatrix, matrices)]).chain(uneven);
    for (kernel, shape) in shapes {
        let plan = SweepPlan::new(kernel, shape, PlanDevice::H200);
        assert_eq!(plan.scheme, Scheme::GroupMma, "{kernel:?}");
    }
    // Without clusters, in several tiles of 64 columns per part.
    assert_eq!(SweepPlan::new(SweepKernel::TopK, one, PlanDevice::H200).scheme, Scheme::GroupMmaSmall);
}

/// Integers, whose similarities are exact.
fn integers<T: Element>() -> (Matrix<T>, Matrix<T>) {
    let (n, m, d) = SHAPE;
    let (x, y) = pair(Kind::Integers, 3, n, m, d);
    (Matrix::new(&x, n, d, ODD), Matrix::new(&y, m, d, WIDE))
}

fn ranks_cell<T: Element>(backend: &Backend, ids: Option<(Vec<i64>, Vec<i64>)>, ties: TiePolicy) {
    let (x, y) = integers::<T>();
    let groups = ids.as_ref().map(|(rows, cols)| Groups { rows, cols });
    let options = RecallOptions { normalization: Normalization::None, groups, ties };
    let got = backend.ranks(x.view(), y.view(), &options).expect("ranks");
    assert_eq!(got, reference::ranks(x.view(), y.view(), &options), "{} {} {ties:?}", T::DTYPE, ids.is_some());
}

#[test]
fn ranks() {
    let Some(backend) = backend() else { return };
    let (n, m, _) = SHAPE;
    ranks_cell::<bf16>(backend, None, TiePolicy::LowestIndex);
    ranks_cell::<f16>(backend, Some((group_ids(1, n, 40), group_ids(2, m, 40))), TiePolicy::LowestIndex);
    ranks_cell::<bf16>(backend, None, TiePolicy::Pessimistic);
    ranks_cell::<bf16>(backend, Some(groups_in_order(n, m)), TiePolicy::LowestIndex);
}

#[test]
fn mine_with_groups_in_order() {
    let Some(backend) = backend() else { return };
    let (x, y) = integers::<bf16>();
    let (rows, cols) = groups_in_order(x.rows, y.rows);
    let groups = Some(Groups { rows: &rows, cols: &cols });
    let options = MineOptions { normalization: Normalization::None, groups, ..MineOptions::default() };
    let got = backend.mine(x.view(), y.view(), &options).expect("mine");
    let want = reference::mine(x.view(), y.view(), &options);
    for (got, want) in [(&got.rows, &want.rows), (&got.cols, &want.cols)] {
        assert_eq!(got.index, want.index);
        assert!(got.value.iter().zip(&want.value).all(|(&g, &w)| f64::from(g) == w));
    }
}

#[test]
fn positive_ranks() {
    let Some(backend) = backend() else { return };
    let (x, y) = integers::<bf16>();
    let ids = (group_ids(1, x.rows, 600), group_ids(2, y.rows, 600));
    let groups = RelevantPairs::from_groups(Groups { rows: &ids.0, cols: &ids.1 }).expect("pairs");
    let paired = RelevantPairs::paired(x.rows, y.rows).expect("pairs");
    for (relevant, ties) in [(paired, TiePolicy::LowestIndex), (groups, TiePolicy::LowestIndex)] {
        let options = PositiveRanksOptions { normalization: Normalization::None, ties };
        let got = backend.positive_ranks(x.view(), y.view(), &relevant, &options).expect("ranks");
        assert_eq!(got, reference::positive_ranks(x.view(), y.view(), &relevant, &options), "{ties:?}");
    }
}

#[test]
fn top_k() {
    let Some(backend) = backend() else { return };
    let (x, y) = integers::<f16>();
    let options = TopKOptions { normalization: Normalization::None, ..TopKOptions::hardest(3) };
    let got = backend.mine_top_k(x.view(), y.view(), &options).expect("top k");
    let want = reference::mine_top_k(x.view(), y.view(), &options);
    for (got, want) in [(&got.rows, &want.rows), (&got.cols, &want.cols)] {
        assert_eq!((&got.index, &got.survivors), (&want.index, &want.survivors));
    }
}

/// Every element of every matrix, and nothing beside them: rows that vectors fit, and rows that they do not.
fn matrices_cell<T: Element, O: Element<Acc = T::Acc>>(backend: &Backend, gap: usize, repeated: bool) {
    let (batch, n, m, d) = MATRICES;
    let all = pair(Kind::Integers, 7, batch * n, batch * m, d);
    let (x, y) = (Matrix::<T>::new(&all.0, batch * n, d, TIGHT), Matrix::<T>::new(&all.1, batch * m, d, TIGHT));
    let (xs, ys) = (x.elements(), y.elements());
    let (row, matrix) = (m + gap, n * (m + gap) + gap);
    let mut out = vec![poison::<O>(); batch * matrix];
    let xb = BatchRef::new(&xs, batch, n, d).expect("x");
    let yb = BatchRef::with_strides(&ys, batch, m, d, d, if repeated { 0 } else { m * d }).expect("y");
    let options = CosineOptions { normalization: Normalization::None, scale: -0.25, ..CosineOptions::default() };
    let ob = BatchMut::with_strides(&mut out, batch, n, m, row, matrix).expect("out");
    backend.cosine_matrix(xb, yb, &options, ob).expect("similarities");
    let mark = bytemuck::bytes_of(&poison::<O>()).to_vec();
    for b in 0..batch {
        let part =
            |all: &[f64], rows: usize, b: usize| Matrix::<T>::new(&all[b * rows * d..][..rows * d], rows, d, TIGHT);
        let (x, y) = (part(&all.0, n, b), part(&all.1, m, if repeated { 0 } else { b }));
        let want = similarities(&x, &y, Normalization::None);
        for i in 0..n {
            let got = &out[b * matrix + i * row..][..row];
            for j in 0..m {
                let want = O::from_f64(-0.25 * want[i * m + j]).to_f64();
                assert_eq!(got[j].to_f64(), want, "{} {} {b} {i} {j}", T::DTYPE, O::DTYPE);
            }
            assert!(
                got[m..].iter().all(|v| bytemuck::bytes_of(v) == &mark[..]),
                "written beside row {i} of matrix {b}"
            );
        }
    }
}

#[test]
fn matrices() {
    let Some(backend) = backend() else { return };
    matrices_cell::<bf16, f32>(backend, 6, false);
    matrices_cell::<f16, f32>(backend, 1, true);
    matrices_cell::<bf16, bf16>(backend, 2, false);
    matrices_cell::<f16, f16>(backend, 3, true);
}

/// More steps of k than there are stages, and the last one cut off.
#[test]
fn rows_longer_than_all_stages() {
    let Some(backend) = backend() else { return };
    let (n, m, d) = (300, 600, 5 * 64 + 9);
    let batch = 12;
    let (x, y) = pair(Kind::Integers, 9, n, batch * m, d);
    let (x, y) = (Matrix::<bf16>::new(&x, n, d, TIGHT), Matrix::<bf16>::new(&y, batch * m, d, TIGHT));
    let (xs, ys) = (x.elements(), y.elements());
    let mut out = vec![poison::<f32>(); batch * n * m];
    let xb = BatchRef::with_strides(&xs, batch, n, d, d, 0).expect("x");
    let yb = BatchRef::new(&ys, batch, m, d).expect("y");
    let options = CosineOptions { normalization: Normalization::None, ..CosineOptions::default() };
    backend.cosine_matrix(xb, yb, &options, BatchMut::new(&mut out, batch, n, m).expect("out")).expect("similarities");
    let want = similarities(&x, &y, Normalization::None);
    for (at, got) in out.iter().enumerate() {
        let (b, i, j) = (at / (n * m), at / m % n, at % m);
        assert_eq!(f64::from(*got), want[i * batch * m + b * m + j], "{b} {i} {j}");
    }
}

/// The first of two warpgroups is done with every tile at once, for all its pairs are of one group. Every pair of the second one
/// is a better negative than those before it, of its row and of its column. However far that lets the first one get ahead,
/// both have to come to an end.
#[test]
fn warpgroups_with_uneven_work() {
    let Some(backend) = backend() else { return };
    let (n, m) = UNEVEN;
    let busy = |row: usize| row % 128 >= 64;
    let row_ids: Vec<i64> = (0..n).map(|row| i64::from(busy(row))).collect();
    let groups = Some(Groups { rows: &row_ids, cols: &vec![0; m] });
    let options = MineOptions { normalization: Normalization::None, groups, ..MineOptions::default() };
    for d in UNEVEN_D {
        // The similarity is the number of the step, which is a bf16.
        let x: Vec<bf16> = (0..n * d).map(|i| bf16::from_f32(if i % d == 0 { 1.0 } else { 0.0 })).collect();
        let y: Vec<bf16> =
            (0..m * d).map(|i| bf16::from_f32(if i % d == 0 { (i / d / 256) as f32 } else { 0.0 })).collect();
        let (x, y) = (MatRef::new(&x, n, d).expect("x"), MatRef::new(&y, m, d).expect("y"));
        let got = backend.mine(x, y, &options).expect("mine");
        for row in 0..n {
            let want = if busy(row) { (m - 256) as i32 } else { NONE };
            assert_eq!(got.rows.index[row], want, "d {d}, row {row}");
        }
        for col in 0..m {
            let want = if col == 64 { 65 } else { 64 }; // row 64 is the own pair of column 64
            assert_eq!((got.cols.index[col], got.cols.value[col]), (want, (col / 256) as f32), "d {d}, column {col}");
        }
    }
}
