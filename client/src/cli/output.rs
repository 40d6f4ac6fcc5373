//! What reaches a person or a program: bars and sentences, or lines of JSON.

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tl_proto::v1;

use super::args::Format;
use crate::Error;

/// A text with the control characters written out that `stays` does not want: names and messages come from elsewhere, and
/// must not colour a terminal or move its cursor.
fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !stays(c) {
            out.extend(c.escape_debug());
        } else {
            out.push(c);
        }
    }
    out
}

/// A text of lines as it is printed.
fn lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// A name as it is printed: in one line.
pub(super) fn shown(name: &str) -> String {
    escaped(name, |_| false)
}

/// Prints.
pub(super) struct Output {
    json: bool,
    terminal: bool,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { json: format == Format::Json, terminal: std::io::stderr().is_terminal() }
    }

    /// One line of JSON, or the text of `text`.
    pub fn print(&self, value: &Value, text: impl FnOnce() -> String) {
        let line = if self.json { value.to_string() } else { lines(&text()) };
        // A reader that has gone away wants no more.
        let mut out = std::io::stdout().lock();
        let _ = std::io::Write::write_all(&mut out, format!("{}\n", line.trim_end()).as_bytes());
    }

    /// A sentence on the way; nothing for programs.
    pub fn say(&self, text: &str) {
        if !self.json {
            eprintln!("{}", lines(text));
        }
    }

    pub fn error(&self, e: &Error) {
        if self.json {
            let line =
                json!({ "event": "error", "message": e.to_string(), "hint": e.hint(), "exit_code": e.exit_code() });
            println!("{line}");
        }
        eprintln!("error: {}", lines(&e.to_string()));
        if !e.hint().is_empty() {
            eprintln!("hint: {}", lines(e.hint()));
        }
    }

    pub fn bytes_bar(&self) -> BytesBar {
        let bar = (self.terminal && !self.json).then(ProgressBar::no_length);
        if let (Some(bar), Ok(style)) = (&bar, ProgressStyle::with_template("{msg} {bytes} ({bytes_per_sec})")) {
            bar.set_style(style);
        }
        BytesBar(bar)
    }

    pub fn progress(&self) -> Progress<'_> {
        Progress { output: self, bars: MultiProgress::new(), phases: BTreeMap::new(), why: String::new() }
    }
}

/// Bytes on their way. Nothing is shown where nobody looks.
pub(super) struct BytesBar(Option<ProgressBar>);

impl BytesBar {
    pub fn show(&self, what: &str, done: u64) {
        if let Some(bar) = &self.0 {
            if bar.message() != what {
                bar.set_message(what.to_owned());
            }
            bar.set_position(done);
        }
    }

    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A table with aligned columns.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|cell| shown(cell)).collect()).collect();
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count());
        cells.chain([head[c].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(c, w)| format!("{c:w$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let body = rows.iter().map(|r| line(r.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(body).collect::<Vec<_>>().join("\n")
}

/// The live view of one job.
pub(super) struct Progress<'a> {
    output: &'a Output,
    bars: MultiProgress,
    phases: BTreeMap<String, Phase>,
    why: String,
}

#[derive(Default)]
struct Phase {
    bar: Option<ProgressBar>,
    activity: String,
    /// The last line of its history that was printed.
    told: Option<String>,
    speed: String,
}

/// What training came to, in words. What learns from pairs looks at no labels, and has no accuracy; nor has what mixes samples.
fn trained(loss: Option<f64>, accuracy: Option<f64>) -> Option<String> {
    let accuracy = accuracy.map(|a| format!(", accuracy {:.1} %", 100.0 * a)).unwrap_or_default();
    Some(format!("loss {:.4}{accuracy}", loss?))
}

/// Lines after the last one that was told. A history keeps its newest lines only, so counting them would not do.
fn untold<'h>(history: &'h [String], told: Option<&str>) -> &'h [String] {
    let after = told.and_then(|told| history.iter().rposition(|line| line == told)).map_or(0, |at| at + 1);
    &history[after..]
}

impl Progress<'_> {
    pub fn job(&mut self, job: &v1::Job) {
        if self.output.json {
            self.output.print(&json!({ "event": "job", "job": job }), String::new);
            return;
        }
        let waits = matches!(job.status.as_str(), "queued" | "running")
            && !matches!(job.why_code.as_str(), "running" | "starting");
        if waits && job.why != self.why {
            self.line(&format!("waiting: {}", job.why));
        }
        self.why.clone_from(&job.why);
        for phase in &job.phases {
            let told = self.phases.entry(phase.id.clone()).or_default().told.clone();
            for text in untold(&phase.history, told.as_deref()) {
                self.line(&format!("{}: {text}", phase.id));
            }
            let known = self.phases.entry(phase.id.clone()).or_default();
            known.told = phase.history.last().cloned().or(told);
            if phase.status != "running"
                && let Some(bar) = known.bar.take()
            {
                bar.finish_and_clear();
            }
        }
        // That of teachers' units goes with the end of their training.
        let gone = |id: &String| job.phases.iter().all(|p| p.id != *id);
        for (_, known) in self.phases.iter_mut().filter(|(id, _)| gone(id)) {
            if let Some(bar) = known.bar.take() {
                bar.finish_and_clear();
            }
        }
    }

    pub fn activity(&mut self, a: &v1::Activity) {
        if self.output.json {
            self.output.print(&json!({ "event": "activity", "activity": a }), String::new);
            return;
        }
        let known = self.phases.entry(a.phase.clone()).or_default();
        if !self.output.terminal {
            if known.activity != a.name {
                known.activity.clone_from(&a.name);
                eprintln!("{}", shown(&format!("{}: {}", a.phase, a.name)));
            }
            return;
        }
        let bar = known.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {elapsed} (eta {eta}) {msg}");
            let bar = self.bars.add(ProgressBar::new(a.total));
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        if known.activity != a.name {
            known.activity.clone_from(&a.name);
            bar.reset();
            bar.set_prefix(shown(&format!("{} {}", a.phase, a.name)));
        }
        bar.set_length(a.total);
        bar.set_position(a.done);
    }

    pub fn metric(&mut self, row: &v1::MetricRow) {
        if self.output.json {
            self.output.print(&json!({ "event": "metric", "metric": row }), String::new);
            return;
        }
        let known = self.phases.entry(row.phase.clone()).or_default();
        let get = |key: &str| row.values.get(key).copied();
        if let Some(figures) = trained(get("train.loss"), get("train.accuracy")) {
            let per_s = |key: &str, unit: &str, digits| get(key).map(|rate| format!(", {rate:.digits$} {unit}/s"));
            known.speed =
                per_s("samples_per_s", "samples", 0).or(per_s("episodes_per_s", "episodes", 1)).unwrap_or_default();
            if let Some(bar) = &known.bar {
                bar.set_message(figures + &known.speed);
            }
        }
        if let (Some(loss), Some(accuracy)) = (get("val.loss"), get("val.accuracy")) {
            let (phase, stage, epoch, speed) = (&row.phase, &row.stage, row.epoch, &known.speed);
            let figures = trained(get("train.epoch_loss"), get("train.epoch_accuracy")).unwrap_or_default();
            let mut text = format!(
                "{phase}: stage `{stage}`, epoch {epoch:.0}: {figures}{speed}; validation loss {loss:.4}, accuracy {:.1} %",
                100.0 * accuracy
            );
            for (name, value) in row.values.iter().collect::<std::collections::BTreeMap<_, _>>() {
                if let Some(task) = name.strip_prefix("tasks.").and_then(|name| name.strip_suffix(".accuracy")) {
                    text += &format!("; {task} {:.1} %", 100.0 * value);
                }
            }
            if let [Some(first), Some(ten)] = ["val.recall_1", "val.recall_10"].map(get) {
                text += &format!("; recall@1 {:.1} %, recall@10 {:.1} %", 100.0 * first, 100.0 * ten);
            }
            if let Some(interval) = get("val.interval") {
                text += &format!(" ± {:.1} over episodes", 100.0 * interval);
            }
            if let Some(entropy) = get("target.entropy") {
                text += &format!("; other domain: entropy {entropy:.3}");
            }
            if let Some(density) = get("target.snd") {
                text += &format!(", density {density:.3}");
            }
            if let Some(accuracy) = get("target.accuracy") {
                text += &format!(", accuracy {:.1} %", 100.0 * accuracy);
            }
            self.line(&text);
        }
    }

    /// A sentence above the bars.
    pub fn line(&self, text: &str) {
        if self.output.json {
            return;
        }
        let text = lines(text);
        if self.output.terminal {
            let _ = self.bars.println(text);
        } else {
            eprintln!("{text}");
        }
    }

    pub fn clear(&self) {
        let _ = self.bars.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_has_lost_old_lines_is_told_on_from_the_last_one() {
        let history = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
        assert_eq!(untold(&history(&["a", "b"]), None), ["a", "b"]);
        assert_eq!(untold(&history(&["a", "c", "d"]), Some("c")), ["d"]);
        assert!(untold(&history(&["a"]), Some("a")).is_empty());
        assert_eq!(untold(&history(&["x", "y"]), Some("gone")), ["x", "y"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["x", "y"], &rows), "x     y\na     b\nlong  c");
    }

    #[test]
    fn names_neither_colour_a_terminal_nor_begin_a_line() {
        let name = "a\nb\u{1b}[31m\u{9b}é";
        assert_eq!(shown(name), "a\\nb\\u{1b}[31m\\u{9b}é");
        assert_eq!(lines("é\tb\r\n\u{7}"), "é\tb\\r\n\\u{7}");
        assert_eq!(table(&["x", "y"], &[vec!["a\nb".into(), "c".into()]]), "x     y\na\\nb  c");
    }
}
