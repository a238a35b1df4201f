//! Words of documentation and of identifiers.

/// Calls `emit` for every word of at least two characters: identifiers are split at underscores and at changes of case,
/// and lower-cased.
pub fn for_each_word(text: &str, mut emit: impl FnMut(&str)) {
    let mut word = String::new();
    let mut flush = |word: &mut String| {
        // A single character says nothing.
        if word.chars().nth(1).is_some() {
            emit(word);
        }
        word.clear();
    };
    let chars: Vec<char> = text.chars().collect();
    for (i, &c) in chars.iter().enumerate() {
        if !c.is_alphanumeric() {
            flush(&mut word);
            continue;
        }
        let previous = i.checked_sub(1).map_or(' ', |p| chars[p]);
        let next_is_lower = chars.get(i + 1).is_some_and(|n| n.is_lowercase());
        // `fooBar` splits before B, `HTTPServer` before S.
        if c.is_uppercase() && (!previous.is_uppercase() || next_is_lower) {
            flush(&mut word);
        }
        word.extend(c.to_lowercase());
    }
    flush(&mut word);
}
