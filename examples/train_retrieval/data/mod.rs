//! Paired features: what is trained on, whatever it comes from.

pub mod code;
pub mod paired;
pub mod precomp;
mod text;
mod words;

use std::ops::Range;

/// A matrix of input features.
pub struct Features {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    block: Block,
}

enum Block {
    /// Row-major values.
    Dense(Vec<f32>),
    /// Row `r` has the `(column, value)` entries `starts[r]..starts[r + 1]`.
    Sparse { starts: Vec<usize>, entries: Vec<(u32, f32)> },
}

impl Features {
    /// Copies these rows, one after the other, into `out`.
    pub fn gather(&self, rows: impl IntoIterator<Item = usize>, out: &mut Vec<f32>) {
        out.clear();
        for row in rows {
            match &self.block {
                Block::Dense(values) => out.extend_from_slice(&values[row * self.cols..][..self.cols]),
                Block::Sparse { starts, entries } => {
                    let base = out.len();
                    out.resize(base + self.cols, 0.0);
                    for &(column, value) in &entries[starts[row]..starts[row + 1]] {
                        out[base + column as usize] = value;
                    }
                }
            }
        }
    }
}

/// Half-open ranges of rows of x.
#[derive(Clone, Debug)]
pub struct Splits {
    /// What is trained on.
    pub train: Range<usize>,
    /// What is evaluated after every epoch.
    pub val: Range<usize>,
    /// What is evaluated once.
    pub test: Range<usize>,
}

/// A data set: row `r` of y belongs to row `r / y_per_x` of x.
pub struct Dataset {
    /// Short name.
    pub name: String,
    /// One line for people.
    pub about: String,
    /// The first modality.
    pub x: Features,
    /// The second modality.
    pub y: Features,
    /// Rows of y per row of x.
    pub y_per_x: usize,
    /// One class per row of x; items of one class are positives of each other.
    pub labels: Option<Vec<i64>>,
    /// Which rows are for what.
    pub splits: Splits,
    /// Whether a similarity between raw features of the two modalities means anything.
    pub shared_space: bool,
}

impl Dataset {
    /// The rows of y that belong to these rows of x.
    pub const fn captions(&self, x: &Range<usize>) -> Range<usize> {
        x.start * self.y_per_x..x.end * self.y_per_x
    }

    /// Group of a row of x: its class, or itself where there are no classes.
    pub fn group(&self, x: usize) -> i64 {
        self.labels.as_ref().map_or(x as i64, |labels| labels[x])
    }

    /// Whether something other than a row's own partner counts as right: a further caption, or an item of its class.
    pub const fn has_groups(&self) -> bool {
        self.labels.is_some() || self.y_per_x > 1
    }
}

/// A data set without a validation split lends the last tenth of its training split to it.
fn split_off_validation(train: &mut Range<usize>) -> Range<usize> {
    let val = train.end - train.len() / 10..train.end;
    train.end = val.start;
    val
}
