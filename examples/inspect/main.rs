//! Takes one batch apart: mining, weights, gradients; see README.md beside this file.

mod anatomy;
mod args;
#[path = "../common/mod.rs"]
mod common;
mod field;
mod files;
mod text;

use std::process::ExitCode;

use clap::Parser;

use anatomy::Batch;
use args::Args;
use common::output::{check_writable, write_whole};
use common::{Outcome, say};

fn main() -> ExitCode {
    common::exit(program(&Args::parse()))
}

fn program(args: &Args) -> Outcome<()> {
    args.check()?;
    let objective = args.objective()?;
    args.plot.as_deref().map_or(Ok(()), check_writable)?;
    let batch = Batch::read(args)?;
    let anatomy = anatomy::dissect(args, &objective, &batch)?;
    // Everything is computed before the first file is written.
    let plot = args.plot.as_ref().map(|_| field::draw(&objective, &anatomy)).transpose()?;
    files::write(args, &objective, &batch, &anatomy)?;
    if let Some((path, svg)) = args.plot.as_ref().zip(plot) {
        write_whole(path, svg.as_bytes())?;
    }
    say(text::describe(args, &objective, &batch, &anatomy));
    say(format!("files: {}", args.out.display()));
    Ok(())
}
