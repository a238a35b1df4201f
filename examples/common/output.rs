//! Output files that are whole or not there, and numbers for people.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Failure, Outcome};

/// Writes the file beside its destination and then renames it, so that a reader never sees a half-written one and a
/// failure leaves what was there.
pub fn write_whole(path: &Path, contents: &[u8]) -> Outcome<()> {
    let temporary = temporary_name(path)?;
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| {
        // The first error is the one to report; a leftover that cannot be removed adds nothing to it.
        let _ = fs::remove_file(&temporary);
        Failure::file(path, format!("cannot be written: {e}"))
    })
}

/// Fails early, before hours of work, if the file could not be written.
pub fn check_writable(path: &Path) -> Outcome<()> {
    if path.is_dir() {
        return Err(Failure::file(path, "is a directory, expected a file name"));
    }
    let temporary = temporary_name(path)?;
    fs::File::create(&temporary).map_err(|e| Failure::file(path, format!("cannot be written: {e}")))?;
    fs::remove_file(&temporary).map_err(|e| Failure::file(&temporary, format!("cannot be removed: {e}")))
}

fn temporary_name(path: &Path) -> Outcome<PathBuf> {
    let name = path.file_name().ok_or_else(|| Failure::file(path, "is not a file name"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.part", std::process::id()));
    Ok(path.with_file_name(hidden))
}

/// The number with `digits` significant digits and no trailing zeros, as C's `%g`.
pub fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { value.to_string() };
    }
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-5..digits as i32).contains(&exponent) {
        let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
        trim_zeros(&format!("{value:.decimals$}")).to_owned()
    } else {
        format!("{}e{exponent}", trim_zeros(mantissa))
    }
}

fn trim_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

/// A table in which the first column is left-aligned and every other one right-aligned.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let columns = header.len();
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(header[c].chars().count())
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (c, (cell, &width)) in cells.zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count().min(width));
            out += &if c == 0 { format!("{cell}{padding}") } else { format!("  {padding}{cell}") };
        }
        out.trim_end().to_owned() + "\n"
    };
    let mut out = line(&mut header.iter().copied());
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}
