//! Just enough of Rust's lexical structure to find functions: comments, literals, lifetimes and brackets told apart.

use std::ops::Range;

/// Kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An outer documentation line or block; the range is its text without the markers.
    Doc,
    /// An identifier or keyword.
    Ident,
    /// One other character.
    Punct(u8),
    /// A literal or a lifetime; which one does not matter here.
    Literal,
}

/// One token and where it is.
#[derive(Clone, Debug)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Bytes in the source.
    pub span: Range<usize>,
}

/// The tokens of a source file. Comments that are not outer documentation are left out. Malformed input ends the list
/// early or yields odd tokens, never an error: a file that the compiler would refuse has no functions worth finding.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { bytes: source.as_bytes(), at: 0, out: Vec::new() };
    while lexer.at < lexer.bytes.len() {
        lexer.step();
    }
    lexer.out
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<Token>,
}

fn is_ident(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.at.min(self.bytes.len())..]
    }

    fn push(&mut self, kind: Kind, span: Range<usize>) {
        self.out.push(Token { kind, span });
    }

    fn step(&mut self) {
        let start = self.at;
        let byte = self.peek(0);
        if byte.is_ascii_whitespace() {
            self.at += 1;
        } else if self.rest().starts_with(b"//") {
            self.line_comment();
        } else if self.rest().starts_with(b"/*") {
            self.block_comment();
        } else if let Some(length) = self.string_prefix() {
            self.at += length;
            self.string();
            self.push(Kind::Literal, start..self.at);
        } else if byte == b'\'' || self.rest().starts_with(b"b'") {
            self.at += usize::from(byte == b'b');
            self.quote();
            self.push(Kind::Literal, start..self.at);
        } else if byte.is_ascii_digit() {
            self.skip_while(is_ident);
            self.push(Kind::Literal, start..self.at);
        } else if is_ident(byte) {
            self.skip_while(is_ident);
            self.push(Kind::Ident, start..self.at);
        } else {
            self.at += 1;
            self.push(Kind::Punct(byte), start..self.at);
        }
    }

    fn skip_while(&mut self, accept: impl Fn(u8) -> bool) {
        while self.at < self.bytes.len() && accept(self.bytes[self.at]) {
            self.at += 1;
        }
    }

    fn line_comment(&mut self) {
        let start = self.at;
        self.skip_while(|b| b != b'\n');
        let line = &self.bytes[start..self.at];
        // Four slashes and more are an ordinary comment.
        if line.starts_with(b"///") && !line.starts_with(b"////") {
            self.push(Kind::Doc, start + 3..self.at);
        }
    }

    fn block_comment(&mut self) {
        let start = self.at;
        let mut depth = 0;
        while self.at < self.bytes.len() {
            if self.rest().starts_with(b"/*") {
                depth += 1;
                self.at += 2;
            } else if self.rest().starts_with(b"*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    break;
                }
            } else {
                self.at += 1;
            }
        }
        let text = &self.bytes[start..self.at];
        if text.starts_with(b"/**") && !text.starts_with(b"/***") && text.len() > 5 {
            self.push(Kind::Doc, start + 3..self.at - 2);
        }
    }

    /// Length of the letters before the hashes or the quote of a string literal; `None` if none starts here.
    fn string_prefix(&self) -> Option<usize> {
        const PREFIXES: [&[u8]; 6] = [b"", b"b", b"c", b"r", b"br", b"cr"];
        let starts_string = |prefix: &&[u8]| {
            let Some(rest) = self.rest().strip_prefix(*prefix) else { return false };
            let hashes = if prefix.ends_with(b"r") { rest.iter().take_while(|&&b| b == b'#').count() } else { 0 };
            rest.get(hashes) == Some(&b'"')
        };
        PREFIXES.iter().find(|prefix| starts_string(prefix)).map(|prefix| prefix.len())
    }

    /// From the hashes or the quote to the end of the literal.
    fn string(&mut self) {
        let raw = self.at > 0 && self.bytes[self.at - 1] == b'r';
        let hashes = self.rest().iter().take_while(|&&b| b == b'#').count();
        self.at += hashes + 1;
        while self.at < self.bytes.len() {
            let byte = self.peek(0);
            self.at += 1;
            if byte == b'\\' && !raw {
                self.at += 1;
            } else if byte == b'"' && self.rest().iter().take(hashes).filter(|&&b| b == b'#').count() == hashes {
                self.at += hashes;
                break;
            }
        }
        self.at = self.at.min(self.bytes.len());
    }

    /// A character literal, or the quote and name of a lifetime.
    fn quote(&mut self) {
        self.at += 1;
        if self.peek(0) == b'\\' {
            self.at += 2;
            self.skip_while(|b| b != b'\'' && b != b'\n');
            self.at = (self.at + 1).min(self.bytes.len());
            return;
        }
        let width = char_width(self.peek(0));
        if self.peek(width) == b'\'' {
            self.at += width + 1;
        } else {
            self.skip_while(is_ident);
        }
    }
}

/// Bytes of the UTF-8 character that starts with this byte.
fn char_width(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}
