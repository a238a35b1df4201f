//! The largest error of every loss and gradient against the f64 reference, over a lattice of shapes, kinds of embeddings
//! and seeds: the table of docs/numerics.md.
//!
//! `cargo run --release --example numerics -- --backend cpu`; `--work` leaves out the larger shapes where time is short, as
//! under an emulator.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/common/data.rs"]
#[allow(dead_code)]
mod data;

use std::process::ExitCode;

use clap::Parser;
use common::backend::BackendChoice;
use common::{Outcome, say};
use data::{Kind, Matrix, TIGHT, group_ids, pair};
use half::{bf16, f16};
use simgrad::{
    Backend, Element, GradientOf, Groups, MinedTriplet, Objective, PairwiseObjective, PairwiseOptions, StepOptions,
    reference,
};

/// Prints, per objective and element type, the largest error of the loss and of the gradients against the f64 reference
/// of the same inputs.
#[derive(Parser, Debug)]
struct Args {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    backend: BackendChoice,
    /// Seeds per shape and kind
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Only shapes of at most so many multiply-adds, n · m · d
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    work: usize,
}

/// Which cases there are.
#[derive(Clone, Copy)]
struct Lattice {
    seeds: u64,
    work: usize,
}

impl Lattice {
    fn shapes(self) -> impl Iterator<Item = (usize, usize, usize)> {
        SHAPES.into_iter().filter(move |(n, m, d)| n * m * d <= self.work)
    }
}

const SHAPES: [(usize, usize, usize); 6] =
    [(2, 2, 3), (7, 5, 3), (33, 40, 64), (130, 129, 17), (70, 300, 129), (200, 257, 512)];
const KINDS: [Kind; 4] = [Kind::Sphere, Kind::Clustered, Kind::Hubs, Kind::HeavyTailed];

/// The largest errors so far.
#[derive(Clone, Copy, Default)]
struct Worst {
    /// Of the loss, relative to it, or to 1e-3 where it is smaller.
    loss: f64,
    /// Frobenius norm of the error of both gradients, relative to that of the gradients.
    gradient: f64,
    cases: usize,
    /// Cases in which rounding made another choice: another hardest negative, or another side of a threshold.
    flipped: usize,
}

/// A gradient further off than this has had another choice made somewhere: rounding alone stays far below.
const FLIPPED: f64 = 2e-3;

impl Worst {
    fn add(&mut self, loss: [f64; 2], gradients: [(&[f64], &[f64]); 2]) {
        let (mut off, mut all) = (0.0, 0.0);
        for (got, want) in gradients {
            off += got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum::<f64>();
            all += want.iter().map(|w| w * w).sum::<f64>();
        }
        let gradient = if all == 0.0 { off.sqrt() } else { (off / all).sqrt() };
        self.cases += 1;
        if gradient > FLIPPED {
            self.flipped += 1;
            return;
        }
        self.gradient = self.gradient.max(gradient);
        self.loss = self.loss.max((loss[0] - loss[1]).abs() / loss[1].abs().max(1e-3));
    }

    fn cells(&self) -> [String; 2] {
        let flipped = if self.flipped > 0 { format!(" ({} of {})", self.flipped, self.cases) } else { String::new() };
        [format!("{:.0e}", self.loss), format!("{:.0e}{flipped}", self.gradient)]
    }
}

/// Calls `f` with every pair of matrices of the lattice, as many rows as given by `square` or not.
fn each_case<T: Element>(
    lattice: Lattice,
    square: bool,
    mut f: impl FnMut(&Matrix<T>, &Matrix<T>, u64) -> Outcome<()>,
) -> Outcome<()> {
    for (n, m, d) in lattice.shapes() {
        let m = if square { n } else { m };
        for kind in KINDS {
            for seed in 1..=lattice.seeds {
                let (x, y) = pair(kind, seed, n, m, d);
                f(&Matrix::new(&x, n, d, TIGHT), &Matrix::new(&y, m, d, TIGHT), seed)?;
            }
        }
    }
    Ok(())
}

fn goal<T: Element, G: GradientOf<T>>(backend: &Backend, lattice: Lattice, objective: &Objective) -> Outcome<Worst> {
    let mut worst = Worst::default();
    each_case::<T>(lattice, true, |x, y, seed| {
        let ids = group_ids(seed, x.rows, x.rows.div_ceil(2));
        let groups = (seed % 2 == 0).then_some(Groups { rows: &ids, cols: &ids });
        let options = StepOptions { groups, ..StepOptions::default() };
        let (mut dx, mut dy) =
            (Matrix::<G>::poisoned(x.rows, x.cols, TIGHT), Matrix::<G>::poisoned(y.rows, y.cols, TIGHT));
        let got = backend.goal_step(x.view(), y.view(), objective, &options, dx.view_mut(), dy.view_mut())?;
        let want = reference::goal_step(x.view(), y.view(), objective, &options);
        worst.add([got.loss, want.report.loss], [(&dx.values(), &want.dx), (&dy.values(), &want.dy)]);
        Ok(())
    })?;
    Ok(worst)
}

fn pairwise<T: Element, G: GradientOf<T>>(
    backend: &Backend,
    lattice: Lattice,
    objective: &PairwiseObjective,
) -> Outcome<Worst> {
    let mut worst = Worst::default();
    each_case::<T>(lattice, false, |x, y, seed| {
        let (rows, cols) =
            (group_ids(seed, x.rows, x.rows.div_ceil(2)), group_ids(seed + 1, y.rows, x.rows.div_ceil(2)));
        let groups = (seed % 2 == 0).then_some(Groups { rows: &rows, cols: &cols });
        let options = PairwiseOptions { groups, ..PairwiseOptions::default() };
        let (mut dx, mut dy) =
            (Matrix::<G>::poisoned(x.rows, x.cols, TIGHT), Matrix::<G>::poisoned(y.rows, y.cols, TIGHT));
        let got = backend.pairwise_step(x.view(), y.view(), objective, &options, dx.view_mut(), dy.view_mut())?;
        let want = reference::pairwise_step(x.view(), y.view(), objective, &options);
        worst.add([got.loss, want.report.loss], [(&dx.values(), &want.dx), (&dy.values(), &want.dy)]);
        Ok(())
    })?;
    Ok(worst)
}

fn mined<T: Element, G: GradientOf<T>>(
    backend: &Backend,
    lattice: Lattice,
    objective: &MinedTriplet,
) -> Outcome<Worst> {
    let mut worst = Worst::default();
    each_case::<T>(lattice, false, |x, y, seed| {
        let (rows, cols) =
            (group_ids(seed, x.rows, x.rows.div_ceil(2)), group_ids(seed + 1, y.rows, x.rows.div_ceil(2)));
        let groups = (seed % 2 == 0).then_some(Groups { rows: &rows, cols: &cols });
        let options = StepOptions { groups, ..StepOptions::default() };
        let (mut dx, mut dy) =
            (Matrix::<G>::poisoned(x.rows, x.cols, TIGHT), Matrix::<G>::poisoned(y.rows, y.cols, TIGHT));
        let got = backend.mined_triplet_step(x.view(), y.view(), objective, &options, dx.view_mut(), dy.view_mut())?;
        let want = reference::mined_triplet_step(x.view(), y.view(), objective, &options);
        worst.add([got.loss, want.report.loss], [(&dx.values(), &want.dx), (&dy.values(), &want.dy)]);
        Ok(())
    })?;
    Ok(worst)
}

fn row(name: String, worst: [Worst; 3]) -> String {
    let cells = worst.iter().flat_map(Worst::cells).collect::<Vec<_>>().join(" | ");
    format!("| {name} | {cells} |")
}

fn program(args: &Args) -> Outcome<()> {
    let chosen = args.backend.open()?;
    let (backend, lattice) = (&chosen.backend, Lattice { seeds: args.seeds, work: args.work });
    let cases = lattice.shapes().count() * KINDS.len() * args.seeds as usize;
    say(format!("{cases} cases per objective, on {}\n", backend.name()));
    say("| objective | f32 loss | f32 gradient | f16 loss | f16 gradient | bf16 loss | bf16 gradient |");
    say("| --- | --- | --- | --- | --- | --- | --- |");
    for objective in Objective::all() {
        let o = &objective;
        let worst = [
            goal::<f32, f32>(backend, lattice, o)?,
            goal::<f16, f32>(backend, lattice, o)?,
            goal::<bf16, f32>(backend, lattice, o)?,
        ];
        say(row(objective.to_string(), worst));
    }
    for (name, objective) in
        [("triplet-hardest", MinedTriplet::hardest()), ("triplet-semi-hard", MinedTriplet::semi_hard())]
    {
        let o = &objective;
        let worst = [
            mined::<f32, f32>(backend, lattice, o)?,
            mined::<f16, f32>(backend, lattice, o)?,
            mined::<bf16, f32>(backend, lattice, o)?,
        ];
        say(row(name.to_owned(), worst));
    }
    for objective in PairwiseObjective::ALL {
        let o = &objective;
        let worst = [
            pairwise::<f32, f32>(backend, lattice, o)?,
            pairwise::<f16, f32>(backend, lattice, o)?,
            pairwise::<bf16, f32>(backend, lattice, o)?,
        ];
        say(row(objective.to_string(), worst));
    }
    Ok(())
}

fn main() -> ExitCode {
    common::exit(program(&Args::parse()))
}
