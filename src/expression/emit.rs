//! From formulas to device code: what `kernels/pairwise_custom.cu` includes as `common/pair_formulas.cuh`.

use std::collections::HashMap;
use std::fmt::Write;

use super::{Binary, Expression, Near, Node, Statistic, Unary, Variable};
use crate::error::{Error, Result};

/// Fields of `AnchorView` in `kernels/common/pair_view.cuh`. A statistic that is not here does not exist on CUDA.
const STATISTICS: [(Statistic, &str); 8] = [
    (Statistic::Pair, "pair"),
    (Statistic::Hardest, "hardest"),
    (Statistic::Lse, "lse"),
    (Statistic::LsePositives, "lse_positives"),
    (Statistic::Positives, "positives"),
    (Statistic::Negatives, "negatives"),
    (Statistic::NearNegatives, "near_negatives"),
    (Statistic::NearPositives, "near_positives"),
];

/// Fields of `PairView` there.
const VARIABLES: [(Variable, &str); 5] = [
    (Variable::Similarity, "s"),
    (Variable::HardestOfRow, "hardest_of_row"),
    (Variable::HardestOfCol, "hardest_of_col"),
    (Variable::Rows, "n"),
    (Variable::Cols, "m"),
];

impl Expression {
    /// The operation that errors name, from the formulas to the loaded kernels.
    pub(crate) const COMPILE: &'static str = "CompiledExpression::compile";

    /// The formulas as device functions in f32, every common part computed once.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] that shows the expression, for a number that f32 cannot hold and for a variable that there is
    /// only on the CPU.
    pub(crate) fn device_code(&self) -> Result<String> {
        let formulas = [&self.positive, &self.negative];
        let uses = |wanted: &dyn Fn(&Variable) -> bool| formulas.iter().any(|formula| formula.any(wanted));
        let sums = uses(&|v| matches!(v, Variable::Row(s) | Variable::Col(s) if s.is_sum()));
        let near = self.near.as_ref();
        let hardest = near.is_some()
            || uses(&|v| match v {
                Variable::Row(s) | Variable::Col(s) => *s == Statistic::Hardest,
                _ => matches!(v, Variable::HardestOfRow | Variable::HardestOfCol),
            });
        let mut code = String::from("#include \"common/pair_view.cuh\"\n\n");
        let _ = writeln!(code, "constexpr bool kUsesSums = {sums};\nconstexpr bool kUsesHardest = {hardest};");
        let slack = self.emitter("").number(near.map_or(0.0, |near| near.slack))?;
        let _ = writeln!(code, "constexpr bool kUsesNear = {};\nconstexpr float kSlack = {slack};\n", near.is_some());
        let nothing = Node::Number(0.0);
        let of_near = |of: fn(&Near) -> Option<&Node>| near.and_then(of).unwrap_or(&nothing);
        for (name, parameters, pair, formula) in [
            ("logit", "float s", "", &self.logit),
            ("near_negative", "float s, const AnchorView& v", "", of_near(|near| near.negative.as_ref())),
            ("near_positive", "float s, const AnchorView& v", "", of_near(|near| near.positive.as_ref())),
            ("positive", "const PairView& v", "v.", &self.positive),
            ("negative", "const PairView& v", "v.", &self.negative),
        ] {
            let mut emitter = self.emitter(pair);
            let result = emitter.value(formula)?;
            let body = emitter.body;
            let _ = writeln!(
                code,
                "__device__ __forceinline__ float formula_{name}({parameters}) {{\n{body}    return {result};\n}}"
            );
        }
        Ok(code)
    }

    fn emitter(&self, pair: &'static str) -> Emitter<'_> {
        Emitter { pair, known: HashMap::new(), body: String::new(), source: &self.source }
    }

    /// Whether the formulas have near pairs, which take a sweep of their own.
    pub(crate) fn has_near_pairs(&self) -> bool {
        self.near.is_some()
    }
}

impl Statistic {
    fn is_sum(self) -> bool {
        matches!(self, Self::Lse | Self::LsePositives)
    }
}

impl Node {
    fn any(&self, wanted: &dyn Fn(&Variable) -> bool) -> bool {
        match self {
            Self::Number(_) => false,
            Self::Variable(variable) => wanted(variable),
            Self::Unary(_, a) => a.any(wanted),
            Self::Binary(_, ab) => ab.iter().any(|node| node.any(wanted)),
        }
    }
}

/// Writes one function.
struct Emitter<'a> {
    /// What precedes the name of a variable.
    pair: &'static str,
    /// The names of what has been computed, by its text.
    known: HashMap<String, String>,
    body: String,
    source: &'a str,
}

impl Emitter<'_> {
    fn refuse(&self, what: &str, expected: &str) -> Error {
        let got = format!("{what} in\n{}", self.source);
        Error::InvalidOption { op: Expression::COMPILE, arg: "expression", expected: expected.to_owned(), got }
    }

    /// The name of a node's value, a number, a variable or a temporary.
    fn value(&mut self, node: &Node) -> Result<String> {
        let text = match node {
            Node::Number(value) => return self.number(*value),
            Node::Variable(variable) => return self.variable(*variable),
            Node::Unary(op, a) => unary(*op, &self.value(a)?),
            Node::Binary(op, ab) => binary(*op, &self.value(&ab[0])?, &self.value(&ab[1])?),
        };
        if let Some(name) = self.known.get(&text) {
            return Ok(name.clone());
        }
        let name = format!("t{}", self.known.len());
        let _ = writeln!(self.body, "    const float {name} = {text};");
        self.known.insert(text, name.clone());
        Ok(name)
    }

    fn number(&self, value: f64) -> Result<String> {
        let narrow = value as f32;
        if !narrow.is_finite() || (narrow == 0.0) != (value == 0.0) {
            return Err(self.refuse(&value.to_string(), "numbers that f32 can hold"));
        }
        Ok(format!("{narrow:?}f"))
    }

    fn variable(&self, variable: Variable) -> Result<String> {
        let statistic = |side: &str, statistic: Statistic| {
            STATISTICS.iter().find(|(known, _)| *known == statistic).map(|(_, field)| format!("{side}.{field}"))
        };
        let field = match variable {
            Variable::Own(of) => statistic("v", of),
            Variable::Row(of) => statistic("row", of),
            Variable::Col(of) => statistic("col", of),
            other => VARIABLES.iter().find(|(known, _)| *known == other).map(|(_, field)| (*field).to_owned()),
        };
        let refuse = || self.refuse(&format!("{variable:?}"), "variables that there are on CUDA");
        field.map(|field| format!("{}{field}", self.pair)).ok_or_else(refuse)
    }
}

fn unary(op: Unary, a: &str) -> String {
    match op {
        Unary::Negate => format!("-{a}"),
        Unary::Exp => format!("expf({a})"),
        Unary::Ln => format!("logf({a})"),
        Unary::Sqrt => format!("sqrtf({a})"),
        Unary::Abs => format!("fabsf({a})"),
        Unary::Sigmoid => format!("sigmoid({a})"),
        Unary::Softplus => format!("softplus({a})"),
        Unary::Step => format!("step({a})"),
    }
}

fn binary(op: Binary, a: &str, b: &str) -> String {
    match op {
        Binary::Add => format!("{a} + {b}"),
        Binary::Subtract => format!("{a} - {b}"),
        Binary::Multiply => format!("{a} * {b}"),
        Binary::Divide => format!("{a} / {b}"),
        Binary::Min => format!("minimum({a}, {b})"),
        Binary::Max => format!("maximum({a}, {b})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the module `expression`.
    const CLIP: &str = "
        logit    = 14.3 * s
        negative = 14.3 / (2 * n) * (sigmoid(row.lse - row.lse_positives) * exp(logit - row.lse) + sigmoid(col.lse - col.lse_positives) * exp(logit - col.lse))
        positive = -14.3 / (2 * n) * (sigmoid(row.lse - logit) + sigmoid(col.lse - logit))
    ";

    #[test]
    fn the_formulas_that_the_build_checks_are_those_of_the_example() {
        let checked = include_str!("../../kernels/common/pair_formulas.cuh");
        let code = CLIP.parse::<Expression>().unwrap().device_code().unwrap();
        let (_, written) = checked.split_once("#pragma once\n").unwrap();
        assert_eq!(written, code);
    }

    #[test]
    fn every_variable_and_function_has_a_text_and_common_parts_are_computed_once() {
        let text = "
            a = sqrt(abs(s)) + ln(2.5e-3) + min(row.pair, col.pair) + max(row.hardest, n) + row.positives - col.negatives
            negative = a + softplus(a) * step(m) + hardest_of_row / hardest_of_col + row.lse + col.lse_positives
            positive = 1
        ";
        let code = text.parse::<Expression>().unwrap().device_code().unwrap();
        for part in ["sqrtf(t", "logf(0.0025f)", "minimum(v.row.pair, v.col.pair)", "step(v.m)", "return 1.0f;"] {
            assert!(code.contains(part), "{part}: {code}");
        }
        assert_eq!(code.matches("sqrtf(").count(), 1, "{code}");
        let plain = "negative = s\npositive = 0".parse::<Expression>().unwrap().device_code().unwrap();
        assert!(plain.contains("kUsesSums = false") && plain.contains("kUsesHardest = false"), "{plain}");
        assert!(code.contains("kUsesSums = true") && code.contains("kUsesHardest = true"), "{code}");
    }

    #[test]
    fn near_pairs_have_formulas_of_their_anchor() {
        let text =
            "near_negative = hardest - s\nslack = 0.5\nnegative = row.near_negatives\npositive = col.near_negatives";
        let code = text.parse::<Expression>().unwrap().device_code().unwrap();
        for part in
            ["t0 = v.hardest - s", "kSlack = 0.5f", "kUsesNear = true", "v.row.near_negatives", "kUsesHardest = true"]
        {
            assert!(code.contains(part), "{part}: {code}");
        }
    }

    #[test]
    fn the_tallest_formula_is_written_and_computed() {
        let text = format!("negative = s{}\npositive = 0", " + s".repeat(499));
        let tall: Expression = text.parse().unwrap();
        assert_eq!(tall.device_code().unwrap().matches(" + v.s;").count(), 499);
        assert!(tall.negative.number().is_nan());
    }

    #[test]
    fn numbers_beyond_f32_are_shown_in_their_expression() {
        for number in ["1e39", "1e-60"] {
            let text = format!("negative = {number} * s\npositive = 0");
            let error = text.parse::<Expression>().unwrap().device_code().unwrap_err().to_string();
            assert!(error.contains("f32") && error.contains(&text), "{error}");
        }
    }
}
