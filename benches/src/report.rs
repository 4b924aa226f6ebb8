//! Tables for people, JSON for programs. Does not know what the columns mean.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::machine::{Facts, load_average};
use crate::statistics::Summary;

/// What a row says when the library's own rows were not built in.
pub(crate) const NOT_BUILT: &str = "not built: feature `ours`";

/// Rows of text under a heading, aligned when printed.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&str]) -> Self {
        Table { rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A row that has a name and a reason why there is no figure.
    pub(crate) fn absent(&mut self, name: &str, reason: &str) {
        self.rows.push(vec![name.to_owned(), reason.to_owned()]);
    }

    pub(crate) fn print(&self) {
        let columns = self.rows[0].len();
        let full_rows = || self.rows.iter().filter(|row| row.len() == columns);
        let width = |column: usize| full_rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns).map(width).collect();
        widths[0] = self.rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for (cell, &width) in row[1..].iter().zip(&widths[1..]) {
                let absent = row.len() < columns;
                line += &if absent { format!("  {cell}") } else { format!("  {cell:>width$}") };
            }
            println!("{}", line.trim_end());
        }
    }
}

/// `1.02 ± .03` as the tables of the project write it.
pub(crate) fn ratio(summary: &Summary) -> String {
    if summary.two_standard_errors.is_nan() {
        return format!("{:.2}", summary.trimmed_mean);
    }
    format!("{:.2} ± {:.2}", summary.trimmed_mean, summary.two_standard_errors)
}

/// `median (min–max)`.
pub(crate) fn spread(summary: &Summary) -> String {
    format!("{:.2} ({:.2}–{:.2})", summary.median, summary.min, summary.max)
}

/// The same for figures that may be far below one.
pub(crate) fn spread_fine(summary: &Summary) -> String {
    format!("{:.3} ({:.3}–{:.3})", summary.median, summary.min, summary.max)
}

/// One figure with digits fit for nanoseconds and microseconds.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[derive(Serialize)]
struct Report<'a, R: Serialize> {
    machine: &'a Facts,
    load_average_at_the_end: String,
    results: &'a R,
}

/// Ends a run: tells the load it ends under, and writes `results` with the machine's facts to `path`.
pub(crate) fn finish(path: Option<&Path>, machine: &Facts, results: &impl Serialize) -> io::Result<()> {
    let load_average_at_the_end = load_average();
    println!("load at the end: {load_average_at_the_end}");
    let Some(path) = path else { return Ok(()) };
    let mut file = BufWriter::new(File::create(path)?);
    serde_json::to_writer_pretty(&mut file, &Report { machine, load_average_at_the_end, results })?;
    writeln!(file)?;
    file.flush()?;
    println!("written: {}", path.display());
    Ok(())
}
