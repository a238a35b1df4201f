//! Documented functions of one source file.

use std::ops::Range;

use super::lexer::{Kind, Token, tokens};

/// A documented function: what retrieval has to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// First paragraph of the documentation.
    pub doc: String,
    /// Identifiers and keywords of the signature and the body, in order, separated by spaces. Comments, and with them
    /// every documentation line, and literals are not in it.
    pub source: String,
}

/// The functions with a body and a documentation comment, in order of appearance.
pub fn documented(source: &str) -> Vec<Function> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut doc: Vec<&str> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Doc => {
                // Not `lines`, to which an empty line is none at all.
                doc.extend(source[tokens[at].span.clone()].split('\n'));
                at += 1;
            }
            // An attribute between documentation and function keeps the documentation.
            Kind::Punct(b'#') if !doc.is_empty() => at = after_attribute(&tokens, at),
            _ if doc.is_empty() => at += 1,
            _ => {
                let paragraph = first_paragraph(&doc);
                doc.clear();
                // Nested functions are found too: the scan goes on behind the signature's first token.
                if let Some((name, span)) = function(source, &tokens, at).filter(|_| !paragraph.is_empty()) {
                    let name = source[tokens[name].span.clone()].to_owned();
                    found.push(Function { name, doc: paragraph, source: identifiers(source, &tokens[span]) });
                }
                at += 1;
            }
        }
    }
    found
}

/// The lines up to the first empty one, without the stars that decorate block comments.
fn first_paragraph(lines: &[&str]) -> String {
    let clean = lines.iter().map(|line| line.trim().trim_start_matches('*').trim());
    let paragraph: Vec<&str> = clean.skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty()).collect();
    paragraph.join(" ")
}

fn after_attribute(tokens: &[Token], hash: usize) -> usize {
    let open = hash + 1;
    if tokens.get(open).is_some_and(|t| t.kind == Kind::Punct(b'[')) {
        return closing(tokens, open).map_or(tokens.len(), |close| close + 1);
    }
    open
}

/// Index of the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Punct(b'(' | b'[' | b'{') => depth += 1,
            Kind::Punct(b')' | b']' | b'}') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

/// Name and all tokens of the function whose qualifiers start at `start`; `None` if another item starts there or it has
/// no body.
fn function(source: &str, tokens: &[Token], start: usize) -> Option<(usize, Range<usize>)> {
    const QUALIFIERS: [&str; 7] = ["pub", "default", "const", "async", "unsafe", "extern", "safe"];
    let mut at = start;
    loop {
        let token = tokens.get(at)?;
        at = match token.kind {
            Kind::Ident if &source[token.span.clone()] == "fn" => break,
            Kind::Ident if QUALIFIERS.contains(&&source[token.span.clone()]) => at + 1,
            // The scope of `pub(crate)`, the name in `extern "C"`.
            Kind::Punct(b'(') => closing(tokens, at)? + 1,
            Kind::Literal => at + 1,
            _ => return None,
        };
    }
    let name = at + 1;
    loop {
        at = match tokens.get(at)?.kind {
            Kind::Punct(b'{') => return Some((name, start..closing(tokens, at)? + 1)),
            Kind::Punct(b'(' | b'[') => closing(tokens, at)? + 1,
            Kind::Punct(b';') => return None,
            _ => at + 1,
        };
    }
}

fn identifiers(source: &str, tokens: &[Token]) -> String {
    let names = tokens.iter().filter(|t| t.kind == Kind::Ident).map(|t| &source[t.span.clone()]);
    names.collect::<Vec<_>>().join(" ")
}
