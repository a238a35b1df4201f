//! Inputs: a small generator of random numbers, kinds of embeddings, and matrices with strides, offsets and poison.

use simgrad::{Element, MatMut, MatRef};

/// SplitMix64: enough for inputs, the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Kinds of embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Uniform on the unit sphere, `y_i` near `x_i`.
    Sphere,
    /// A few tight clusters on the unit sphere.
    Clustered,
    /// All rows within about 1e-2 of each other.
    NearDuplicate,
    /// Entries −2 … 2, so that every sum is exact in f32.
    Integers,
    /// A few rows are near everything.
    Hubs,
    /// Norms over several orders of magnitude, and heavy-tailed entries.
    HeavyTailed,
}

impl Kind {
    pub const FLOATS: [Self; 5] = [Self::Sphere, Self::Clustered, Self::NearDuplicate, Self::Hubs, Self::HeavyTailed];
}

fn normalized(mut row: Vec<f64>) -> Vec<f64> {
    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
    row.iter_mut().for_each(|v| *v /= norm);
    row
}

fn near(rng: &mut Rng, centre: &[f64], spread: f64) -> Vec<f64> {
    let spread = spread / (centre.len() as f64).sqrt();
    normalized(centre.iter().map(|c| c + spread * rng.normal()).collect())
}

fn random_row(rng: &mut Rng, d: usize) -> Vec<f64> {
    (0..d).map(|_| rng.normal()).collect()
}

/// Two row-major matrices, `n × d` and `m × d`, whose rows of the same index belong together.
pub fn pair(kind: Kind, seed: u64, n: usize, m: usize, d: usize) -> (Vec<f64>, Vec<f64>) {
    let rng = &mut Rng::new(seed ^ ((n as u64) << 40) ^ ((m as u64) << 20) ^ d as u64);
    if kind == Kind::Integers {
        let mut fill = |len: usize| (0..len).map(|_| rng.below(5) as f64 - 2.0).collect();
        return (fill(n * d), fill(m * d));
    }
    let centres: Vec<Vec<f64>> = (0..4).map(|_| normalized(random_row(rng, d))).collect();
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for i in 0..n.max(m) {
        let base = match kind {
            Kind::Clustered => near(rng, &centres[i % 4], 0.5),
            Kind::NearDuplicate => near(rng, &centres[0], 1e-2),
            Kind::Hubs if i % 61 == 5 => near(rng, &centres[0], 0.1),
            Kind::Hubs => near(rng, &centres[0], 1.5),
            _ => normalized(random_row(rng, d)),
        };
        let mate = match kind {
            Kind::NearDuplicate => near(rng, &base, 1e-2),
            // Different spreads keep the positives apart where the dimension is large.
            _ => {
                let spread = 0.3 + 1.4 * rng.uniform();
                near(rng, &base, spread)
            }
        };
        let (mut a, mut b) = (base, mate);
        if kind == Kind::HeavyTailed {
            let tail = |v: &mut f64| *v += 0.02 * (*v / v.abs()) * (1.0 / rng.uniform()).powf(0.7);
            a.iter_mut().chain(&mut b).for_each(tail);
            let (p, q) = (rng.normal().exp(), rng.normal().exp());
            a.iter_mut().for_each(|v| *v *= p);
            b.iter_mut().for_each(|v| *v *= q);
        }
        x.extend(if i < n { a } else { Vec::new() });
        y.extend(if i < m { b } else { Vec::new() });
    }
    (x, y)
}

/// `count` ids out of `kinds` different ones, far apart from each other and from 0.
pub fn group_ids(seed: u64, count: usize, kinds: usize) -> Vec<i64> {
    let mut rng = Rng::new(seed);
    let id = |k: usize| [i64::MIN, -1, 0, i64::MAX, 1, 9_000_000_000_000_000_000, 1 << 32][k % 7] ^ ((k / 7) as i64);
    (0..count).map(|_| id(rng.below(kinds))).collect()
}

/// Groups of one row and two columns, in order: most tiles of a large matrix have none on both sides. Every third column is of
/// no group, but the lower half of its number is that of a row's, of another one in every tile.
pub fn groups_in_order(rows: usize, cols: usize) -> (Vec<i64>, Vec<i64>) {
    let col = |j: usize| if j % 3 == 2 { (j * 37 % rows) as i64 | 1 << 40 } else { (j / 2) as i64 };
    ((0..rows as i64).collect(), (0..cols).map(col).collect())
}

/// Where a matrix lies in its buffer: elements before it, and elements between one row's end and the next row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    pub offset: usize,
    pub pad: usize,
}

pub const TIGHT: Layout = Layout { offset: 0, pad: 0 };
/// Only element alignment.
pub const ODD: Layout = Layout { offset: 1, pad: 3 };
/// Rows further apart than they are long, and a base of 16 bytes at least.
pub const WIDE: Layout = Layout { offset: 8, pad: 24 };
pub const LAYOUTS: [Layout; 4] = [TIGHT, ODD, WIDE, Layout { offset: 3, pad: 0 }];

/// A NaN with a payload that no arithmetic produces.
pub fn poison<T: Element>() -> T {
    let bits: u64 = match size_of::<T>() {
        2 if T::from_f64(65_536.0).to_f64().is_infinite() => 0x7e5a,
        2 => 0x7fda,
        4 => 0x7fda_dead,
        _ => 0x7ff8_dead_beef_5a5a,
    };
    bytemuck::pod_read_unaligned(&bits.to_ne_bytes()[..size_of::<T>()])
}

fn same_bits<T: Element>(a: &T, b: &T) -> bool {
    bytemuck::bytes_of(a) == bytemuck::bytes_of(b)
}

/// Elements before and after an output that nothing may touch, 256 bytes or more.
const GUARD: usize = 128;

/// An owned matrix in a buffer of poison.
#[derive(Clone, Debug)]
pub struct Matrix<T> {
    buffer: Vec<T>,
    start: usize,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<T: Element> Matrix<T> {
    /// A matrix of poison: an output.
    pub fn poisoned(rows: usize, cols: usize, layout: Layout) -> Self {
        let (start, stride) = (GUARD + layout.offset, cols + layout.pad);
        let buffer = vec![poison(); start + rows * stride + GUARD];
        Self { buffer, start, rows, cols, stride }
    }

    /// A matrix with these elements, rounded, and poison around them.
    pub fn new(values: &[f64], rows: usize, cols: usize, layout: Layout) -> Self {
        let mut out = Self::poisoned(rows, cols, layout);
        assert_eq!(values.len(), rows * cols);
        for (i, v) in values.iter().enumerate() {
            *out.at(i / cols, i % cols) = T::from_f64(*v);
        }
        out
    }

    pub fn at(&mut self, i: usize, k: usize) -> &mut T {
        &mut self.buffer[self.start + i * self.stride + k]
    }

    pub fn set_row(&mut self, i: usize, value: impl Fn(usize) -> f64) {
        for k in 0..self.cols {
            *self.at(i, k) = T::from_f64(value(k));
        }
    }

    fn span(&self) -> usize {
        if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols }
    }

    pub fn view(&self) -> MatRef<'_, T> {
        let data = &self.buffer[self.start..][..self.span()];
        MatRef::with_stride(data, self.rows, self.cols, self.stride).expect("a valid view")
    }

    pub fn view_mut(&mut self) -> MatMut<'_, T> {
        let (start, span) = (self.start, self.span());
        let data = &mut self.buffer[start..][..span];
        MatMut::with_stride(data, self.rows, self.cols, self.stride).expect("a valid view")
    }

    /// The elements, row-major without gaps.
    pub fn values(&self) -> Vec<f64> {
        self.elements().iter().map(|v| v.to_f64()).collect()
    }

    pub fn elements(&self) -> Vec<T> {
        (0..self.rows).flat_map(|i| self.view().row(i).to_vec()).collect()
    }

    /// The elements after a call that had to write all of them and nothing else.
    #[track_caller]
    pub fn written(&self, name: &str) -> Vec<f64> {
        let mark = poison::<T>();
        for (at, v) in self.buffer.iter().enumerate() {
            let place = at.checked_sub(self.start).map(|p| (p / self.stride.max(1), p % self.stride.max(1)));
            let inside = place.is_some_and(|(i, k)| i < self.rows && k < self.cols);
            match (inside, same_bits(v, &mark)) {
                (true, true) => panic!("{name}: element {:?} was not written", place.unwrap()),
                (false, false) => {
                    panic!("{name}: {v} was written outside, {at} elements into a buffer that starts at {}", self.start)
                }
                _ => {}
            }
        }
        self.values()
    }

    /// Whether nothing at all differs from `before`.
    pub fn same_buffer(&self, before: &Self) -> bool {
        self.buffer.iter().zip(&before.buffer).all(|(a, b)| same_bits(a, b))
    }
}

/// Bit equality of two lists of elements.
pub fn bits_equal<T: Element>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_bits(a, b))
}

pub fn to_f64<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}
