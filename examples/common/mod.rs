//! What the example programs share.
// Every program includes this module as its own and uses a part of it.
#![allow(dead_code)]

pub mod backend;
pub mod npy;
pub mod objective;
pub mod output;

use std::fmt;
use std::io::Write;
use std::path::Path;

/// A message for the user that ends the program: what is wrong, where, what was expected and what was found.
#[derive(Debug)]
pub struct Failure(String);

/// Shorthand for a result with [`Failure`].
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// A failure that concerns a file.
    pub fn file(path: &Path, message: impl fmt::Display) -> Self {
        Self(format!("{}: {message}", path.display()))
    }

    /// A failure that concerns a command-line option.
    pub fn option(name: &str, message: impl fmt::Display) -> Self {
        Self(format!("--{name}: {message}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<simgrad::Error> for Failure {
    fn from(error: simgrad::Error) -> Self {
        Self(error.to_string())
    }
}

/// Ends the program: 0 after success, 2 with the message on stderr otherwise, as for a bad command line.
pub fn exit(outcome: Outcome<()>) -> std::process::ExitCode {
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            std::process::ExitCode::from(2)
        }
    }
}

/// Prints a line. A reader that has gone away, as in `program | head`, is no reason to end the program: its files are
/// still wanted.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
