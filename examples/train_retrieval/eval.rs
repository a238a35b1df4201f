//! Retrieval figures of a model and of raw features.

use std::ops::Range;

use simgrad::{Backend, Groups, MatRef, RecallOptions, RetrievalReport};

use crate::common::Outcome;
use crate::data::{Dataset, Features};
use crate::model::{Activations, Tower};

/// Rows of x in the smaller of the two usual test protocols.
const SMALL: usize = 1000;
/// Rows that go through a tower at a time.
const CHUNK: usize = 1024;

/// The two towers.
#[derive(Clone)]
pub struct Head {
    /// Maps modality x.
    pub x: Tower,
    /// Maps modality y.
    pub y: Tower,
    /// Width of the joint space.
    pub dim: usize,
}

/// The test protocols of a data set: the first 1,000 items where there are more, and all of them.
pub fn test_subsets(dataset: &Dataset) -> Vec<(String, Range<usize>)> {
    let test = &dataset.splits.test;
    let name = |n: usize| if n.is_multiple_of(SMALL) { format!("{}K", n / SMALL) } else { n.to_string() };
    let mut subsets = vec![(name(test.len()), test.clone())];
    if test.len() > SMALL {
        subsets.insert(0, (name(SMALL), test.start..test.start + SMALL));
    }
    subsets
}

/// Recall of the head on these rows of x and their captions.
pub fn head(backend: &Backend, head: &Head, dataset: &Dataset, rows: &Range<usize>) -> Outcome<RetrievalReport> {
    let x = embed(&head.x, &dataset.x, rows.clone());
    let y = embed(&head.y, &dataset.y, dataset.captions(rows));
    recall(backend, dataset, rows, &x, &y, head.dim)
}

/// Recall of the features as they are; `None` unless the two modalities share a feature space.
pub fn raw(backend: &Backend, dataset: &Dataset, rows: &Range<usize>) -> Outcome<Option<RetrievalReport>> {
    if !dataset.shared_space {
        return Ok(None);
    }
    let (mut x, mut y) = (Vec::new(), Vec::new());
    dataset.x.gather(rows.clone(), &mut x);
    dataset.y.gather(dataset.captions(rows), &mut y);
    recall(backend, dataset, rows, &x, &y, dataset.x.cols).map(Some)
}

fn embed(tower: &Tower, features: &Features, rows: Range<usize>) -> Vec<f32> {
    let (mut input, mut activations, mut out) = (Vec::new(), Activations::default(), Vec::new());
    for start in rows.clone().step_by(CHUNK) {
        let chunk = start..rows.end.min(start + CHUNK);
        features.gather(chunk.clone(), &mut input);
        tower.forward(&input, chunk.len(), &mut activations);
        out.extend_from_slice(activations.output());
    }
    out
}

fn recall(
    backend: &Backend,
    dataset: &Dataset,
    rows: &Range<usize>,
    x: &[f32],
    y: &[f32],
    cols: usize,
) -> Outcome<RetrievalReport> {
    let captions = dataset.captions(rows);
    let x = MatRef::new(x, rows.len(), cols)?;
    let y = MatRef::new(y, captions.len(), cols)?;
    let row_ids: Vec<i64> = rows.clone().map(|row| dataset.group(row)).collect();
    let col_ids: Vec<i64> = captions.map(|row| dataset.group(row / dataset.y_per_x)).collect();
    let groups = dataset.has_groups().then_some(Groups { rows: &row_ids, cols: &col_ids });
    Ok(backend.recall(x, y, &RecallOptions { groups, ..RecallOptions::default() })?)
}
