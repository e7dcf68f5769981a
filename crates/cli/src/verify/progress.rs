//! How far a check is, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use lockstep_node::check::Progress;

/// How often a bar is drawn.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const BAR_WIDTH: u64 = 30;

/// See the module's documentation.
pub struct Shown {
    terminal: bool,
    part: String,
    total: u64,
    done: u64,
    began: Instant,
    drawn: Instant,
}

impl Default for Shown {
    fn default() -> Self {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, part: String::new(), total: 0, done: 0, began: now, drawn: now }
    }
}

fn amount(units: u64) -> String {
    match units {
        0..10_000 => units.to_string(),
        10_000..10_000_000 => format!("{} k", units / 1_000),
        _ => format!("{} M", units / 1_000_000),
    }
}

/// Done of total, in percent; estimates of the total may be too small.
fn percent(done: u64, total: u64) -> Option<u64> {
    (total > 0).then(|| (done.saturating_mul(100) / total).min(100))
}

impl Shown {
    fn text(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let rate = amount((self.done as f64 / seconds) as u64);
        let percent = percent(self.done, self.total);
        let bar = percent.filter(|_| self.terminal).map(|percent| {
            let full = percent * BAR_WIDTH / 100;
            let part = |width: u64, sign: &str| sign.repeat(usize::try_from(width).unwrap_or(0));
            format!("[{}{}] ", part(full, "#"), part(BAR_WIDTH - full, " "))
        });
        let percent = percent.map(|percent| format!("{percent:3} % ")).unwrap_or_default();
        format!("{:<18} {}{percent}{} ({rate}/s)", self.part, bar.unwrap_or_default(), amount(self.done))
    }

    fn draw(&mut self, is_end: bool) {
        self.drawn = Instant::now();
        let mut out = std::io::stderr().lock();
        // Nobody is helped by an error about the progress.
        let _ = match (self.terminal, is_end) {
            (true, false) => write!(out, "\r\x1b[K{}", self.text()),
            (true, true) => writeln!(out, "\r\x1b[K{}", self.text()),
            (false, _) => writeln!(out, "{}", self.text()),
        };
        let _ = out.flush();
    }

    fn end(&mut self) {
        if !self.part.is_empty() {
            self.draw(true);
        }
    }
}

impl Progress for Shown {
    fn begin(&mut self, part: &str, total: u64) {
        // The part before came to its end, whatever its total was thought to be.
        self.total = self.done;
        self.end();
        (self.part, self.total, self.done) = (part.to_owned(), total, 0);
        self.began = Instant::now();
    }

    fn advance(&mut self, units: u64) {
        self.done = self.done.saturating_add(units);
        let interval = if self.terminal { BAR_INTERVAL } else { LINE_INTERVAL };
        if self.drawn.elapsed() >= interval {
            self.draw(false);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_part_share_and_rate() {
        let mut shown = Shown::default();
        shown.terminal = false;
        shown.begin("batches", 200);
        shown.advance(50);
        assert!(shown.text().starts_with("batches             25 % 50 ("), "{}", shown.text());
        shown.terminal = true;
        assert!(shown.text().contains("[#######                       ]"), "{}", shown.text());
        assert_eq!((percent(5, 4), percent(1, 0)), (Some(100), None));
    }
}
