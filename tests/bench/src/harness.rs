//! The conversation with `tests/bench/run`, a line each way.

use std::time::Instant;

use serde_json::{Value, json};
use tl_engine::gpu::Place;

/// The harness, as a piece of work sees it.
pub struct Harness {
    /// Bytes of this process before it prepared anything.
    base: u64,
    /// The GPU that the work is done on, if that is one.
    gpu: Option<Place>,
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
        Self { base: status("VmRSS"), gpu: None }
    }

    /// The work is done on a GPU, and it is its memory that counts.
    pub fn on(self, gpu: Place) -> Self {
        Self { gpu: Some(gpu), ..self }
    }

    /// Waits until a GPU has done all that it was told to; the seconds that this took.
    pub fn wait(&self) -> f64 {
        let started = Instant::now();
        if let Some(gpu) = &self.gpu {
            // What has failed there fails what comes next too, which says so.
            let _ = gpu.wait();
        }
        started.elapsed().as_secs_f64()
    }

    /// Bytes that the work has needed at its worst; 0 where nobody has counted.
    fn peak(&self) -> u64 {
        match &self.gpu {
            None => status("VmHWM").saturating_sub(self.base),
            Some(gpu) => gpu.peak().ok().flatten().unwrap_or(0),
        }
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
                _ => say(&json!({ "peak": self.peak() })),
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
