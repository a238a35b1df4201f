//! The two-tower head: one linear map per modality, optionally with a hidden layer, and Adam.

use std::ops::Range;

use rayon::prelude::*;

use crate::gemm::{View, multiply};
use crate::rng::Rng;

/// One linear map with bias, as a range of a tower's parameters: the weights `inputs × outputs`, then the bias.
#[derive(Clone, Debug)]
struct Layer {
    inputs: usize,
    outputs: usize,
    at: usize,
}

impl Layer {
    const fn weights(&self) -> Range<usize> {
        self.at..self.at + self.inputs * self.outputs
    }
    const fn bias(&self) -> Range<usize> {
        self.weights().end..self.weights().end + self.outputs
    }
}

/// One modality's map into the joint space. Its output is not normalised: simgrad does that, forward and backward.
#[derive(Clone, Debug)]
pub struct Tower {
    layers: Vec<Layer>,
    parameters: Vec<f32>,
}

/// What a tower keeps from the forward pass for the backward pass: the output of each layer.
#[derive(Default)]
pub struct Activations(Vec<Vec<f32>>);

impl Activations {
    /// The tower's output, row-major.
    pub fn output(&self) -> &[f32] {
        self.0.last().map_or(&[], Vec::as_slice)
    }
}

impl Tower {
    /// A tower with uniform Xavier weights and zero biases; `hidden` is the width of a ReLU layer, 0 for none.
    pub fn new(inputs: usize, hidden: usize, outputs: usize, rng: &mut Rng) -> Self {
        let widths = if hidden == 0 { vec![inputs, outputs] } else { vec![inputs, hidden, outputs] };
        let mut tower = Self { layers: Vec::new(), parameters: Vec::new() };
        for pair in widths.windows(2) {
            let layer = Layer { inputs: pair[0], outputs: pair[1], at: tower.parameters.len() };
            let bound = (6.0 / (layer.inputs + layer.outputs) as f32).sqrt();
            tower.parameters.extend((0..layer.weights().len()).map(|_| rng.symmetric(bound)));
            tower.parameters.resize(layer.bias().end, 0.0);
            tower.layers.push(layer);
        }
        tower
    }

    /// Number of parameters.
    pub const fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Maps the rows of `x`.
    pub fn forward(&self, x: &[f32], rows: usize, activations: &mut Activations) {
        activations.0.resize_with(self.layers.len(), Vec::new);
        for (l, layer) in self.layers.iter().enumerate() {
            let (before, rest) = activations.0.split_at_mut(l);
            let input = before.last().map_or(x, Vec::as_slice);
            let out = &mut rest[0];
            out.resize(rows * layer.outputs, 0.0);
            let weights = View::new(&self.parameters[layer.weights()], layer.inputs, layer.outputs);
            multiply(View::new(input, rows, layer.inputs), weights, out);
            let bias = &self.parameters[layer.bias()];
            let hidden = l + 1 < self.layers.len();
            for row in out.chunks_exact_mut(layer.outputs) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                if hidden {
                    row.iter_mut().for_each(|value| *value = value.max(0.0));
                }
            }
        }
    }

    /// The gradient of the parameters, given that of the output.
    pub fn backward(&self, x: &[f32], activations: &Activations, grad_output: &[f32], grad: &mut Vec<f32>) {
        grad.resize(self.parameters.len(), 0.0);
        let mut upstream = grad_output.to_vec();
        for (l, layer) in self.layers.iter().enumerate().rev() {
            let rows = upstream.len() / layer.outputs;
            let input = if l == 0 { x } else { &activations.0[l - 1] };
            let input_view = View::new(input, rows, layer.inputs);
            let upstream_view = View::new(&upstream, rows, layer.outputs);
            multiply(input_view.transposed(), upstream_view, &mut grad[layer.weights()]);
            let bias = &mut grad[layer.bias()];
            bias.fill(0.0);
            for row in upstream.chunks_exact(layer.outputs) {
                bias.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            if l > 0 {
                let weights = View::new(&self.parameters[layer.weights()], layer.inputs, layer.outputs);
                let mut below = vec![0.0; rows * layer.inputs];
                multiply(upstream_view, weights.transposed(), &mut below);
                below.iter_mut().zip(input).for_each(|(g, &h)| *g = if h > 0.0 { *g } else { 0.0 });
                upstream = below;
            }
        }
    }
}

/// Adam without weight decay.
pub struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    step: i32,
}

impl Adam {
    const BETA: [f32; 2] = [0.9, 0.999];
    const EPS: f32 = 1e-8;

    /// The optimiser of a tower.
    pub fn new(tower: &Tower) -> Self {
        Self { mean: vec![0.0; tower.len()], square: vec![0.0; tower.len()], step: 0 }
    }

    /// One step against the gradient.
    pub fn update(&mut self, tower: &mut Tower, grad: &[f32], rate: f32) {
        const CHUNK: usize = 1 << 14;
        let [b1, b2] = Self::BETA;
        self.step += 1;
        // The two bias corrections, folded into the rate and the root.
        let rate = rate / (1.0 - b1.powi(self.step));
        let root = (1.0 - b2.powi(self.step)).sqrt().recip();
        let parameters = tower.parameters.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK));
        let moments = self.mean.par_chunks_mut(CHUNK).zip(self.square.par_chunks_mut(CHUNK));
        parameters.zip(moments).for_each(|((parameters, grad), (mean, square))| {
            for (((p, &g), m), v) in parameters.iter_mut().zip(grad).zip(mean).zip(square) {
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                *p -= rate * *m / (v.sqrt() * root + Self::EPS);
            }
        });
    }
}
