//! Awkward input and its defined answer, one test per claim.

#[path = "../common/mod.rs"]
mod common;

mod limits;
mod rows;
mod weights;

use common::data::{Matrix, TIGHT};
use common::goal::{Case, Shape};
use simgrad::{Element, Normalization, Objective};

pub(crate) fn objective(name: &str) -> Objective {
    name.parse().expect("a name")
}

/// A case of given rows.
pub(crate) fn case<T: Element>(
    x: &[f64],
    y: &[f64],
    d: usize,
    objective: Objective,
    normalization: Normalization,
) -> Case<T> {
    let n = x.len() / d;
    Case {
        x: Matrix::new(x, n, d, TIGHT),
        y: Matrix::new(y, n, d, TIGHT),
        groups: None,
        objective,
        normalization,
        upstream: 1.0,
    }
}

pub(crate) fn plain<T: Element>(n: usize, d: usize, name: &str, seed: u64) -> Case<T> {
    Case::raw(&Shape::new(n, d), objective(name), seed)
}
