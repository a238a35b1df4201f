//! How code search finds functions and words in sources.

#[path = "../../examples/train_retrieval/data/code/functions.rs"]
mod functions;
#[path = "../../examples/train_retrieval/data/code/lexer.rs"]
mod lexer;
#[path = "../../examples/train_retrieval/data/words.rs"]
mod words;

use functions::{Function, documented};

fn function(name: &str, doc: &str, source: &str) -> Function {
    Function { name: name.to_owned(), doc: doc.to_owned(), source: source.to_owned() }
}

#[test]
fn documented_functions_with_a_body_are_found() {
    let source = r####"
//! Module documentation is nobody's.
/// Adds two numbers.
/// In one sentence.
///
/// Not in the first paragraph.
#[inline]
#[must_use = "a { in a literal"]
pub(crate) const unsafe extern "C" fn add(a: u8, b: [u8; { 1 }]) -> u8 { a + b[0] }

/// A type, not a function.
struct Other;
fn bare() {}

trait T {
    /// No body.
    fn required(&self);
    /** A block
     * comment.
     */
    fn provided<'a>(&'a self) -> char { let c = '{'; let q = '\''; let s = "}\"}"; c }
}

/// Outer.
fn outer() {
    // ordinary words stay out
    /* so /* do */ these */
    let text = r##"fn "# hidden() {"##;
    /// Inner.
    fn inner() { b"}"; br#"}"#; b'}'; }
    inner()
}
//// Four slashes are an ordinary comment.
fn after() {}
"####;
    let want = [
        function("add", "Adds two numbers. In one sentence.", "pub crate const unsafe extern fn add a u8 b u8 u8 a b"),
        function("provided", "A block comment.", "fn provided self char let c let q let s c"),
        function("outer", "Outer.", "fn outer let text fn inner inner"),
        function("inner", "Inner.", "fn inner"),
    ];
    assert_eq!(documented(source), want);
}

#[test]
fn broken_sources_end_early_and_never_panic() {
    let source = "/// Doc.\nfn f<'a>(x: &'a str) { \"unclosed { é '\\";
    for end in (0..=source.len()).filter(|&end| source.is_char_boundary(end)) {
        assert_eq!(documented(&source[..end]), [], "the first {end} bytes");
    }
    for odd in ["/// D\n#", "/// D\n#[", "/** D", "/**/", "/***/fn f(){}", "/// D\nfn f)", "'", "b'", "r#\"", "é'é"] {
        documented(odd);
    }
}

#[test]
fn identifiers_are_split_into_lower_case_words() {
    let split = |text: &str| {
        let mut out = Vec::new();
        words::for_each_word(text, |word| out.push(word.to_owned()));
        out
    };
    assert_eq!(
        split("HTTPServer::from_utf8_lossy(fooBar2) a É`ÉtéBien`"),
        ["http", "server", "from", "utf8", "lossy", "foo", "bar2", "été", "bien"]
    );
}
