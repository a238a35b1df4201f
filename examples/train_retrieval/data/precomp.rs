//! The community's precomputed image features with captions, as VSE++, SCAN and their successors read them.

use std::fs;
use std::path::Path;

use rayon::prelude::*;

use super::text::{self, WIDTH};
use super::{Block, Dataset, Features, Splits};
use crate::common::npy::Npy;
use crate::common::{Failure, Outcome};

/// Captions of one image.
const CAPTIONS: usize = 5;
const SPLITS: [&str; 3] = ["train", "dev", "test"];

/// Reads `{train,dev,test}_ims.npy` and `{train,dev,test}_caps.txt`.
///
/// The feature files are mapped into memory and read once, image by image. Regions are averaged, so what stays in
/// memory is one row per image. A caption is a row of hashed TF-IDF fitted on the training captions.
pub fn load(folder: &Path) -> Outcome<Dataset> {
    let mut values = Vec::new();
    let mut bags = Vec::new();
    let mut cols = None;
    let mut ends = [0; 3];
    for (split, end) in SPLITS.into_iter().zip(&mut ends) {
        let captions = read_captions(&folder.join(format!("{split}_caps.txt")))?;
        let path = folder.join(format!("{split}_ims.npy"));
        let images = Images::open(&path, captions.len())?;
        let expected = *cols.get_or_insert(images.cols);
        if images.cols != expected {
            let got = images.cols;
            return Err(Failure::file(&path, format!("has {got} columns, train_ims.npy has {expected}")));
        }
        images.pool_into(&mut values)?;
        bags.extend(captions.iter().map(|caption| text::buckets(caption, WIDTH)));
        *end = bags.len() / CAPTIONS;
    }
    let [train, dev, test] = ends;
    let cols = cols.unwrap_or(1);
    let y = text::tf_idf(&bags, train * CAPTIONS, WIDTH);
    let about = format!(
        "{} training pairs, {} validation and {} test images, {CAPTIONS} captions each",
        train * CAPTIONS,
        dev - train,
        test - dev
    );
    let name = folder.file_name().map_or("precomp".into(), |name| name.to_string_lossy().into_owned());
    Ok(Dataset {
        name,
        about,
        x: Features { rows: test, cols, block: Block::Dense(values) },
        y,
        y_per_x: CAPTIONS,
        labels: None,
        splits: Splits { train: 0..train, val: train..dev, test: dev..test },
        shared_space: false,
    })
}

fn read_captions(path: &Path) -> Outcome<Vec<String>> {
    let bytes = fs::read(path).map_err(|e| Failure::file(path, format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&b| b == b'\n').count() + 1;
        Failure::file(path, format!("line {line} is not UTF-8"))
    })?;
    let captions: Vec<String> = text.lines().map(str::to_owned).collect();
    if captions.is_empty() || !captions.len().is_multiple_of(CAPTIONS) {
        let expected = format!("a positive multiple of {CAPTIONS} ({CAPTIONS} captions per image)");
        return Err(Failure::file(path, format!("has {} lines, expected {expected}", captions.len())));
    }
    Ok(captions)
}

/// One mapped feature file.
struct Images {
    array: Npy,
    count: usize,
    /// Rows of the file per image: files that repeat an image for each caption exist.
    repeat: usize,
    regions: usize,
    cols: usize,
}

impl Images {
    fn open(path: &Path, captions: usize) -> Outcome<Self> {
        let array = Npy::map(path)?;
        let (rows, regions, cols) = match array.shape()[..] {
            [rows, cols] => (rows, 1, cols),
            [rows, regions, cols] => (rows, regions, cols),
            ref shape => {
                let expected = "(images, columns) or (images, regions, columns)";
                return Err(Failure::file(path, format!("has shape {shape:?}, expected {expected}")));
            }
        };
        if regions == 0 || cols == 0 {
            return Err(Failure::file(path, format!("has shape {:?}, expected no axis of length 0", array.shape())));
        }
        let count = captions / CAPTIONS;
        let repeat = match rows {
            _ if rows == count => 1,
            _ if rows == captions => CAPTIONS,
            _ => {
                let expected = format!("{count} (or {captions}) for the {captions} lines of the caption file");
                return Err(Failure::file(path, format!("has {rows} images, expected {expected}")));
            }
        };
        Ok(Self { array, count, repeat, regions, cols })
    }

    /// Appends one row per image, the mean of its regions.
    fn pool_into(&self, values: &mut Vec<f32>) -> Outcome<()> {
        let base = values.len();
        values.resize(base + self.count * self.cols, 0.0);
        values[base..].par_chunks_exact_mut(self.cols).enumerate().for_each(|(image, out)| self.pool(image, out));
        match values[base..].iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let (image, column) = (at / self.cols * self.repeat, at % self.cols);
                let what = format!("image {image}, column {column} is not finite");
                Err(Failure::file(self.array.path(), what))
            }
        }
    }

    fn pool(&self, image: usize, out: &mut [f32]) {
        let mut region = vec![0.0; self.cols];
        let first = image * self.repeat * self.regions * self.cols;
        for r in 0..self.regions {
            self.array.read_f32(first + r * self.cols, &mut region);
            out.iter_mut().zip(&region).for_each(|(sum, value)| *sum += value);
        }
        out.iter_mut().for_each(|sum| *sum /= self.regions as f32);
    }
}
