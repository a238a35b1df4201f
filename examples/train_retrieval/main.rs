//! Trains a two-tower retrieval head on paired data; see README.md beside this file.

mod args;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod eval;
mod gemm;
mod model;
mod objective;
mod plot;
mod report;
mod rng;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use args::{Args, Masking};
use common::backend::Chosen;
use common::output::{check_writable, write_whole};
use common::{Failure, Outcome, say};
use data::Dataset;
use report::Baselines;
use train::{Budget, Run};

fn main() -> ExitCode {
    common::exit(program(&Args::parse()))
}

fn program(args: &Args) -> Outcome<()> {
    args.check()?;
    let objectives = args.objectives()?;
    let plot = plot_path(args)?;
    for path in args.json.iter().chain([&plot]) {
        check_writable(path)?;
    }
    let chosen = args.backend.open()?;
    say(format!("backend: {} ({})", chosen.backend.name(), chosen.reason));
    let start = Instant::now();
    let dataset = load(args)?;
    say(format!("data: {}: {} ({:.1} s)", dataset.name, dataset.about, start.elapsed().as_secs_f64()));
    let budget = args.budget(&dataset);
    let steps = train::steps_per_epoch(&dataset, &budget)?;
    say(format!("budget: {} epochs of {steps} steps, seed {}", args.epochs, args.seed));

    let baselines = baselines(&chosen, &dataset, &budget)?;
    let mut runs: Vec<Run> = Vec::new();
    for objective in objectives {
        let print = |number, epoch: &train::Epoch| say(epoch.line(number, &objective));
        runs.push(train::run(&chosen.backend, &dataset, objective, &budget, print)?);
        // After every run, so that whatever ends the program later costs no finished run.
        save(args, &plot, &chosen, &dataset, &baselines, &runs)?;
    }
    say(report::test_tables(&dataset, &baselines, &runs).trim_end());
    let seconds: f64 = runs.iter().map(|run| run.seconds).sum();
    say(format!("\ntraining: {seconds:.1} s; learning curves: {}", plot.display()));
    Ok(())
}

fn load(args: &Args) -> Outcome<Dataset> {
    match (&args.data, &args.precomp) {
        (Some(folder), _) => data::paired::load(folder),
        (None, Some(folder)) => data::precomp::load(folder),
        (None, None) => data::code::load(),
    }
}

impl Args {
    /// Whether training keeps items of the anchor's group from being its negatives.
    fn masks(&self, dataset: &Dataset) -> bool {
        match self.groups {
            Masking::Auto => dataset.labels.is_some(),
            Masking::Yes => dataset.has_groups(),
            Masking::No => false,
        }
    }

    fn budget(&self, dataset: &Dataset) -> Budget {
        Budget {
            epochs: self.epochs,
            batch: self.batch,
            rate: self.lr,
            dim: self.dim,
            hidden: self.hidden,
            seed: self.seed,
            mask: self.masks(dataset),
        }
    }
}

/// Where the learning curves go: beside the program, which is inside the build folder, unless the user says otherwise.
fn plot_path(args: &Args) -> Outcome<PathBuf> {
    match &args.plot {
        Some(path) => Ok(path.clone()),
        None => std::env::current_exe()
            .map(|program| program.with_file_name("train_retrieval.svg"))
            .map_err(|e| Failure::option("plot", format!("has no default here: {e}"))),
    }
}

fn baselines(chosen: &Chosen, dataset: &Dataset, budget: &Budget) -> Outcome<Baselines> {
    let head = train::untrained(dataset, budget);
    let mut out = Baselines { subsets: Vec::new(), untrained: Vec::new(), raw: Vec::new() };
    for (name, rows) in eval::test_subsets(dataset) {
        out.untrained.push(eval::head(&chosen.backend, &head, dataset, &rows)?);
        out.raw.push(eval::raw(&chosen.backend, dataset, &rows)?);
        out.subsets.push((name, rows.len()));
    }
    Ok(out)
}

fn save(
    args: &Args,
    plot: &std::path::Path,
    chosen: &Chosen,
    dataset: &Dataset,
    baselines: &Baselines,
    runs: &[Run],
) -> Outcome<()> {
    write_whole(plot, plot::learning_curves(dataset, runs)?.as_bytes())?;
    let Some(path) = &args.json else { return Ok(()) };
    let json = report::json(args, chosen, dataset, baselines, runs);
    let mut text = serde_json::to_string_pretty(&json).map_err(|e| Failure::file(path, e))?;
    text.push('\n');
    write_whole(path, text.as_bytes())
}
