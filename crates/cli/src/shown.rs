//! Progress on a terminal.

use std::io::{IsTerminal as _, Write as _};

/// One line that is written again and again; nothing where there is no terminal.
#[derive(Default)]
pub struct Shown {
    line: String,
}

impl Shown {
    /// Shows how many of all bytes are done.
    pub fn show(&mut self, done: u64, total: u64) {
        let percent = (done * 100).checked_div(total).unwrap_or(0);
        self.say(&format!("{percent:3} % of {total} bytes"));
    }

    /// Shows a line in the place of the last one.
    pub fn say(&mut self, line: &str) {
        if self.line == line || !std::io::stderr().is_terminal() {
            return;
        }
        // Blanks cover what is left of a longer line.
        let width = self.line.chars().count();
        eprint!("\r{line:width$}");
        let _ = std::io::stderr().flush();
        line.clone_into(&mut self.line);
    }

    /// Ends the line.
    pub fn end(&self) {
        if !self.line.is_empty() {
            eprintln!();
        }
    }
}
