//! The conversation with `tests/bench/run`, a line each way.

use std::time::Instant;

use serde_json::{Value, json};

/// The harness, as a piece of work sees it.
pub struct Harness {
    /// Bytes of this process before it prepared anything.
    base: u64,
}

/// A line of `/proc/self/status`, in bytes; 0 where there is none.
fn status(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn say(line: &Value) {
    println!("{line}");
}

impl Harness {
    /// Remembers how large the process is now.
    pub fn new() -> Self {
        Self { base: status("VmRSS") }
    }

    /// This build cannot do the work.
    pub fn missing(&self, why: &str) -> anyhow::Result<()> {
        say(&json!({ "missing": why }));
        Ok(())
    }

    /// The work is prepared and warm.
    pub fn ready(&self) {
        say(&json!({ "ready": true }));
    }

    /// How many repetitions come next; `None` at the end.
    pub fn next(&self) -> Option<usize> {
        loop {
            let mut line = String::new();
            if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            match line.trim().split_once(' ') {
                Some(("go", n)) => return n.parse().ok(),
                _ => say(&json!({ "peak": status("VmHWM").saturating_sub(self.base) })),
            }
        }
    }

    /// What one repetition took.
    pub fn answer(&self, seconds: f64) {
        say(&json!({ "seconds": seconds }));
    }

    /// Does `work` twice to get warm, then as it is told.
    pub fn serve(&mut self, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        work()?;
        work()?;
        self.ready();
        while let Some(n) = self.next() {
            let started = Instant::now();
            (0..n).try_for_each(|_| work())?;
            self.answer(started.elapsed().as_secs_f64() / n.max(1) as f64);
        }
        Ok(())
    }
}
