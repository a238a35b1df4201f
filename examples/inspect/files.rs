//! The result files.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use simgrad::{AnchorDetail, LossKind, Objective};

use crate::anatomy::{Anatomy, Batch};
use crate::args::Args;
use crate::common::npy::encode;
use crate::common::objective::loss_kind;
use crate::common::output::write_whole;
use crate::common::{Failure, Outcome};

/// Writes every array and the report. All of them are encoded before the first one is written, and each appears whole.
pub fn write(args: &Args, objective: &Objective, batch: &Batch, anatomy: &Anatomy) -> Outcome<()> {
    let mut files = arrays(batch, anatomy)?;
    let report = report(args, objective, anatomy);
    let text = serde_json::to_string_pretty(&report).map_err(|e| Failure::new(format!("report.json: {e}")))?;
    files.push(("report.json".to_owned(), (text + "\n").into_bytes()));
    let folder: &Path = &args.out;
    fs::create_dir_all(folder).map_err(|e| Failure::file(folder, format!("cannot be made: {e}")))?;
    files.iter().try_for_each(|(name, bytes)| write_whole(&folder.join(name), bytes))
}

fn arrays(batch: &Batch, anatomy: &Anatomy) -> Outcome<Vec<(String, Vec<u8>)>> {
    let matrix = [batch.n, batch.d];
    let entries = [anatomy.w.len()];
    let w_row: Vec<i64> = anatomy.w.keys().map(|&(row, _)| row).collect();
    let w_col: Vec<i64> = anatomy.w.keys().map(|&(_, col)| col).collect();
    let w_val: Vec<f64> = anatomy.w.values().copied().collect();
    let mut out = vec![
        ("pos".to_owned(), encode(&[batch.n], &anatomy.detail.positive)?),
        ("w_row".to_owned(), encode(&entries, &w_row)?),
        ("w_col".to_owned(), encode(&entries, &w_col)?),
        ("w_val".to_owned(), encode(&entries, &w_val)?),
        ("grad_x".to_owned(), encode(&matrix, &anatomy.grad_x)?),
        ("grad_y".to_owned(), encode(&matrix, &anatomy.grad_y)?),
    ];
    for (direction, detail) in [("it", &anatomy.detail.it), ("ti", &anatomy.detail.ti)] {
        out.extend(direction_arrays(direction, detail)?);
    }
    out.iter_mut().for_each(|(name, _)| name.push_str(".npy"));
    Ok(out)
}

fn direction_arrays(direction: &str, a: &AnchorDetail<f64>) -> Outcome<Vec<(String, Vec<u8>)>> {
    let counts = |values: &[u32]| values.iter().map(|&v| i64::from(v)).collect::<Vec<_>>();
    let indices: Vec<i64> = a.neg_index.iter().map(|&v| i64::from(v)).collect();
    let integers =
        [("neg_idx", indices), ("rs_pos_count", counts(&a.rs_pos_count)), ("rs_neg_count", counts(&a.rs_neg_count))];
    let floats = [
        ("neg_max", &a.neg_value),
        ("second_max", &a.second_value),
        ("t", &a.triplet),
        ("w_pos", &a.w_pos),
        ("w_neg", &a.w_neg),
        ("rs_pos", &a.rs_pos),
        ("rs_neg", &a.rs_neg),
    ];
    let name = |stem: &str| format!("{stem}_{direction}");
    let integers = integers.iter().map(|(stem, values)| Ok((name(stem), encode(&[values.len()], values)?)));
    let floats = floats.iter().map(|(stem, values)| Ok((name(stem), encode(&[values.len()], values)?)));
    integers.chain(floats).collect()
}

/// `report.json`. JSON has no NaN and no infinity: such a number is `null` there.
fn report(args: &Args, objective: &Objective, anatomy: &Anatomy) -> Value {
    let r = &anatomy.report;
    let loss = match objective.loss_kind() {
        LossKind::Potential => r.loss.into(),
        LossKind::Logged => Value::Null,
    };
    json!({
        "objective": objective.to_string(),
        "loss": loss,
        "loss_kind": loss_kind(objective),
        "log_it": r.log_it,
        "log_ti": r.log_ti,
        "mean_positive": r.mean_positive,
        "mean_negative_it": r.mean_negative_it,
        "mean_negative_ti": r.mean_negative_ti,
        "counts": {
            "pairs": r.pairs,
            "empty_it": r.empty_it,
            "empty_ti": r.empty_ti,
            "active_it": r.active_it,
            "active_ti": r.active_ti,
            "zero_x": r.zero_x,
            "zero_y": r.zero_y,
            "nan_x": r.nan_x,
            "nan_y": r.nan_y,
            "overflow": r.overflow,
        },
        "upstream": args.upstream,
        "dtype": format!("{:?}", args.dtype).to_lowercase(),
        "backend": anatomy.backend,
        "backend_reason": anatomy.reason,
        "launches": anatomy.launches,
        "workspace_bytes": anatomy.workspace_bytes,
    })
}
