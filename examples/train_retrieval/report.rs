//! The test table and the JSON file. The schema of the latter is in README.md beside this file.

use serde_json::{Value, json};
use simgrad::{DirectionRecall, RetrievalReport};

use crate::args::{Args, BASELINE};
use crate::common::backend::Chosen;
use crate::common::output::table;
use crate::data::Dataset;
use crate::train::{Epoch, Run};

/// Retrieval without training, per test protocol.
pub struct Baselines {
    /// Name of the protocol and its number of items.
    pub subsets: Vec<(String, usize)>,
    /// The head as it starts.
    pub untrained: Vec<RetrievalReport>,
    /// The features themselves; `None` where the modalities share no feature space.
    pub raw: Vec<Option<RetrievalReport>>,
}

/// One table per test protocol.
pub fn test_tables(dataset: &Dataset, baselines: &Baselines, runs: &[Run]) -> String {
    let mut out = String::new();
    for (s, (name, items)) in baselines.subsets.iter().enumerate() {
        let header =
            [&format!("test {name}"), "x>y R@1", "R@5", "R@10", "med", "y>x R@1", "R@5", "R@10", "med", "rsum"];
        let mut rows = vec![
            cells("untrained", Some(&baselines.untrained[s])),
            cells("raw feature overlap", baselines.raw[s].as_ref()),
        ];
        for run in runs {
            let mut label = run.objective.to_string();
            if label == BASELINE {
                label += " (VSE++)";
            }
            if let Some(step) = run.diverged_at {
                label += &format!(" (diverged at step {step})");
            }
            rows.push(cells(&label, run.test.get(s).map(|t| &t.1)));
        }
        let captions = items * dataset.y_per_x;
        out += &format!("\n{}: {items} items of x, {captions} of y, recall in percent\n", dataset.name);
        out += &table(&header, &rows);
    }
    out
}

fn cells(label: &str, report: Option<&RetrievalReport>) -> Vec<String> {
    let mut cells = vec![label.to_owned()];
    let Some(report) = report else {
        cells.extend(std::iter::repeat_n("n/a".to_owned(), 9));
        return cells;
    };
    for d in [&report.x_to_y, &report.y_to_x] {
        cells.extend([d.r1, d.r5, d.r10].map(|r| format!("{r:.1}")));
        cells.push(format!("{:.0}", d.median_rank));
    }
    cells.push(format!("{:.1}", report.rsum));
    cells
}

/// Everything that was measured.
pub fn json(args: &Args, chosen: &Chosen, dataset: &Dataset, baselines: &Baselines, runs: &[Run]) -> Value {
    let per_subset = |get: &dyn Fn(usize) -> Value| -> Value {
        let pairs = baselines.subsets.iter().enumerate().map(|(s, (name, _))| (name.clone(), get(s)));
        Value::Object(pairs.collect())
    };
    json!({
        "schema": 1,
        "data": {
            "name": dataset.name,
            "about": dataset.about,
            "x": [dataset.x.rows, dataset.x.cols],
            "y": [dataset.y.rows, dataset.y.cols],
            "y_per_x": dataset.y_per_x,
            "train": [dataset.splits.train.start, dataset.splits.train.end],
            "val": [dataset.splits.val.start, dataset.splits.val.end],
            "test": [dataset.splits.test.start, dataset.splits.test.end],
        },
        "options": {
            "objective": args.objective,
            "expression": args.expression,
            "seed": args.seed,
            "epochs": args.epochs,
            "batch": args.batch,
            "lr": args.lr,
            "dim": args.dim,
            "hidden": args.hidden,
            "masked": args.masks(dataset),
        },
        "backend": { "name": chosen.backend.name(), "reason": chosen.reason },
        "untrained": per_subset(&|s| retrieval(&baselines.untrained[s])),
        "raw_overlap": per_subset(&|s| baselines.raw[s].as_ref().map_or(Value::Null, retrieval)),
        "runs": runs.iter().map(run_json).collect::<Vec<_>>(),
    })
}

fn run_json(run: &Run) -> Value {
    json!({
        "objective": run.objective.to_string(),
        "parameters": run.objective.parameters(),
        "loss_kind": run.objective.loss_kind(),
        "steps": run.steps,
        "diverged_at": run.diverged_at,
        "epochs": run.epochs.iter().map(epoch_json).collect::<Vec<_>>(),
        "test": run.test.iter().map(|(name, r)| (name.clone(), retrieval(r))).collect::<serde_json::Map<_, _>>(),
        "seconds": run.seconds,
    })
}

fn epoch_json(epoch: &Epoch) -> Value {
    json!({
        "loss": epoch.loss,
        "mean_positive": epoch.positive,
        "mean_negative": epoch.negative,
        "active": epoch.active,
        "scale": epoch.scale,
        "bias": epoch.bias,
        "val": retrieval(&epoch.val),
        "seconds": epoch.seconds,
    })
}

fn retrieval(report: &RetrievalReport) -> Value {
    json!({ "x_to_y": direction(&report.x_to_y), "y_to_x": direction(&report.y_to_x), "rsum": report.rsum })
}

fn direction(d: &DirectionRecall) -> Value {
    json!({
        "r1": d.r1,
        "r5": d.r5,
        "r10": d.r10,
        "median_rank": d.median_rank,
        "mean_rank": d.mean_rank,
        "queries": d.queries,
        "without_positive": d.without_positive,
    })
}
