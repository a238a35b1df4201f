//! The loss and the gradients of one batch under an objective over all pairs, from and to .npy files.
//!
//! `cargo run --release --example pairwise -- x.npy y.npy --objective infonce --dx dx.npy --dy dy.npy`

#[path = "../common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::backend::BackendChoice;
use common::npy::{Npy, encode};
use common::output::write_whole;
use common::{Failure, Outcome, say};
use serde_json::json;
use simgrad::{Groups, MatMut, MatRef, PairwiseObjective, PairwiseOptions, integrability};

/// Prints the report of one step as JSON and writes its gradients.
#[derive(Parser, Debug)]
struct Args {
    /// Embeddings, n × d
    x: PathBuf,
    /// Embeddings of the other side, m × d; without it the rows of x are anchors and candidates
    y: Option<PathBuf>,
    /// infonce, siglip, supcon, ms, ms-mined, circle, circle-full, triplet-all, contrastive, lifted or ranked-list, with
    /// its default parameters
    #[arg(long)]
    objective: String,
    /// Group ids of the rows of x
    #[arg(long, value_name = "FILE")]
    groups_x: Option<PathBuf>,
    /// Group ids of the rows of y
    #[arg(long, value_name = "FILE", requires = "groups_x")]
    groups_y: Option<PathBuf>,
    /// Where the gradient with respect to x goes, f32
    #[arg(long, value_name = "FILE")]
    dx: Option<PathBuf>,
    /// Where the gradient with respect to y goes, f32
    #[arg(long, value_name = "FILE", requires = "y")]
    dy: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    backend: BackendChoice,
}

/// Rows, columns and elements of a file.
fn matrix(path: &Path) -> Outcome<(usize, usize, Vec<f32>)> {
    let file = Npy::read(path)?;
    let (rows, cols) = file.matrix_shape()?;
    let mut values = vec![0.0; rows * cols];
    file.read_f32(0, &mut values);
    Ok((rows, cols, values))
}

fn ids(path: Option<&PathBuf>) -> Outcome<Option<Vec<i64>>> {
    path.map(|path| {
        let file = Npy::read(path)?;
        file.vector_len()?;
        file.to_i64()
    })
    .transpose()
}

fn save(path: Option<&PathBuf>, rows: usize, cols: usize, values: &[f32]) -> Outcome<()> {
    path.map_or(Ok(()), |path| write_whole(path, &encode(&[rows, cols], values)?))
}

fn program(args: &Args) -> Outcome<()> {
    let objective: PairwiseObjective = args.objective.parse().map_err(|e| Failure::option("objective", e))?;
    let (n, d, x) = matrix(&args.x)?;
    let other = args.y.as_ref().map(|path| matrix(path)).transpose()?;
    let row_ids = ids(args.groups_x.as_ref())?;
    let col_ids = if other.is_some() { ids(args.groups_y.as_ref())? } else { row_ids.clone() };
    if row_ids.is_some() != col_ids.is_some() {
        return Err(Failure::option("groups-y", "is missing: --groups-x names the groups of one side only"));
    }
    let groups = row_ids.as_ref().zip(col_ids.as_ref()).map(|(rows, cols)| Groups { rows, cols });
    let options = PairwiseOptions { groups, ..PairwiseOptions::default() };
    let chosen = args.backend.open()?;
    let x_view = MatRef::new(&x, n, d)?;
    let mut dx = vec![0.0; n * d];
    let report = match &other {
        Some((m, cols, y)) => {
            let mut dy = vec![0.0; m * cols];
            let (y, out) = (MatRef::new(y, *m, *cols)?, MatMut::new(&mut dy, *m, *cols)?);
            let dx = MatMut::new(&mut dx, n, d)?;
            let report = chosen.backend.pairwise_step(x_view, y, &objective, &options, dx, out)?;
            save(args.dy.as_ref(), *m, *cols, &dy)?;
            report
        }
        None => chosen.backend.pairwise_step_single(x_view, &objective, &options, MatMut::new(&mut dx, n, d)?)?,
    };
    save(args.dx.as_ref(), n, d, &dx)?;
    let found = integrability::of_pairwise(&objective);
    let out = json!({
        "objective": objective.name(),
        "backend": chosen.backend.name(),
        "loss": report.loss,
        "d_scale": report.d_scale,
        "d_bias": report.d_bias,
        "mean_positive": report.mean_positive,
        "positives": report.positives,
        "negatives": report.negatives,
        "anchors_rows": report.anchors_rows,
        "anchors_cols": report.anchors_cols,
        "is_gradient": found.is_gradient(),
        "asymmetry": found.asymmetry,
        "circulation": found.circulation,
    });
    say(out.to_string());
    Ok(())
}

fn main() -> ExitCode {
    common::exit(program(&Args::parse()))
}
