//! The obvious composition: similarities are stored, then passes over them. Uses all threads, like the fused operations.

use rayon::prelude::*;
use simgrad::cpu::{self, Cpu};
use simgrad::{BatchMut, BatchRef, CosineOptions, Element, Normalization};

use super::{Shape, mat, mat_mut};

/// Columns that one task of a pass over columns looks at: 2 KiB of maxima, well inside the first cache.
const BLOCK: usize = 512;

/// `S` of already normalised or raw rows, as they are.
pub fn product<T: Element<Acc = f32>>(cpu: &Cpu, x: &[T], y: &[T], shape: Shape, s: &mut [f32]) {
    let options = CosineOptions { normalization: Normalization::None, ..CosineOptions::default() };
    let out = BatchMut::new(s, 1, shape.n, shape.n).expect("s is n × n");
    cpu::cosine_matrix(cpu, BatchRef::from(mat(x, shape)), BatchRef::from(mat(y, shape)), &options, out)
        .expect("shapes agree");
}

/// Normalised copies of both inputs, then [`product`].
pub fn cosine<T: Element<Acc = f32>>(
    cpu: &Cpu,
    x: &[T],
    y: &[T],
    shape: Shape,
    unit: (&mut [T], &mut [T]),
    s: &mut [f32],
) {
    let (ux, uy) = unit;
    cpu::normalize(cpu, mat(x, shape), mat_mut(ux, shape)).expect("shapes agree");
    cpu::normalize(cpu, mat(y, shape), mat_mut(uy, shape)).expect("shapes agree");
    product(cpu, ux, uy, shape, s);
}

fn better(best: &mut (f32, i32), value: f32, index: usize) {
    if value > best.0 {
        *best = (value, index as i32);
    }
}

/// Largest off-diagonal element of every row, and where it is.
pub fn hardest_of_rows(s: &[f32], n: usize, out: &mut [(f32, i32)]) {
    out.par_iter_mut().zip(s.par_chunks_exact(n)).enumerate().for_each(|(i, (best, row))| {
        *best = (f32::NEG_INFINITY, -1);
        row.iter().enumerate().filter(|&(j, _)| j != i).for_each(|(j, &v)| better(best, v, j));
    });
}

/// The same for every column; rows are still read one after the other.
pub fn hardest_of_cols(s: &[f32], n: usize, out: &mut [(f32, i32)]) {
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(block, best)| {
        let first = block * BLOCK;
        best.fill((f32::NEG_INFINITY, -1));
        for (i, row) in s.chunks_exact(n).enumerate() {
            for (k, (best, &v)) in best.iter_mut().zip(&row[first..]).enumerate() {
                if first + k != i {
                    better(best, v, i);
                }
            }
        }
    });
}

/// Number of elements of every row, and of every column, that are larger than the one on the diagonal.
pub fn ranks(s: &[f32], n: usize, rows: &mut [i32], cols: &mut [i32]) {
    rows.par_iter_mut().zip(s.par_chunks_exact(n)).enumerate().for_each(|(i, (rank, row))| {
        *rank = row.iter().filter(|&&v| v > row[i]).count() as i32;
    });
    cols.par_chunks_mut(BLOCK).enumerate().for_each(|(block, ranks)| {
        let first = block * BLOCK;
        ranks.fill(0);
        for row in s.chunks_exact(n) {
            for (k, (rank, &v)) in ranks.iter_mut().zip(&row[first..]).enumerate() {
                let j = first + k;
                *rank += i32::from(v > s[j * n + j]);
            }
        }
    });
}

/// `out` (cols × rows) = `a`ᵀ, `a` being rows × cols.
pub fn transpose(a: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    out.par_chunks_mut(rows).enumerate().for_each(|(c, line)| {
        for (r, v) in line.iter_mut().enumerate() {
            *v = a[r * cols + c];
        }
    });
}
