//! From text to formulas.

use std::str::FromStr;

use super::{Binary, Expression, Near, Node, Statistic, Unary, Variable};
use crate::error::{Error, Result};

impl FromStr for Expression {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidOption`] that shows the line and where in it the mistake is.
    fn from_str(text: &str) -> Result<Self> {
        let mut known: Vec<(String, Part)> =
            vec![("logit".to_owned(), Part::leaf(Node::Variable(Variable::Similarity)))];
        let mut given: Vec<String> = Vec::new();
        let mut near = Near { slack: 0.1, negative: None, positive: None };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((name, formula)) = line.split_once('=') else {
                return Err(refuse(line, 0, "a line of the form `name = formula`"));
            };
            let name = name.trim();
            let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name {
                return Err(refuse(line, 0, "a name of letters, digits and underscores"));
            }
            if Variable::named(name).is_some() || Unary::named(name).is_some() || matches!(name, "min" | "max") {
                return Err(refuse(line, 0, "a name that has no other meaning"));
            }
            if given.iter().any(|other| other == name) {
                return Err(refuse(line, 0, "a name that is not taken yet"));
            }
            let start = line.len() - formula.len();
            let part = Parser { line, at: start, known: &known, near: &near }.whole()?;
            given.push(name.to_owned());
            let near_pairs = matches!(name, "near_negative" | "near_positive");
            let (allowed, expected): (fn(Variable) -> bool, _) = match name {
                "logit" => (Variable::early, "a logit of `s` and parameters alone"),
                "slack" => (|_| false, SLACK),
                _ if near_pairs => (Variable::near, "a formula of `s`, `pair`, `hardest` and parameters alone"),
                _ => (
                    Variable::late,
                    "a formula of an anchor's `row.…` or `col.…`; `pair` and `hardest` are of near pairs",
                ),
            };
            if !part.node.all(allowed) {
                return Err(refuse(line, start, expected));
            }
            match name {
                "near_negative" => near.negative = Some(part.node),
                "near_positive" => near.positive = Some(part.node),
                _ => {
                    if name == "slack" {
                        near.slack = part.node.number();
                        if !(near.slack >= 0.0 && near.slack.is_finite()) {
                            return Err(refuse(line, start, SLACK));
                        }
                    }
                    known.retain(|(other, _)| other != name);
                    known.push((name.to_owned(), part));
                }
            }
        }
        let take = |name: &str| -> Result<Node> {
            let at = known.iter().position(|(other, _)| other == name);
            at.map(|at| known[at].1.node.clone()).ok_or_else(|| refuse(text.trim(), 0, &format!("a line `{name} = …`")))
        };
        let (logit, positive, negative) = (take("logit")?, take("positive")?, take("negative")?);
        let near = (near.negative.is_some() || near.positive.is_some()).then_some(near);
        Ok(Self { logit, positive, negative, near, one_positive: true, source: text.to_owned() })
    }
}

/// Numbers, names and operations of a formula with those of the parameters that it uses, so that lines that double each other
/// end soon.
const LARGEST: usize = 10_000;

/// Operations of it within each other, so that no text exhausts the stack of whoever goes through the tree.
const TALLEST: usize = 500;

const SLACK: &str = "a slack of at least 0 that is a finite number, or a formula of such numbers";

/// The refusal of a line, with a mark below the place.
fn refuse(line: &str, at: usize, expected: &str) -> Error {
    let column = line.get(..at).map_or(0, |before| before.chars().count());
    let got = format!("\n    {line}\n    {}^", " ".repeat(column));
    Error::InvalidOption { op: "Expression::from_str", arg: "text", expected: expected.to_owned(), got }
}

/// Recursive descent over one line.
struct Parser<'a> {
    line: &'a str,
    at: usize,
    known: &'a [(String, Part)],
    near: &'a Near,
}

/// Parentheses within each other, so that no text exhausts the parser's stack.
const DEEPEST: usize = 64;

/// A part of a formula.
#[derive(Clone)]
struct Part {
    node: Node,
    /// Numbers, variables and operations in it.
    size: usize,
    /// Operations within each other.
    height: usize,
}

impl Part {
    const fn leaf(node: Node) -> Self {
        Self { node, size: 1, height: 1 }
    }
}

impl<'a> Parser<'a> {
    fn whole(&mut self) -> Result<Part> {
        let part = self.sum(0)?;
        match self.peek() {
            None => Ok(part),
            Some(_) => Err(self.refuse("an operator or the end of the line")),
        }
    }

    fn refuse(&self, expected: &str) -> Error {
        refuse(self.line, self.at, expected)
    }

    fn rest(&self) -> &'a str {
        self.line.get(self.at..).unwrap_or_default()
    }

    /// The next character that is not a space.
    fn peek(&mut self) -> Option<char> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        self.rest().chars().next()
    }

    fn takes(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn expect(&mut self, wanted: char) -> Result<()> {
        if self.takes(wanted) { Ok(()) } else { Err(self.refuse(&format!("`{wanted}`"))) }
    }

    /// Refuses what has become too large.
    fn bounded(&self, part: Part) -> Result<Part> {
        if part.size > LARGEST {
            return Err(self.refuse(&format!("at most {LARGEST} numbers, names and operations up to here")));
        }
        if part.height > TALLEST {
            return Err(self.refuse(&format!("at most {TALLEST} operations within each other up to here")));
        }
        Ok(part)
    }

    fn unary(&self, op: Unary, a: Part) -> Result<Part> {
        self.bounded(Part { node: Node::Unary(op, Box::new(a.node)), size: a.size + 1, height: a.height + 1 })
    }

    fn binary(&self, op: Binary, a: Part, b: Part) -> Result<Part> {
        let (size, height) = (a.size + b.size + 1, a.height.max(b.height) + 1);
        self.bounded(Part { node: Node::Binary(op, Box::new([a.node, b.node])), size, height })
    }

    fn sum(&mut self, depth: usize) -> Result<Part> {
        let mut part = self.product(depth)?;
        loop {
            let op = match self.peek() {
                Some('+') => Binary::Add,
                Some('-') => Binary::Subtract,
                _ => return Ok(part),
            };
            self.at += 1;
            let other = self.product(depth)?;
            part = self.binary(op, part, other)?;
        }
    }

    fn product(&mut self, depth: usize) -> Result<Part> {
        let mut part = self.factor(depth)?;
        loop {
            let op = match self.peek() {
                Some('*') => Binary::Multiply,
                Some('/') => Binary::Divide,
                _ => return Ok(part),
            };
            self.at += 1;
            let other = self.factor(depth)?;
            part = self.binary(op, part, other)?;
        }
    }

    fn factor(&mut self, depth: usize) -> Result<Part> {
        if depth > DEEPEST {
            return Err(self.refuse(&format!("at most {DEEPEST} levels of parentheses and signs")));
        }
        match self.peek() {
            Some('-') => {
                self.at += 1;
                let a = self.factor(depth + 1)?;
                self.unary(Unary::Negate, a)
            }
            Some('(') => {
                self.at += 1;
                let part = self.sum(depth + 1)?;
                self.expect(')')?;
                Ok(part)
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_ascii_alphabetic() || c == '_' => self.name(depth),
            _ => Err(self.refuse("a number, a name or `(`")),
        }
    }

    fn number(&mut self) -> Result<Part> {
        let text = self.rest();
        let mut end = text.len();
        for (k, c) in text.char_indices() {
            let exponent_sign = (c == '+' || c == '-') && text[..k].ends_with(['e', 'E']);
            if !(c.is_ascii_digit() || c == '.' || c == 'e' || c == 'E' || exponent_sign) {
                end = k;
                break;
            }
        }
        match text[..end].parse::<f64>() {
            Ok(value) if value.is_finite() => {
                self.at += end;
                Ok(Part::leaf(Node::Number(value)))
            }
            _ => Err(self.refuse("a finite number")),
        }
    }

    /// Refuses a mean over near pairs of which nothing says what it is the mean of.
    fn defined(&self, variable: Variable, start: usize) -> Result<()> {
        let (Variable::Row(statistic) | Variable::Col(statistic)) = variable else { return Ok(()) };
        match statistic {
            Statistic::NearNegatives if self.near.negative.is_none() => {
                Err(refuse(self.line, start, "a line `near_negative = …` before this"))
            }
            Statistic::NearPositives if self.near.positive.is_none() => {
                Err(refuse(self.line, start, "a line `near_positive = …` before this"))
            }
            _ => Ok(()),
        }
    }

    fn name(&mut self, depth: usize) -> Result<Part> {
        let text = self.rest();
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(text.len());
        let (name, start) = (&text[..end], self.at);
        self.at += end;
        if let Some((_, part)) = self.known.iter().find(|(known, _)| known == name) {
            return Ok(part.clone());
        }
        if let Some(variable) = Variable::named(name) {
            self.defined(variable, start)?;
            return Ok(Part::leaf(Node::Variable(variable)));
        }
        if let Some(op) = Unary::named(name) {
            self.expect('(')?;
            let a = self.sum(depth + 1)?;
            self.expect(')')?;
            return self.unary(op, a);
        }
        let op = match name {
            "min" => Binary::Min,
            "max" => Binary::Max,
            _ => return Err(refuse(self.line, start, "a name that is known here")),
        };
        self.expect('(')?;
        let a = self.sum(depth + 1)?;
        self.expect(',')?;
        let b = self.sum(depth + 1)?;
        self.expect(')')?;
        self.binary(op, a, b)
    }
}
