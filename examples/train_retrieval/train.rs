//! One training run.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use simgrad::{Backend, RetrievalReport};

use crate::common::{Failure, Outcome};
use crate::data::{Dataset, Features};
use crate::eval::{self, Head};
use crate::model::{Activations, Adam, Tower};
use crate::objective::{Batch, Learner, Outline, Trained};
use crate::rng::Rng;

/// The budget of a run, the same for every objective.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Passes over the training pairs.
    pub epochs: usize,
    /// Pairs per step.
    pub batch: usize,
    /// Initial learning rate.
    pub rate: f64,
    /// Width of the joint space.
    pub dim: usize,
    /// Width of the hidden layer, 0 for none.
    pub hidden: usize,
    /// Seed of weights and batches.
    pub seed: u64,
    /// Keep items of the anchor's group from being its negatives.
    pub mask: bool,
}

/// What an epoch left behind.
#[derive(Clone, Debug, Default)]
pub struct Epoch {
    /// Mean over the steps of the loss per pair.
    pub loss: f64,
    /// Mean similarity of the pairs.
    pub positive: f64,
    /// Mean similarity to the hardest negative over both directions, of GOAL objectives.
    pub negative: Option<f64>,
    /// Share of the triplets with a weight other than 0, of GOAL objectives.
    pub active: Option<f64>,
    /// The learned scale at the end, of objectives that have one.
    pub scale: Option<f64>,
    /// The learned bias at the end.
    pub bias: Option<f64>,
    /// Recall on the validation split.
    pub val: RetrievalReport,
    /// Wall time of the steps.
    pub seconds: f64,
}

/// A finished run.
pub struct Run {
    /// What was trained.
    pub objective: Trained,
    /// One entry per epoch.
    pub epochs: Vec<Epoch>,
    /// Recall per test protocol.
    pub test: Vec<(String, RetrievalReport)>,
    /// Optimiser steps.
    pub steps: usize,
    /// Step, counted from 1, at which an embedding stopped being finite; the run ended there.
    pub diverged_at: Option<usize>,
    /// Wall time of all steps.
    pub seconds: f64,
}

/// The head that every run of this seed starts from.
pub fn untrained(dataset: &Dataset, budget: &Budget) -> Head {
    let mut rng = Rng::new(budget.seed);
    let x = Tower::new(dataset.x.cols, budget.hidden, budget.dim, &mut rng);
    let y = Tower::new(dataset.y.cols, budget.hidden, budget.dim, &mut rng);
    Head { x, y, dim: budget.dim }
}

/// Steps of one epoch.
pub fn steps_per_epoch(dataset: &Dataset, budget: &Budget) -> Outcome<usize> {
    let pairs = dataset.splits.train.len() * dataset.y_per_x;
    match pairs / budget.batch {
        0 => Err(Failure::option("batch", format!("is {}, the training split has only {pairs} pairs", budget.batch))),
        steps => Ok(steps),
    }
}

/// Trains one objective, calling `report` after every epoch.
pub fn run(
    backend: &Backend,
    dataset: &Dataset,
    objective: Trained,
    budget: &Budget,
    mut report: impl FnMut(usize, &Epoch),
) -> Outcome<Run> {
    let steps = steps_per_epoch(dataset, budget)?;
    let mut trainer = Trainer::new(backend, dataset, objective, budget, steps * budget.epochs);
    // The batches have their own generator, so that they do not depend on the size of the model.
    let mut rng = Rng::new(budget.seed ^ 0x00ba_7c4e_5000);
    let mut pairs: Vec<usize> = dataset.captions(&dataset.splits.train).collect();
    let bar = progress_bar(&objective, steps * budget.epochs);
    let mut epochs = Vec::new();
    'training: for number in 1..=budget.epochs {
        let start = Instant::now();
        rng.shuffle(&mut pairs);
        let mut epoch = Epoch::default();
        for batch in pairs.chunks_exact(budget.batch) {
            let step = trainer.step(batch)?;
            epoch.add(&step, steps);
            bar.inc(1);
            if step.diverged {
                trainer.diverged_at = Some(trainer.done);
                break 'training;
            }
        }
        epoch.seconds = start.elapsed().as_secs_f64();
        (epoch.scale, epoch.bias) = trainer.learner.learned();
        epoch.val = eval::head(backend, &trainer.head, dataset, &dataset.splits.val)?;
        bar.suspend(|| report(number, &epoch));
        epochs.push(epoch);
    }
    bar.finish_and_clear();
    let test = eval::test_subsets(dataset)
        .into_iter()
        .map(|(name, rows)| Ok((name, eval::head(backend, &trainer.head, dataset, &rows)?)))
        .collect::<Outcome<Vec<_>>>()?;
    let seconds = epochs.iter().map(|e| e.seconds).sum();
    Ok(Run { objective, epochs, test, steps: trainer.done, diverged_at: trainer.diverged_at, seconds })
}

fn progress_bar(objective: &Trained, steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_message(objective.to_string());
    // The template is a constant; were it wrong, the default style would do.
    if let Ok(style) = ProgressStyle::with_template("{msg:14} {wide_bar} {pos}/{len} steps, {eta} left") {
        bar.set_style(style);
    }
    bar
}

impl Epoch {
    fn add(&mut self, step: &Outline, steps: usize) {
        let share = 1.0 / steps as f64;
        self.loss += share * step.loss;
        self.positive += share * step.positive;
        if let Some((negative, active)) = step.hardest {
            *self.negative.get_or_insert(0.0) += share * negative;
            *self.active.get_or_insert(0.0) += share * active;
        }
    }

    /// One line for people.
    pub fn line(&self, number: usize, objective: &Trained) -> String {
        let (x, y) = (&self.val.x_to_y, &self.val.y_to_x);
        let kind = if objective.loss_kind() == "potential" { "loss" } else { "log " };
        let about = match (self.negative, self.active, self.scale) {
            (Some(negative), Some(active), _) => format!("N {negative:.3}  active {:>3.0} %", 100.0 * active),
            (.., Some(scale)) => format!("scale {scale:>6.2}        "),
            _ => " ".repeat(20),
        };
        format!(
            "{objective:<12} epoch {number:>2}  {kind} {:>9.4}  P {:.3}  {about}  val R@1/5/10  {:>4.1} {:>4.1} {:>4.1}  {:>4.1} {:>4.1} {:>4.1}  {:.1} s",
            self.loss, self.positive, x.r1, x.r5, x.r10, y.r1, y.r5, y.r10, self.seconds,
        )
    }
}

/// One modality in training: the tower and the buffers of a step.
struct Side<'a> {
    features: &'a Features,
    adam: Adam,
    input: Vec<f32>,
    activations: Activations,
    grad_output: Vec<f32>,
    grad: Vec<f32>,
}

impl<'a> Side<'a> {
    fn new(features: &'a Features, tower: &Tower, outputs: usize) -> Self {
        Self {
            features,
            adam: Adam::new(tower),
            input: Vec::new(),
            activations: Activations::default(),
            grad_output: vec![0.0; outputs],
            grad: Vec::new(),
        }
    }

    fn forward(&mut self, tower: &Tower, rows: impl ExactSizeIterator<Item = usize>) {
        let count = rows.len();
        self.features.gather(rows, &mut self.input);
        tower.forward(&self.input, count, &mut self.activations);
    }

    fn update(&mut self, tower: &mut Tower, rate: f32) {
        tower.backward(&self.input, &self.activations, &self.grad_output, &mut self.grad);
        self.adam.update(tower, &self.grad, rate);
    }
}

struct Trainer<'a> {
    backend: &'a Backend,
    dataset: &'a Dataset,
    learner: Learner,
    budget: &'a Budget,
    head: Head,
    x: Side<'a>,
    y: Side<'a>,
    total: usize,
    done: usize,
    diverged_at: Option<usize>,
}

impl<'a> Trainer<'a> {
    fn new(backend: &'a Backend, dataset: &'a Dataset, objective: Trained, budget: &'a Budget, total: usize) -> Self {
        let head = untrained(dataset, budget);
        let outputs = budget.batch * budget.dim;
        let x = Side::new(&dataset.x, &head.x, outputs);
        let y = Side::new(&dataset.y, &head.y, outputs);
        Self {
            backend,
            dataset,
            learner: Learner::new(objective),
            budget,
            head,
            x,
            y,
            total,
            done: 0,
            diverged_at: None,
        }
    }

    /// One step on these rows of y and the items they belong to.
    fn step(&mut self, captions: &[usize]) -> Outcome<Outline> {
        let y_per_x = self.dataset.y_per_x;
        self.x.forward(&self.head.x, captions.iter().map(|row| row / y_per_x));
        self.y.forward(&self.head.y, captions.iter().copied());
        let ids: Vec<i64> = captions.iter().map(|row| self.dataset.group(row / y_per_x)).collect();
        let progress = self.done as f64 / self.total as f64;
        let rate = self.budget.rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        let batch = Batch {
            x: self.x.activations.output(),
            y: self.y.activations.output(),
            dx: &mut self.x.grad_output,
            dy: &mut self.y.grad_output,
            dim: self.budget.dim,
            groups: self.budget.mask.then_some(&ids[..]),
        };
        let outline = self.learner.step(self.backend, batch, rate)?;
        self.x.update(&mut self.head.x, rate as f32);
        self.y.update(&mut self.head.y, rate as f32);
        self.done += 1;
        Ok(outline)
    }
}
