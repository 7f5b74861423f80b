//! What the user sees of an import: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::counted;

/// How often a plain line is printed.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Progress of one input.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    stored_bytes: Option<u64>,
    began: Instant,
    printed: Instant,
    consumed: u64,
    rows: u64,
    input_bytes: u64,
    quiet: bool,
}

impl Progress {
    /// Begins to show an input of `stored_bytes` (`None`: unknown).
    pub fn new(name: &str, stored_bytes: Option<u64>, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let (bar, template) = match stored_bytes {
                Some(bytes) => (
                    ProgressBar::new(bytes),
                    "{prefix} {bar:30} {percent:>3}%  {msg}  {eta} left",
                ),
                None => (ProgressBar::new_spinner(), "{prefix} {spinner} {msg}"),
            };
            // A template of ours that indicatif cannot read would only cost the looks.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            name: name.to_owned(),
            stored_bytes,
            began: now,
            printed: now,
            consumed: 0,
            rows: 0,
            input_bytes: 0,
            quiet,
        }
    }

    /// Stored bytes up to `consumed` are done (sent or skipped); `rows` and `input_bytes` more
    /// were sent.
    pub fn advance(&mut self, consumed: u64, rows: u64, input_bytes: u64) {
        self.consumed = consumed;
        self.rows += rows;
        self.input_bytes += input_bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(consumed);
            bar.set_message(self.figures());
        } else if !self.quiet && self.printed.elapsed() >= LINE_EVERY {
            self.printed = Instant::now();
            let left = self
                .left()
                .map_or_else(String::new, |l| format!(", {l} s left"));
            eprintln!("{}: {}{left}", self.name, self.figures());
        }
    }

    /// Prints a line without tearing the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Rows, rows a second and MB (decoded) a second so far.
    pub fn figures(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-3);
        format!(
            "{}, {:.0} rows/s, {:.1} MB/s",
            counted(self.rows, "row"),
            self.rows as f64 / seconds,
            self.input_bytes as f64 / 1e6 / seconds
        )
    }

    fn left(&self) -> Option<u64> {
        let all = self.stored_bytes? as f64;
        let done = self.consumed as f64;
        (done > 0.0).then(|| {
            (self.began.elapsed().as_secs_f64() * (all - done).max(0.0) / done).round() as u64
        })
    }
}
