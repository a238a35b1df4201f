//! Objectives over all pairs written as text.
//!
//! An expression has a line per quantity, `name = formula`. `positive` and `negative` are the weights of the pairs, `logit` is
//! what the sums of exponentials are over (default `s`); any other name is a parameter that later lines may use. An empty
//! line or one that starts with `#` is none.
//!
//! | in a formula | |
//! | --- | --- |
//! | `+ - * /`, `(` `)` | as usual |
//! | `exp ln sqrt abs sigmoid softplus`, `min max` | functions of one argument, of two |
//! | numbers, names of earlier lines | |
//! | `step(a)` | 1 if `a > 0`, else 0 |
//! | `s` | the pair's similarity |
//! | `hardest_of_row`, `hardest_of_col` | 1 for the hardest negative of the row, of the column, else 0 |
//! | `n`, `m` | rows and columns of the batch |
//! | `row.pair`, `row.hardest` | the similarities of the row's own pair and of its hardest negative |
//! | `row.lse`, `row.lse_positives` | `ln Σ e^logit` over the row's negatives, over its positives |
//! | `row.positives`, `row.negatives` | how many there are; `col.…` is the same of the column |
//! | `row.near_negatives`, `row.near_positives` | means over the near pairs, see below |
//!
//! `cpu::pairwise_step_custom` computes in `f64`. On CUDA `cuda::CompiledExpression` compiles the formulas with NVRTC, and
//! `cuda::pairwise_step_custom` computes them in `f32`, so logarithms of sums are to be subtracted before an `exp`, not divided
//! after it: `exp(89)` is infinite there. `Backend::pairwise_step_custom` does either.
//!
//! `logit` may use `s` and parameters. `near_negative` and `near_positive` are what is averaged over the sets of near pairs
//! that [`PairObjective::slack`] defines, formulas of the similarity `s` of one of them, of the anchor's own `pair` and
//! `hardest`, and of parameters; `slack` is a number, by default 0.1. They come before the means are used. GOAL's `lin_ms`
//! has them:
//!
//! ```
//! use simgrad::expression::Expression;
//!
//! let con_lin_ms: Expression = "
//!     slack         = 0.1
//!     near_negative = hardest - s
//!     near_positive = pair - s
//!     negative      = (hardest_of_row * (1 + row.near_negatives) + hardest_of_col * (1 + col.near_negatives)) * s
//!     positive      = -(2 - row.near_positives - col.near_positives) * (1 - s)
//! ".parse()?;
//! # Ok::<(), simgrad::Error>(())
//! ```
//!
//! The symmetric cross-entropy of CLIP in three lines:
//!
//! ```
//! use simgrad::expression::Expression;
//!
//! let clip: Expression = "
//!     logit    = 14.3 * s
//!     negative = 14.3 / (2 * n) * (sigmoid(row.lse - row.lse_positives) * exp(logit - row.lse) + sigmoid(col.lse - col.lse_positives) * exp(logit - col.lse))
//!     positive = -14.3 / (2 * n) * (sigmoid(row.lse - logit) + sigmoid(col.lse - logit))
//! ".parse()?;
//! # Ok::<(), simgrad::Error>(())
//! ```

#[cfg(feature = "cuda")]
mod emit;
mod parser;

use crate::custom::{AnchorView, PairObjective, PairView};

/// An objective as text; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    logit: Node,
    positive: Node,
    negative: Node,
    near: Option<Near>,
    one_positive: bool,
    /// The text that it was parsed from.
    source: String,
}

/// What is averaged over the near pairs.
#[derive(Clone, Debug, PartialEq)]
struct Near {
    slack: f64,
    negative: Option<Node>,
    positive: Option<Node>,
}

impl Expression {
    /// The text that it was parsed from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// With [`PairObjective::one_positive`] as given; an expression that was parsed has one positive per anchor.
    pub fn with_one_positive(self, one_positive: bool) -> Self {
        Self { one_positive, ..self }
    }
}

/// A formula.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Number(f64),
    Variable(Variable),
    Unary(Unary, Box<Node>),
    Binary(Binary, Box<[Node; 2]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Similarity,
    HardestOfRow,
    HardestOfCol,
    Rows,
    Cols,
    /// Of the anchor of a near pair.
    Own(Statistic),
    Row(Statistic),
    Col(Statistic),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statistic {
    Pair,
    Hardest,
    Lse,
    LsePositives,
    Positives,
    Negatives,
    NearNegatives,
    NearPositives,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unary {
    Negate,
    Exp,
    Ln,
    Sqrt,
    Abs,
    Sigmoid,
    Softplus,
    Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Min,
    Max,
}

/// An anchor of which nothing is known.
const NOBODY: AnchorView = AnchorView {
    pair: f64::NAN,
    hardest: f64::NAN,
    lse_negatives: f64::NAN,
    lse_positives: f64::NAN,
    positives: 0,
    negatives: 0,
    near_negatives: f64::NAN,
    near_positives: f64::NAN,
};

impl Statistic {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pair" => Self::Pair,
            "hardest" => Self::Hardest,
            "lse" => Self::Lse,
            "lse_positives" => Self::LsePositives,
            "positives" => Self::Positives,
            "negatives" => Self::Negatives,
            "near_negatives" => Self::NearNegatives,
            "near_positives" => Self::NearPositives,
            _ => return None,
        })
    }

    fn of(self, anchor: &AnchorView) -> f64 {
        match self {
            Self::Pair => anchor.pair,
            Self::Hardest => anchor.hardest,
            Self::Lse => anchor.lse_negatives,
            Self::LsePositives => anchor.lse_positives,
            Self::Positives => f64::from(anchor.positives),
            Self::Negatives => f64::from(anchor.negatives),
            Self::NearNegatives => anchor.near_negatives,
            Self::NearPositives => anchor.near_positives,
        }
    }
}

impl Variable {
    fn named(name: &str) -> Option<Self> {
        if let Some((side, statistic)) = name.split_once('.') {
            let statistic = Statistic::named(statistic)?;
            return match side {
                "row" => Some(Self::Row(statistic)),
                "col" => Some(Self::Col(statistic)),
                _ => None,
            };
        }
        Some(match name {
            "s" => Self::Similarity,
            "hardest_of_row" => Self::HardestOfRow,
            "hardest_of_col" => Self::HardestOfCol,
            "n" => Self::Rows,
            "m" => Self::Cols,
            "pair" => Self::Own(Statistic::Pair),
            "hardest" => Self::Own(Statistic::Hardest),
            _ => return None,
        })
    }

    fn of(self, pair: &PairView<'_>) -> f64 {
        match self {
            Self::Similarity => pair.s,
            Self::HardestOfRow => f64::from(pair.hardest_of_row),
            Self::HardestOfCol => f64::from(pair.hardest_of_col),
            Self::Rows => pair.rows as f64,
            Self::Cols => pair.cols as f64,
            // A near pair is seen from its anchor as if that were a row.
            Self::Own(statistic) | Self::Row(statistic) => statistic.of(pair.row),
            Self::Col(statistic) => statistic.of(pair.col),
        }
    }

    /// Whether it is known before there are statistics.
    const fn early(self) -> bool {
        matches!(self, Self::Similarity)
    }

    /// Whether it is known of a near pair.
    const fn near(self) -> bool {
        matches!(self, Self::Similarity | Self::Own(_))
    }

    /// Whether it is known of a pair that is to be weighed.
    const fn late(self) -> bool {
        !matches!(self, Self::Own(_))
    }
}

impl Unary {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "exp" => Self::Exp,
            "ln" => Self::Ln,
            "sqrt" => Self::Sqrt,
            "abs" => Self::Abs,
            "sigmoid" => Self::Sigmoid,
            "softplus" => Self::Softplus,
            "step" => Self::Step,
            _ => return None,
        })
    }

    fn of(self, a: f64) -> f64 {
        match self {
            Self::Negate => -a,
            Self::Exp => a.exp(),
            Self::Ln => a.ln(),
            Self::Sqrt => a.sqrt(),
            Self::Abs => a.abs(),
            // By the sign, so that neither overflows.
            Self::Sigmoid if a >= 0.0 => 1.0 / (1.0 + (-a).exp()),
            Self::Sigmoid => a.exp() / (1.0 + a.exp()),
            Self::Softplus if a > 0.0 => a + (-a).exp().ln_1p(),
            Self::Softplus => a.exp().ln_1p(),
            // NaN stays.
            Self::Step if a.is_nan() => a,
            Self::Step => f64::from(a > 0.0),
        }
    }
}

impl Binary {
    fn of(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a / b,
            Self::Min if a.is_nan() || b.is_nan() => f64::NAN,
            Self::Min => a.min(b),
            Self::Max if a.is_nan() || b.is_nan() => f64::NAN,
            Self::Max => a.max(b),
        }
    }
}

impl Node {
    fn eval(&self, pair: &PairView<'_>) -> f64 {
        match self {
            Self::Number(value) => *value,
            Self::Variable(variable) => variable.of(pair),
            Self::Unary(op, a) => op.of(a.eval(pair)),
            Self::Binary(op, ab) => op.of(ab[0].eval(pair), ab[1].eval(pair)),
        }
    }

    /// Whether `known` holds for every variable.
    fn all(&self, known: fn(Variable) -> bool) -> bool {
        match self {
            Self::Number(_) => true,
            Self::Variable(variable) => known(*variable),
            Self::Unary(_, a) => a.all(known),
            Self::Binary(_, ab) => ab.iter().all(|node| node.all(known)),
        }
    }

    /// Its value if it has no variables.
    fn number(&self) -> f64 {
        self.of_anchor(f64::NAN, &NOBODY)
    }

    /// Its value for a similarity, and for the anchor of a near pair.
    fn of_anchor(&self, s: f64, anchor: &AnchorView) -> f64 {
        self.eval(&PairView {
            s,
            positive: false,
            row: anchor,
            col: anchor,
            hardest_of_row: false,
            hardest_of_col: false,
            rows: 0,
            cols: 0,
        })
    }
}

impl PairObjective for Expression {
    fn one_positive(&self) -> bool {
        self.one_positive
    }

    fn logit(&self, s: f64) -> f64 {
        self.logit.of_anchor(s, &NOBODY)
    }

    fn slack(&self) -> Option<f64> {
        self.near.as_ref().map(|near| near.slack)
    }

    fn near_negative(&self, s: f64, anchor: &AnchorView) -> f64 {
        self.near.as_ref().and_then(|near| near.negative.as_ref()).map_or(0.0, |node| node.of_anchor(s, anchor))
    }

    fn near_positive(&self, s: f64, anchor: &AnchorView) -> f64 {
        self.near.as_ref().and_then(|near| near.positive.as_ref()).map_or(0.0, |node| node.of_anchor(s, anchor))
    }

    fn weight(&self, pair: &PairView<'_>) -> f64 {
        if pair.positive { self.positive.eval(pair) } else { self.negative.eval(pair) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(formula: &str) -> f64 {
        let text = format!("tau = 4\nnegative = {formula}\npositive = 0");
        let row = AnchorView {
            pair: 0.5,
            hardest: 0.25,
            lse_negatives: 2.0,
            lse_positives: 3.0,
            positives: 6,
            negatives: 7,
            near_negatives: 0.0,
            near_positives: 0.0,
        };
        let col = AnchorView { pair: -0.5, ..row };
        let pair = PairView {
            s: 0.75,
            positive: false,
            row: &row,
            col: &col,
            hardest_of_row: true,
            hardest_of_col: false,
            rows: 8,
            cols: 9,
        };
        text.parse::<Expression>().unwrap().weight(&pair)
    }

    #[test]
    fn formulas_have_the_usual_meaning() {
        for (formula, want) in [
            ("1 + 2 * 3 - 4 / 8", 6.5),
            ("(1 + 2) * -3", -9.0),
            ("2 - 1 - 1", 0.0),
            ("8 / 2 / 2", 2.0),
            ("1.5e-1 + .5", 0.65),
            ("min(s, row.pair) + max(col.pair, -2)", 0.0),
            ("step(s) + step(-s) + step(0)", 1.0),
            ("sigmoid(0) + abs(-2) + sqrt(9) + ln(exp(1))", 6.5),
            ("softplus(1000) + softplus(-1000) + sigmoid(1000) + sigmoid(-1000)", 1001.0),
            ("hardest_of_row - hardest_of_col", 1.0),
            ("row.hardest + row.lse + row.lse_positives + row.positives + row.negatives", 18.25),
            ("n * 10 + m", 89.0),
            ("tau * logit", 3.0),
        ] {
            assert!((value(formula) - want).abs() < 1e-12, "{formula} is {}, not {want}", value(formula));
        }
    }

    #[test]
    fn near_pairs_are_seen_from_their_anchor() {
        let text = "near_positive = pair - 2 * s\nbeta = 3\nslack = 1 / beta\nnear_negative = beta * (hardest - s)\n\
                    negative = row.near_negatives\npositive = col.near_positives";
        let near: Expression = text.parse().unwrap();
        let anchor = AnchorView {
            pair: 0.5,
            hardest: 0.25,
            lse_negatives: 0.0,
            lse_positives: 0.0,
            positives: 1,
            negatives: 1,
            near_negatives: 0.0,
            near_positives: 0.0,
        };
        assert_eq!(near.slack(), Some(1.0 / 3.0));
        assert_eq!((near.near_positive(1.0, &anchor), near.near_negative(1.0, &anchor)), (-1.5, -2.25));
        let one_of_them: Expression = "near_negative = s\nnegative = 0\npositive = row.near_negatives".parse().unwrap();
        assert_eq!((one_of_them.slack(), one_of_them.near_positive(1.0, &anchor)), (Some(0.1), 0.0));
        let neither: Expression = "slack = 0.2\nnegative = s * slack\npositive = 0".parse().unwrap();
        assert_eq!(neither.slack(), None);
    }

    /// Lines of which each has the one before twice.
    fn doubled_lines(lines: usize) -> String {
        let line = |k: usize| format!("p{} = p{k} + p{k}\n", k + 1);
        format!("p0 = s\n{}", (0..lines).map(line).collect::<String>())
    }

    fn doubled(lines: usize) -> String {
        format!("{}negative = p{lines}\npositive = 0", doubled_lines(lines))
    }

    /// Lines of which each has the one before below 63 signs.
    fn chain(lines: usize) -> String {
        let line = |k: usize| format!("p{} = {}p{k}\n", k + 1, "-".repeat(63));
        format!("p0 = s\n{}negative = p{lines}\npositive = 0", (0..lines).map(line).collect::<String>())
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        let both = "\npositive = 0\nnegative = 0";
        for (text, expected, place) in [
            ("a = 1 + * 2".to_owned() + both, "a number, a name or `(`", "        ^"),
            ("a = (1".to_owned() + both, "`)`", "      ^"),
            ("a = 1 2".to_owned() + both, "an operator or the end", "      ^"),
            ("a = tau".to_owned() + both, "a name that is known here", "    ^"),
            ("a = exp 1".to_owned() + both, "`(`", "        ^"),
            ("a = min(1)".to_owned() + both, "`,`", "         ^"),
            ("a = 1e999".to_owned() + both, "a finite number", "    ^"),
            ("s = 1".to_owned() + both, "a name that has no other meaning", "^"),
            ("a = 1\na = 2".to_owned() + both, "a name that is not taken yet", "^"),
            ("a b = 1".to_owned() + both, "a name of letters", "^"),
            ("nothing".to_owned() + both, "name = formula", "^"),
            ("logit = row.lse".to_owned() + both, "a logit of", "       ^"),
            ("near_negative = row.pair - s".to_owned() + both, "`pair`, `hardest` and parameters", "               ^"),
            ("a = pair - s".to_owned() + both, "`row.…` or `col.…`", "   ^"),
            ("near_negative = s\na = near_negative".to_owned() + both, "a name that is known here", "    ^"),
            ("near_negative = s\na = row.near_positives".to_owned() + both, "`near_positive = …` before this", "    ^"),
            ("a = 1 + col.near_negatives".to_owned() + both, "`near_negative = …` before this", "        ^"),
            ("near_positive = s\nslack = -0.1".to_owned() + both, "a slack of at least 0", "       ^"),
            ("slack = s\nnear_positive = s".to_owned() + both, "a slack of at least 0", "       ^"),
            ("positive = 0".to_owned(), "a line `negative", "^"),
            (format!("a = {}1{both}", "(".repeat(100)), "levels of parentheses", "^"),
            (format!("a = {}1{both}", "-".repeat(100)), "levels of parentheses", "^"),
            (doubled(64), "at most 10000 numbers, names and operations", "^"),
            (format!("negative = s{}", " + s".repeat(100_000)), "at most 500 operations within each other", "^"),
            (chain(157), "at most 500 operations within each other", "^"),
            (format!("{}negative = p12{}", doubled_lines(12), " + p12".repeat(50_000)), "at most 10000", "^"),
        ] {
            let error = text.parse::<Expression>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.contains(place), "{text}: {error}");
        }
    }
}
