//! What the vectorised loops need to know of an objective: the part that a negative pair has in the statistics, and its
//! weight. Positives are few and are treated one by one, in `f64`, by [`super::positives`].

use crate::cpu::real::Real;

/// What the weight of an anchor's negatives depends on besides their similarity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coefficient<A> {
    /// Factor.
    pub(super) a: A,
    /// Subtracted from a logit before it is exponentiated.
    pub(super) m: A,
    /// The anchor's own parameter: the similarity or threshold that its negatives are compared with.
    pub(super) p: A,
}

/// How far apart any two logarithms may be that share an exponential: of a term that becomes 0 for one anchor, `e^−87`, no
/// other anchor's share is above `e^−47`.
pub(super) const NEAR: f64 = 40.0;

/// The negatives of one objective.
pub(super) trait Form<A>: Copy + Send + Sync {
    /// Whether terms are logits, of which the exponentials are summed; otherwise they are summed themselves.
    const SOFT: bool;
    /// Whether there is an [`extra`](Self::extra).
    const EXTRA: bool = false;
    /// Whether weights depend on no statistics.
    const ALONE: bool = false;
    /// Whether the weight is `a e^(term − m)` and terms do not depend on the anchor: then a pair's row and column can share an
    /// exponential.
    const SHARED: bool = false;
    /// A logit (−∞: no part), or a summand.
    fn term(self, s: A, log_q: A, p: A) -> A;
    /// What is summed besides, times the exponential of a logit.
    #[inline(always)]
    fn extra(self, s: A, _: A) -> A {
        s
    }
    /// NaN for NaN.
    fn weight(self, s: A, log_q: A, c: Coefficient<A>) -> A;
}

/// `(e^{−|z|}, z ≥ 0)`
#[inline(always)]
fn decay<A: Real>(z: A) -> (A, bool) {
    let up = z >= A::ZERO;
    (if up { -z } else { z }.exp_nonpos(), up)
}

/// `ln(1 + e^z)`
#[inline(always)]
pub(super) fn softplus<A: Real>(z: A) -> A {
    let (e, up) = decay(z);
    if up { z + e.ln_1p_unit() } else { e.ln_1p_unit() }
}

/// `1 / (1 + e^{−z})`
#[inline(always)]
pub(super) fn sigmoid<A: Real>(z: A) -> A {
    let (e, up) = decay(z);
    if up { A::ONE / (A::ONE + e) } else { e / (A::ONE + e) }
}

/// `√(2 − 2s)`, 0 for `s > 1`.
#[inline(always)]
pub(super) fn distance<A: Real>(s: A) -> A {
    let square = (A::ONE - s) + (A::ONE - s);
    if square < A::ZERO { A::ZERO } else { square.sqrt() }
}

/// `1 / d`, 0 at 0.
#[inline(always)]
fn inverse<A: Real>(d: A) -> A {
    if d == A::ZERO { A::ZERO } else { A::ONE / d }
}

/// Softmax over the candidates: InfoNCE, SupCon.
#[derive(Clone, Copy)]
pub(super) struct Softmax<A> {
    pub(super) scale: A,
}

impl<A: Real + Send + Sync> Form<A> for Softmax<A> {
    const SOFT: bool = true;
    const SHARED: bool = true;
    #[inline(always)]
    fn term(self, s: A, log_q: A, _: A) -> A {
        self.scale * s - log_q
    }
    #[inline(always)]
    fn weight(self, s: A, log_q: A, c: Coefficient<A>) -> A {
        c.a * (self.term(s, log_q, c.p) - c.m).exp_nonpos()
    }
}

/// The sigmoid loss.
#[derive(Clone, Copy)]
pub(super) struct SigLip<A> {
    pub(super) scale: A,
    pub(super) bias: A,
}

impl<A: Real + Send + Sync> Form<A> for SigLip<A> {
    const SOFT: bool = false;
    const ALONE: bool = true;
    #[inline(always)]
    fn term(self, s: A, _: A, _: A) -> A {
        softplus(self.scale * s + self.bias)
    }
    #[inline(always)]
    fn weight(self, s: A, _: A, c: Coefficient<A>) -> A {
        c.a * sigmoid(self.scale * s + self.bias)
    }
}

/// Multi-Similarity; `p` is the lowest similarity of a positive, −∞ without the miner.
#[derive(Clone, Copy)]
pub(super) struct MultiSimilarity<A> {
    pub(super) beta: A,
    pub(super) lambda: A,
    pub(super) epsilon: A,
}

impl<A: Real + Send + Sync> Form<A> for MultiSimilarity<A> {
    const SOFT: bool = true;
    #[inline(always)]
    fn term(self, s: A, _: A, p: A) -> A {
        if s + self.epsilon <= p { A::NEG_INFINITY } else { self.beta * (s - self.lambda) }
    }
    #[inline(always)]
    fn weight(self, s: A, log_q: A, c: Coefficient<A>) -> A {
        let term = self.term(s, log_q, c.p);
        if term == A::NEG_INFINITY { A::ZERO } else { c.a * (term - c.m).exp_nonpos() }
    }
}

/// Circle.
#[derive(Clone, Copy)]
pub(super) struct Circle<A> {
    pub(super) gamma: A,
    pub(super) margin: A,
    pub(super) detached: bool,
}

impl<A: Real + Send + Sync> Form<A> for Circle<A> {
    const SOFT: bool = true;
    #[inline(always)]
    fn term(self, s: A, _: A, _: A) -> A {
        let open = s + self.margin;
        let open = if open < A::ZERO { A::ZERO } else { open };
        self.gamma * open * (s - self.margin)
    }
    #[inline(always)]
    fn weight(self, s: A, log_q: A, c: Coefficient<A>) -> A {
        let open = s + self.margin;
        let slope = if open <= A::ZERO {
            A::ZERO
        } else if self.detached {
            open
        } else {
            s + s
        };
        c.a * (self.term(s, log_q, c.p) - c.m).exp_nonpos() * slope
    }
}

/// Generalised lifted structure.
#[derive(Clone, Copy)]
pub(super) struct Lifted<A> {
    pub(super) margin: A,
}

impl<A: Real + Send + Sync> Form<A> for Lifted<A> {
    const SOFT: bool = true;
    #[inline(always)]
    fn term(self, s: A, _: A, _: A) -> A {
        self.margin - distance(s)
    }
    #[inline(always)]
    fn weight(self, s: A, _: A, c: Coefficient<A>) -> A {
        let d = distance(s);
        c.a * (self.margin - d - c.m).exp_nonpos() * inverse(d)
    }
}

/// Ranked list.
#[derive(Clone, Copy)]
pub(super) struct RankedList<A> {
    pub(super) alpha: A,
    pub(super) temperature: A,
}

impl<A: Real + Send + Sync> Form<A> for RankedList<A> {
    const SOFT: bool = true;
    const EXTRA: bool = true;
    #[inline(always)]
    fn term(self, s: A, _: A, _: A) -> A {
        let within = self.alpha - distance(s);
        if within <= A::ZERO { A::NEG_INFINITY } else { self.temperature * within }
    }
    #[inline(always)]
    fn extra(self, s: A, _: A) -> A {
        self.alpha - distance(s)
    }
    #[inline(always)]
    fn weight(self, s: A, _: A, c: Coefficient<A>) -> A {
        let d = distance(s);
        let within = self.alpha - d;
        if within <= A::ZERO { A::ZERO } else { c.a * (self.temperature * within - c.m).exp_nonpos() * inverse(d) }
    }
}

/// A hinge on `margin + s − p`: triplets over all negatives, and the negatives of the contrastive loss.
#[derive(Clone, Copy)]
pub(super) struct Hinge<A> {
    pub(super) margin: A,
}

impl<A: Real + Send + Sync> Form<A> for Hinge<A> {
    const SOFT: bool = false;
    const EXTRA: bool = true;
    #[inline(always)]
    fn term(self, s: A, _: A, p: A) -> A {
        let violation = self.margin + s - p;
        if violation <= A::ZERO { A::ZERO } else { violation }
    }
    #[inline(always)]
    fn extra(self, s: A, p: A) -> A {
        if self.margin + s - p <= A::ZERO { A::ZERO } else { A::ONE }
    }
    #[inline(always)]
    fn weight(self, s: A, _: A, c: Coefficient<A>) -> A {
        let violation = self.margin + s - c.p;
        if violation <= A::ZERO {
            A::ZERO
        } else if violation.not_a_number() {
            violation
        } else {
            c.a
        }
    }
}
