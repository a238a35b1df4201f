//! Retrieval figures of two files of embeddings; see README.md beside this file.

mod args;
#[path = "../common/mod.rs"]
mod common;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use simgrad::{Backend, DirectionMetrics, EvaluationReport, Groups, MatRef, RelevantPairs};

use args::Args;
use common::npy::Npy;
use common::output::table;
use common::{Failure, Outcome, say};

fn main() -> ExitCode {
    common::exit(program(&Args::parse()))
}

/// A matrix as it was read.
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn read(path: &Path) -> Outcome<Self> {
        let file = Npy::map(path)?;
        let (rows, cols) = file.matrix_shape()?;
        if rows == 0 || cols == 0 {
            return Err(Failure::file(
                path,
                format!("has shape [{rows}, {cols}], expected a row and a column at least"),
            ));
        }
        let mut values = vec![0.0; rows * cols];
        file.read_f32(0, &mut values);
        Ok(Self { rows, cols, values })
    }

    fn view(&self) -> Outcome<MatRef<'_, f32>> {
        Ok(MatRef::new(&self.values, self.rows, self.cols)?)
    }
}

fn program(args: &Args) -> Outcome<()> {
    args.check()?;
    let (x, y) = (Matrix::read(&args.x)?, Matrix::read(&args.y)?);
    if y.cols != x.cols {
        let expected = format!("expected the {} of {}", x.cols, args.x.display());
        return Err(Failure::file(&args.y, format!("has {} columns, {expected}", y.cols)));
    }
    let relevant = explicit(args, x.rows, y.rows)?;
    let chosen = args.backend.open()?;
    let start = Instant::now();
    let report = evaluate(args, &chosen.backend, &x, &y, relevant.as_ref())?;
    let seconds = start.elapsed().as_secs_f64();
    for (path, matrix) in [(&args.x, &x), (&args.y, &y)] {
        say(format!("{}: {} x {}", path.display(), matrix.rows, matrix.cols));
    }
    let name = |v: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        v().map_or_else(String::new, |v| v.get_name().to_owned())
    };
    let (protocol, ties) = (name(&|| args.protocol.to_possible_value()), name(&|| args.ties.to_possible_value()));
    say(format!("protocol: {protocol}, ties: {ties}"));
    say(format!("backend: {} ({}), {seconds:.2} s", chosen.backend.name(), chosen.reason));
    say("");
    print(&report);
    Ok(())
}

/// What belongs together, if a file says so.
fn explicit(args: &Args, x_rows: usize, y_rows: usize) -> Outcome<Option<RelevantPairs>> {
    if let Some((x, y)) = args.groups_x.as_ref().zip(args.groups_y.as_ref()) {
        let (rows, cols) = (ids(x, x_rows)?, ids(y, y_rows)?);
        return Ok(Some(RelevantPairs::from_groups(Groups { rows: &rows, cols: &cols })?));
    }
    args.relevant.as_deref().map(|path| listed(path, x_rows, y_rows)).transpose()
}

fn ids(path: &Path, rows: usize) -> Outcome<Vec<i64>> {
    let file = Npy::read(path)?;
    let len = file.vector_len()?;
    if len != rows {
        return Err(Failure::file(path, format!("has {len} ids, expected one per row, {rows}")));
    }
    file.to_i64()
}

/// Pairs in any order, with or without grades.
fn listed(path: &Path, x_rows: usize, y_rows: usize) -> Outcome<RelevantPairs> {
    let file = Npy::read(path)?;
    let (pairs, fields) = file.matrix_shape()?;
    if !(2..=3).contains(&fields) {
        return Err(Failure::file(path, format!("has {fields} columns, expected 2 or 3 (row, row, grade)")));
    }
    let index = |pair: usize, value: f64, rows: usize| {
        if value >= 0.0 && value < rows as f64 && value.fract() == 0.0 {
            return Ok(value as usize);
        }
        Err(Failure::file(path, format!("names row {value} in pair {pair}, expected an integer in 0..{rows}")))
    };
    let values = file.to_f64();
    let mut sorted = Vec::with_capacity(pairs);
    for (pair, fields) in values.chunks_exact(fields).enumerate() {
        let grade = fields.get(2).map_or(1.0, |&grade| grade as f32);
        sorted.push((index(pair, fields[0], x_rows)?, index(pair, fields[1], y_rows)?, grade));
    }
    sorted.sort_by_key(|&(i, j, _)| (i, j));
    let offsets: Vec<usize> = (0..=x_rows).map(|i| sorted.partition_point(|&(row, ..)| row < i)).collect();
    let candidates = sorted.iter().map(|&(_, j, _)| j as i32).collect();
    let grades = (fields == 3).then(|| sorted.iter().map(|&(.., grade)| grade).collect());
    RelevantPairs::new(x_rows, y_rows, &offsets, candidates, grades).map_err(|e| Failure::file(path, e))
}

fn evaluate(
    args: &Args,
    backend: &Backend,
    x: &Matrix,
    y: &Matrix,
    relevant: Option<&RelevantPairs>,
) -> Outcome<EvaluationReport> {
    let options = args.options();
    if let Some(relevant) = relevant {
        return Ok(backend.evaluate(x.view()?, y.view()?, relevant, &options)?);
    }
    let protocol = args.protocol(x.rows, y.rows);
    let items = protocol.items * protocol.folds;
    let captions = items.saturating_mul(protocol.captions);
    if x.rows != items && x.rows != captions {
        return Err(Failure::file(&args.x, format!("has {} rows, the protocol has {items} items", x.rows)));
    }
    if y.rows != captions {
        let expected = format!("{captions} captions, {} for each of {items} items", protocol.captions);
        return Err(Failure::file(&args.y, format!("has {} rows, the protocol has {expected}", y.rows)));
    }
    Ok(backend.evaluate_captions(x.view()?, y.view()?, &protocol, &options)?.mean)
}

fn print(report: &EvaluationReport) {
    let directions = [("x -> y", &report.x_to_y), ("y -> x", &report.y_to_x)];
    let cutoffs: Vec<usize> = report.x_to_y.at.iter().map(|at| at.k).collect();
    let header = |name: &str| cutoffs.iter().map(|k| format!("{name}@{k}")).collect::<Vec<_>>();
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let print = |columns: &[String], cells: &dyn Fn(&DirectionMetrics) -> Vec<String>| {
        let columns: Vec<&str> = ["percent"].into_iter().chain(columns.iter().map(String::as_str)).collect();
        let row = |(name, d): &(&str, &DirectionMetrics)| [vec![(*name).to_owned()], cells(d)].concat();
        say(table(&columns, &directions.iter().map(row).collect::<Vec<_>>()));
    };
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let more = names(&["median rank", "mean rank", "queries", "without"]);
    print(&[header("R"), more].concat(), &|d| {
        let recalls = d.at.iter().map(|at| format!("{:.2}", at.recall));
        let ranks = [format!("{:.1}", d.median_rank), format!("{:.2}", d.mean_rank)];
        recalls.chain(ranks).chain([d.queries.to_string(), d.without_relevant.to_string()]).collect()
    });
    let columns = [names(&["mAP@R", "R-precision", "MRR", "mAP"]), header("nDCG"), names(&["nDCG"])].concat();
    print(&columns, &|d| {
        let means = [d.map_at_r, d.r_precision, d.mrr, d.map].into_iter();
        means.chain(d.at.iter().map(|at| at.ndcg)).chain([d.ndcg]).map(percent).collect()
    });
    say(format!("rsum {:.2}", report.rsum));
}
