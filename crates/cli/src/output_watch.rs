//! How an output fills: `lockstep outputs status NAME --watch`.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::bail;
use lockstep_node::Home;
use lockstep_node::admin::{AdminAnswer, AdminError, AdminRequest, administer};
use lockstep_node::output_desk::{FED_ELSEWHERE, OutputReport, REMOVED};
use lockstep_types::OutputName;

/// How often the node is asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Over how much time the rate is taken.
const RATE_SPAN: Duration = Duration::from_secs(10);
const BAR_WIDTH: u64 = 30;

/// How far an output was, and when.
struct Look {
    at: Instant,
    done: u64,
}

/// What was seen of it.
struct Filling {
    /// The number that came next when it was first seen.
    begun: u64,
    looks: VecDeque<Look>,
}

/// The number of the task that the output gets next, and the one behind the newest.
fn ends(report: &OutputReport) -> (u64, u64) {
    let end = report.newest.map_or(0, |newest| newest.0 + 1);
    (end.saturating_sub(report.lag), end)
}

impl Filling {
    fn add(&mut self, at: Instant, next: u64) {
        self.looks.push_back(Look { at, done: next.saturating_sub(self.begun) });
        while self.looks.len() > 2 && self.looks.front().is_some_and(|look| at - look.at > RATE_SPAN) {
            self.looks.pop_front();
        }
    }

    /// Tasks a second of late.
    fn rate(&self) -> f64 {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return 0.0 };
        let seconds = (last.at - first.at).as_secs_f64();
        if seconds > 0.0 { last.done.saturating_sub(first.done) as f64 / seconds } else { 0.0 }
    }

    fn line(&self, report: &OutputReport, with_bar: bool) -> String {
        let (next, end) = ends(report);
        let (done, all) = (next.saturating_sub(self.begun), end.saturating_sub(self.begun));
        let percent = (done * 100).checked_div(all).unwrap_or(100).min(100);
        let part = |width: u64, sign: &str| sign.repeat(usize::try_from(width).unwrap_or(0));
        let full = percent * BAR_WIDTH / 100;
        let bar =
            if with_bar { format!("[{}{}] ", part(full, "#"), part(BAR_WIDTH - full, " ")) } else { String::new() };
        let rate = self.rate();
        let left = if rate >= 1.0 && report.lag > 0 { time_left(report.lag as f64 / rate) } else { String::new() };
        let mut line = format!("{bar}{percent:3} % {done} of {all} tasks, {rate:.0}/s{left}");
        if let Some(error) = &report.error {
            line += &format!(" ({}: {error})", report.state);
        } else if report.state != "publishing" && report.lag > 0 {
            line += &format!(" ({})", report.state);
        }
        line
    }
}

fn time_left(seconds: f64) -> String {
    let seconds = seconds.min(1e9) as u64;
    match seconds {
        0..60 => format!(", {seconds} s left"),
        60..3_600 => format!(", {} min {} s left", seconds / 60, seconds % 60),
        _ => format!(", {} h {} min left", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// How an output is; `None` where the node is not there, or does not feed it.
async fn look(home: &Home, name: &OutputName) -> anyhow::Result<Option<OutputReport>> {
    match administer(home, &AdminRequest::Outputs).await {
        Ok(AdminAnswer::Outputs(outputs)) => {
            let is_fed = |output: &OutputReport| output.name == *name && output.state != FED_ELSEWHERE;
            Ok(outputs.into_iter().find(is_fed))
        }
        Ok(_) => bail!("the node gave another answer than asked for: it has another version"),
        Err(AdminError::Refused(reason)) => bail!("{reason}"),
        Err(_) => Ok(None),
    }
}

/// Where progress is shown: a bar that is drawn again and again, or a line now and then.
struct Screen {
    terminal: bool,
    shown: Option<(Instant, String)>,
}

impl Screen {
    fn show(&mut self, line: &str, is_news: bool) {
        let due = self
            .shown
            .as_ref()
            .is_none_or(|(at, before)| before != line && (self.terminal || is_news || at.elapsed() >= LINE_INTERVAL));
        if !due {
            return;
        }
        let mut out = std::io::stderr().lock();
        // Nobody is helped by an error about the progress.
        let _ = if self.terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
        self.shown = Some((Instant::now(), line.to_owned()));
    }

    fn end(&self) {
        if self.terminal && self.shown.is_some() {
            eprintln!();
        }
    }
}

/// Shows how an output fills until it has every final task, over restarts of the node.
pub async fn run(home: &Home, name: &OutputName) -> anyhow::Result<()> {
    let mut screen = Screen { terminal: std::io::stderr().is_terminal(), shown: None };
    let (mut filling, mut said): (Option<Filling>, Option<String>) = (None, None);
    loop {
        match look(home, name).await? {
            None if home.config()?.outputs.iter().all(|output| output.name != *name) => {
                screen.end();
                bail!("config.toml names no output {name}");
            }
            None => screen.show("waiting for a node that feeds it: start it, or start it again", false),
            Some(report) if report.state == REMOVED => {
                screen.end();
                bail!("output {name} was removed from the network: `lockstep outputs resume` adds it anew");
            }
            Some(report) => {
                let (next, _) = ends(&report);
                let filling = filling.get_or_insert_with(|| Filling { begun: next, looks: VecDeque::new() });
                filling.add(Instant::now(), next);
                let is_news = report.error != said;
                said.clone_from(&report.error);
                screen.show(&filling.line(&report, screen.terminal), is_news);
                let is_known = report.settled && report.newest >= report.last_published;
                if report.lag == 0 && report.error.is_none() && report.state != "paused" && is_known {
                    screen.end();
                    let last = report.last_published.map_or_else(|| "no task".into(), |last| format!("task {last}"));
                    println!("output {name} has every final task, up to {last}");
                    return Ok(());
                }
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use lockstep_node::config::Scope;
    use lockstep_types::TaskNumber;

    use super::*;

    fn report(next: u64, newest: u64) -> OutputReport {
        OutputReport {
            name: "tasks".parse().unwrap(),
            scope: Scope::Node,
            state: "publishing".into(),
            last_published: Some(TaskNumber(next - 1)),
            newest: Some(TaskNumber(newest)),
            lag: newest + 1 - next,
            settled: true,
            error: None,
            refused: Vec::new(),
            refused_count: 0,
        }
    }

    #[test]
    fn a_line_has_share_rate_and_time_left_and_what_is_wrong() {
        let began = Instant::now();
        let mut filling = Filling { begun: 101, looks: VecDeque::new() };
        filling.add(began, 101);
        filling.add(began + Duration::from_secs(2), 301);
        let line = filling.line(&report(301, 1_100), true);
        assert_eq!(line, "[######                        ]  20 % 200 of 1000 tasks, 100/s, 8 s left");
        let stuck = OutputReport { state: "blocked".into(), error: Some("not ours".into()), ..report(301, 1_100) };
        assert!(filling.line(&stuck, false).ends_with("left (blocked: not ours)"));
        filling.add(began + Duration::from_secs(60), 1_101);
        assert!(filling.line(&report(1_101, 1_100), false).starts_with("100 % 1000 of 1000 tasks"));
        assert_eq!(time_left(3_700.0), ", 1 h 1 min left");
    }
}
