//! A folder with a `dataset.toml`: paired features as `.npy` files.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use super::{Block, Dataset, Features, Splits, split_off_validation};
use crate::common::npy::Npy;
use crate::common::{Failure, Outcome};

#[derive(Deserialize)]
struct Description {
    name: String,
    x: Side,
    y: Side,
    pairs: Pairs,
    labels: Option<Labels>,
    splits: Ranges,
}

/// Sections refuse keys that are not theirs, so that a misspelt one is not silently ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Side {
    file: String,
    scale: Option<String>,
    rows: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pairs {
    y_per_x: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    file: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ranges {
    train: [usize; 2],
    val: Option<[usize; 2]>,
    test: [usize; 2],
}

/// Reads the folder.
pub fn load(folder: &Path) -> Outcome<Dataset> {
    let path = folder.join("dataset.toml");
    let text = fs::read_to_string(&path).map_err(|e| Failure::file(&path, format!("cannot be read: {e}")))?;
    let description: Description = toml::from_str(&text).map_err(|e| Failure::file(&path, e.to_string().trim_end()))?;
    let Description { name, x, y, pairs, labels, splits } = description;
    let fail = |field: &str, message: String| Failure::file(&path, format!("{field}: {message}"));
    let (x, y) = (features(folder, &x)?, features(folder, &y)?);
    if pairs.y_per_x == 0 {
        return Err(fail("pairs.y_per_x", "is 0, expected at least 1".to_owned()));
    }
    if x.rows.checked_mul(pairs.y_per_x) != Some(y.rows) {
        let expected = format!("{} x rows times {} y per x", x.rows, pairs.y_per_x);
        return Err(fail("y.file", format!("has {} rows, expected {expected}", y.rows)));
    }
    let labels = labels.map(|l| read_labels(&folder.join(l.file), x.rows)).transpose()?;
    let range = |field: &str, [start, end]: [usize; 2]| -> Outcome<Range<usize>> {
        if start < end && end <= x.rows {
            return Ok(start..end);
        }
        Err(fail(field, format!("is [{start}, {end}], expected a non-empty range within [0, {}]", x.rows)))
    };
    let mut train = range("splits.train", splits.train)?;
    let test = range("splits.test", splits.test)?;
    let given = splits.val.map(|val| range("splits.val", val)).transpose()?;
    for (field, other) in [("splits.test", Some(&test)), ("splits.val", given.as_ref())] {
        if let Some(other) = other.filter(|o| o.start < train.end && train.start < o.end) {
            return Err(fail(field, format!("is [{}, {}], which shares rows with train", other.start, other.end)));
        }
    }
    let own = given.is_some();
    let val = given.unwrap_or_else(|| split_off_validation(&mut train));
    let about = format!(
        "{} training pairs, {} validation and {} test items{}{}",
        train.len() * pairs.y_per_x,
        val.len(),
        test.len(),
        if own { "" } else { " (no validation split: the last tenth of the training rows)" },
        if labels.is_some() { ", items of one class count as right" } else { "" },
    );
    Ok(Dataset {
        name,
        about,
        x,
        y,
        y_per_x: pairs.y_per_x,
        labels,
        splits: Splits { train, val, test },
        shared_space: false,
    })
}

fn features(folder: &Path, side: &Side) -> Outcome<Features> {
    let path = folder.join(&side.file);
    let array = Npy::read(&path)?;
    let (available, cols) = array.matrix_shape()?;
    let rows = side.rows.unwrap_or(available);
    if rows > available {
        return Err(Failure::file(&path, format!("has {available} rows, dataset.toml says {rows}")));
    }
    if cols == 0 {
        return Err(Failure::file(&path, "has 0 columns, expected at least 1"));
    }
    let mut values = vec![0.0; rows * cols];
    array.read_f32(0, &mut values);
    if let Some(name) = &side.scale {
        let scale = read_scale(&folder.join(name), cols)?;
        for row in values.chunks_exact_mut(cols) {
            row.iter_mut().zip(&scale).for_each(|(value, scale)| *value *= scale);
        }
    }
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let (row, column) = (at / cols, at % cols);
        return Err(Failure::file(
            &path,
            format!("row {row}, column {column} is {}, expected a finite number", values[at]),
        ));
    }
    Ok(Features { rows, cols, block: Block::Dense(values) })
}

fn read_scale(path: &Path, cols: usize) -> Outcome<Vec<f32>> {
    let array = Npy::read(path)?;
    let len = array.vector_len()?;
    if len != cols {
        return Err(Failure::file(path, format!("has {len} scales, expected one for each of {cols} columns")));
    }
    let mut scale = vec![0.0; len];
    array.read_f32(0, &mut scale);
    Ok(scale)
}

fn read_labels(path: &Path, rows: usize) -> Outcome<Vec<i64>> {
    let array = Npy::read(path)?;
    let len = array.vector_len()?;
    if len < rows {
        return Err(Failure::file(path, format!("has {len} labels, expected one for each of {rows} x rows")));
    }
    let mut labels = array.to_i64()?;
    labels.truncate(rows);
    Ok(labels)
}
