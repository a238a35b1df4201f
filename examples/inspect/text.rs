//! The same for people: tables of a small batch.

use simgrad::{AnchorDetail, LossKind, NONE, Objective};

use crate::anatomy::{Anatomy, Batch};
use crate::args::Args;
use crate::common::output::{significant, table};

/// Largest batch, and widest matrix, that is printed element by element.
const MAX_PAIRS: usize = 16;
const MAX_COLUMNS: usize = 8;
/// Digits of every printed number.
const DIGITS: usize = 8;

fn number(value: f64) -> String {
    significant(value, DIGITS)
}

/// Report and, for a small batch, everything that the files hold.
pub fn describe(args: &Args, objective: &Objective, batch: &Batch, anatomy: &Anatomy) -> String {
    let mut out = summary(args, objective, batch, anatomy);
    if batch.n > MAX_PAIRS {
        return out + &format!("tables are printed for at most {MAX_PAIRS} pairs; every value is in the files\n");
    }
    for (title, detail) in
        [("it: anchors are rows of x", &anatomy.detail.it), ("ti: anchors are rows of y", &anatomy.detail.ti)]
    {
        out += &format!("\n{title}\n{}", anchors(&anatomy.detail.positive, detail));
    }
    let entries: Vec<Vec<String>> =
        anatomy.w.iter().map(|(&(row, col), &value)| vec![row.to_string(), col.to_string(), number(value)]).collect();
    out += &format!("\nW, non-zeros\n{}", table(&["row", "col", "val"], &entries));
    if batch.d <= MAX_COLUMNS {
        for (title, grad) in [("grad_x", &anatomy.grad_x), ("grad_y", &anatomy.grad_y)] {
            out += &format!("\n{title}\n{}", matrix(grad, batch.d));
        }
    } else {
        out += &format!("\ngradients are printed for at most {MAX_COLUMNS} columns; they are in the files\n");
    }
    out
}

fn summary(args: &Args, objective: &Objective, batch: &Batch, anatomy: &Anatomy) -> String {
    let r = &anatomy.report;
    let loss = match objective.loss_kind() {
        LossKind::Potential => number(r.loss),
        LossKind::Logged => "- (no loss has this gradient)".to_owned(),
    };
    let parts = [
        format!("objective: {objective} {:?} {:?} {:?}", objective.triplet(), objective.pair(), objective.reduction()),
        format!("batch: {} pairs, {} columns, {:?}", batch.n, batch.d, args.dtype).to_lowercase(),
        format!("backend: {} ({})", anatomy.backend, anatomy.reason),
        format!("device: {} launches, {} bytes of workspace", anatomy.launches, anatomy.workspace_bytes),
        format!("loss: {loss}"),
        format!("log_it: {}  log_ti: {}", number(r.log_it), number(r.log_ti)),
        format!(
            "mean similarity: positive {}, hardest negative it {}, ti {}",
            number(r.mean_positive),
            number(r.mean_negative_it),
            number(r.mean_negative_ti)
        ),
        format!(
            "anchors: active it {} ti {}, without negative it {} ti {}",
            r.active_it, r.active_ti, r.empty_it, r.empty_ti
        ),
        format!(
            "rows: zero x {} y {}, not finite x {} y {}; gradient overflows {}",
            r.zero_x, r.zero_y, r.nan_x, r.nan_y, r.overflow
        ),
    ];
    parts.join("\n") + "\n"
}

fn anchors(positive: &[f64], a: &AnchorDetail<f64>) -> String {
    let header = ["i", "pos", "neg_idx", "neg_max", "second_max", "t", "w_pos", "w_neg", "rs_pos", "rs_neg"];
    let rows: Vec<Vec<String>> = (0..positive.len())
        .map(|i| {
            let index = if a.neg_index[i] == NONE { "none".to_owned() } else { a.neg_index[i].to_string() };
            vec![
                i.to_string(),
                number(positive[i]),
                index,
                number(a.neg_value[i]),
                number(a.second_value[i]),
                number(a.triplet[i]),
                number(a.w_pos[i]),
                number(a.w_neg[i]),
                format!("{} [{}]", number(a.rs_pos[i]), a.rs_pos_count[i]),
                format!("{} [{}]", number(a.rs_neg[i]), a.rs_neg_count[i]),
            ]
        })
        .collect();
    table(&header, &rows)
}

fn matrix(values: &[f64], cols: usize) -> String {
    let names: Vec<String> = (0..cols).map(|c| c.to_string()).collect();
    let header: Vec<&str> = std::iter::once("row").chain(names.iter().map(String::as_str)).collect();
    let row = |(i, row): (usize, &[f64])| {
        std::iter::once(i.to_string()).chain(row.iter().map(|&v| number(v))).collect::<Vec<_>>()
    };
    table(&header, &values.chunks_exact(cols).enumerate().map(row).collect::<Vec<_>>())
}
