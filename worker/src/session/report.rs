//! Reports on their way: the files that ranks append to are the spool. They are read on from what the coordinator has
//! acknowledged, so that neither its absence nor a `kill -9` of ours loses a line.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tl_proto::{
    ids::{JobId, PhaseId},
    v1::{self, report::Body},
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Status;

use super::remote::Remote;
use crate::{store::folder::remove_empty, supervise::ipc::ROWS};

/// The file in a rank's folder that is its standard error.
pub const LOG: &str = "rank.log";
/// How often files are looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// Reports in one batch, and bytes of one file read for it.
const BATCH: usize = 500;
const BATCH_BYTES: u64 = 1 << 20;
/// Longest line of a log that is sent whole.
const MAX_LINE: usize = 4096;
/// How long an acknowledgement may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which rank of which attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The job.
    pub job: JobId,
    /// The phase.
    pub phase: PhaseId,
    /// The attempt.
    pub generation: u64,
    /// The rank.
    pub rank: u32,
}

/// Sends reports. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reporter {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<Spool>,
    drained: watch::Sender<u64>,
    /// Somebody waits: files are looked at before it is time.
    hurry: Notify,
}

#[derive(Default)]
struct Spool {
    tails: Vec<Tail>,
    activities: BTreeMap<(JobId, PhaseId), (v1::Activity, bool)>,
}

/// A file that grows.
struct Tail {
    key: Key,
    path: PathBuf,
    /// Bytes and lines that the coordinator has.
    offset: u64,
    line: u64,
    /// Whether its writer has ended.
    closed: bool,
    /// Whether its rank belonged to an earlier agent, so that nobody else will clear its folder away.
    adopted: bool,
}

impl Reporter {
    fn lock(&self) -> MutexGuard<'_, Spool> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is in `folder` of a rank, and what will be.
    pub fn follow(&self, key: &Key, folder: &Path) {
        self.add(key, folder, false);
    }

    fn add(&self, key: &Key, folder: &Path, adopted: bool) {
        let tail =
            |name| Tail { key: key.clone(), path: folder.join(name), offset: 0, line: 0, closed: adopted, adopted };
        self.lock().tails.extend([LOG, ROWS].map(tail));
    }

    /// Nothing is appended any more. Returns when everything has arrived, or after `patience`; says which.
    pub async fn drain(&self, key: &Key, patience: Duration) -> bool {
        for tail in self.lock().tails.iter_mut().filter(|t| t.key == *key) {
            tail.closed = true;
        }
        let mut drained = self.inner.drained.subscribe();
        let gone = drained.wait_for(|_| !self.lock().tails.iter().any(|t| t.key == *key));
        tokio::time::timeout(patience, gone).await.is_ok()
    }

    /// Returns when every row that a rank has written by now has arrived, or after `patience`; says which. A checkpoint
    /// that got ahead of its rows would outlive a node that takes them along.
    pub async fn rows_arrived(&self, key: &Key, patience: Duration) -> bool {
        let rows = |t: &Tail| t.key == *key && t.path.ends_with(ROWS);
        let path = self.lock().tails.iter().find(|t| rows(t)).map(|t| t.path.clone());
        let written = path.and_then(|p| std::fs::metadata(p).ok()).map_or(0, |m| m.len());
        self.inner.hurry.notify_one();
        let mut drained = self.inner.drained.subscribe();
        let there = drained.wait_for(|_| !self.lock().tails.iter().any(|t| rows(t) && t.offset < written));
        tokio::time::timeout(patience, there).await.is_ok()
    }

    /// Sends what a phase is doing; only the newest counts.
    pub fn activity(&self, job: &JobId, activity: v1::Activity) {
        let phase = PhaseId(activity.phase.clone());
        self.lock().activities.insert((job.clone(), phase), (activity, false));
    }

    /// What an earlier agent has left in `work`: its ranks are dead, their last words are not lost.
    pub fn adopt(&self, work: &Path) {
        let children = |p: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(p).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default()
        };
        let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        for job in children(work) {
            for phase in children(&job) {
                for generation in children(&phase) {
                    for rank in children(&generation) {
                        let key = (|| {
                            Some(Key {
                                job: name(&job).parse().ok()?,
                                phase: PhaseId(name(&phase).replace('.', "/")),
                                generation: name(&generation).parse().ok()?,
                                rank: name(&rank).parse().ok()?,
                            })
                        })();
                        if let Some(key) = key {
                            self.add(&key, &rank, true);
                        }
                    }
                    // An agent may have been killed between a rank's folder and those above it.
                    remove_empty(&generation.join("rank"));
                }
            }
        }
    }

    /// Sends for ever, over one connection after the other.
    pub async fn run(self, remote: Remote) {
        let mut pause = PERIOD;
        loop {
            match self.stream(&remote).await {
                Ok(()) => pause = PERIOD,
                Err(e) => {
                    tracing::debug!("reports wait: {e}");
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn stream(&self, remote: &Remote) -> Result<(), Status> {
        let (sender, receiver) = mpsc::channel(1);
        let mut acks = remote.reports().report(ReceiverStream::new(receiver)).await?.into_inner();
        let mut number = 0;
        loop {
            let (mut reports, marks) = self.gather();
            if reports.is_empty() {
                let _ = tokio::time::timeout(PERIOD, self.inner.hurry.notified()).await;
                continue;
            }
            for report in &mut reports {
                number += 1;
                report.sequence = number;
            }
            let closed = || Status::unavailable("the stream ended");
            sender.send(v1::ReportBatch { reports }).await.map_err(|_| closed())?;
            let ack = tokio::time::timeout(PATIENCE, acks.next()).await;
            let ack = ack.map_err(|_| Status::deadline_exceeded("no acknowledgement"))?.ok_or_else(closed)??;
            if ack.sequence == number {
                self.advance(marks);
            }
        }
    }

    /// The next batch, and where each file stands once it has arrived.
    fn gather(&self) -> (Vec<v1::Report>, Vec<Mark>) {
        let mut spool = self.lock();
        let (mut reports, mut marks) = (Vec::new(), Vec::new());
        for tail in &spool.tails {
            if reports.len() >= BATCH {
                break;
            }
            let (bodies, mark) = tail.read(BATCH - reports.len());
            let job = tail.key.job.to_string();
            reports.extend(bodies.into_iter().map(|b| v1::Report { sequence: 0, job_id: job.clone(), body: Some(b) }));
            marks.push(mark);
        }
        // A tail that has ended with nothing left goes even if there is nothing to say.
        if reports.is_empty() {
            drop(spool);
            self.advance(marks);
            spool = self.lock();
            marks = Vec::new();
        }
        for ((job, _), (activity, sent)) in &mut spool.activities {
            if !*sent {
                *sent = true;
                let body = Some(Body::Activity(activity.clone()));
                reports.push(v1::Report { sequence: 0, job_id: job.to_string(), body });
            }
        }
        spool.activities.retain(|_, (_, sent)| !*sent);
        (reports, marks)
    }

    fn advance(&self, marks: Vec<Mark>) {
        let mut spool = self.lock();
        for mark in marks {
            let Some(at) = spool.tails.iter().position(|t| t.path == mark.path) else { continue };
            let tail = &mut spool.tails[at];
            (tail.offset, tail.line) = (mark.offset, mark.line);
            if tail.closed && mark.end {
                let tail = spool.tails.remove(at);
                let folder = tail.path.parent().map(Path::to_owned);
                if let Some(folder) = folder.filter(|_| !spool.tails.iter().any(|t| t.key == tail.key)) {
                    if tail.adopted {
                        let _ = std::fs::remove_dir_all(&folder);
                        remove_empty(&folder);
                    } else {
                        let _ = std::fs::remove_file(folder.join(LOG));
                        let _ = std::fs::remove_file(folder.join(ROWS));
                    }
                }
            }
        }
        drop(spool);
        self.inner.drained.send_modify(|v| *v += 1);
    }
}

/// Where a file will stand.
struct Mark {
    path: PathBuf,
    offset: u64,
    line: u64,
    end: bool,
}

/// A row as the engine writes it.
#[derive(Deserialize)]
struct Row {
    step: u64,
    stage: String,
    epoch: f64,
    values: BTreeMap<String, f64>,
}

impl Tail {
    /// Up to `most` whole lines. The rest of a file whose writer has ended is a line, and so is what fills a batch alone.
    fn read(&self, most: usize) -> (Vec<Body>, Mark) {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.take(BATCH_BYTES).read_to_end(&mut bytes)
        });
        // A file that is not there yet, or no longer, is at its end.
        let at_end = read.is_ok_and(|n| (n as u64) < BATCH_BYTES) || bytes.is_empty();
        let (mut line, mut used, mut bodies) = (self.line, 0, Vec::new());
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let whole = piece.ends_with(b"\n") || (at_end && self.closed) || (!at_end && used == 0);
            if !whole || bodies.len() >= most {
                break;
            }
            bodies.extend(self.body(line, piece));
            line += 1;
            used += piece.len();
        }
        let end = at_end && used == bytes.len();
        (bodies, Mark { path: self.path.clone(), offset: self.offset + used as u64, line, end })
    }

    fn body(&self, line: u64, bytes: &[u8]) -> Option<Body> {
        let (phase, generation) = (self.key.phase.to_string(), self.key.generation);
        if self.path.ends_with(ROWS) {
            // A line that was cut off by a kill is no row.
            let row: Row = serde_json::from_slice(bytes).ok()?;
            let Row { step, stage, epoch, values } = row;
            return Some(Body::Metric(v1::MetricRow { phase, generation, step, stage, epoch, values }));
        }
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end().chars().take(MAX_LINE).collect();
        let rank = self.key.rank;
        Some(Body::Log(v1::LogLine { phase, generation, rank, sequence: line, unix_ms: now_ms(), text }))
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn key() -> Key {
        Key { job: JobId::from_bits(1), phase: PhaseId::new("main", "train"), generation: 1, rank: 0 }
    }

    fn texts(reports: &[v1::Report]) -> Vec<String> {
        let text = |r: &v1::Report| match &r.body {
            Some(Body::Log(l)) => format!("{}:{}", l.sequence, l.text),
            Some(Body::Metric(m)) => format!("step {}", m.step),
            other => format!("{other:?}"),
        };
        reports.iter().map(text).collect()
    }

    #[tokio::test]
    async fn rows_have_arrived_when_they_are_acknowledged_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let reporter = Reporter::default();
        reporter.follow(&key(), dir.path());
        assert!(reporter.rows_arrived(&key(), Duration::ZERO).await, "there are none");
        let row = r#"{"step":7,"stage":"s","epoch":1.0,"values":{}}"#.to_owned() + "\n";
        std::fs::write(dir.path().join(ROWS), &row).unwrap();
        assert!(!reporter.rows_arrived(&key(), Duration::ZERO).await);
        let (_, marks) = reporter.gather();
        assert!(!reporter.rows_arrived(&key(), Duration::ZERO).await, "on their way is not there");
        assert!(reporter.rows_arrived(&Key { rank: 9, ..key() }, Duration::ZERO).await, "others do not wait for them");
        let key = key();
        let wait = reporter.rows_arrived(&key, Duration::from_secs(60));
        let (arrived, ()) = tokio::join!(wait, async { reporter.advance(marks) });
        assert!(arrived);
    }

    #[test]
    fn lines_are_sent_again_until_acknowledged_and_a_half_line_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let reporter = Reporter::default();
        reporter.follow(&key(), dir.path());
        let mut log = File::create(dir.path().join(LOG)).unwrap();
        log.write_all(b"one\ntwo\nthr").unwrap();
        std::fs::write(
            dir.path().join(ROWS),
            r#"{"step":7,"stage":"s","epoch":1.0,"values":{"l":0.5}}"#.to_owned() + "\n",
        )
        .unwrap();
        assert_eq!(texts(&reporter.gather().0), ["0:one", "1:two", "step 7"]);
        let (again, marks) = reporter.gather();
        assert_eq!(again.len(), 3, "nothing was acknowledged");
        reporter.advance(marks);
        assert_eq!(texts(&reporter.gather().0), [""; 0]);
        log.write_all(b"ee\n").unwrap();
        let (rest, marks) = reporter.gather();
        assert_eq!(texts(&rest), ["2:three"]);
        reporter.advance(marks);
        log.write_all(b"last words").unwrap();
        reporter.lock().tails.iter_mut().for_each(|t| t.closed = true);
        let (rest, marks) = reporter.gather();
        assert_eq!(texts(&rest), ["3:last words"]);
        reporter.advance(marks);
        assert!(reporter.lock().tails.is_empty(), "an ended file that has arrived is done with");
        assert!(!dir.path().join(LOG).exists());
    }

    #[test]
    fn a_line_longer_than_a_batch_does_not_stop_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let reporter = Reporter::default();
        reporter.follow(&key(), dir.path());
        reporter.lock().tails.iter_mut().for_each(|t| t.closed = true);
        let long = "x".repeat(2 * BATCH_BYTES as usize);
        std::fs::write(dir.path().join(LOG), format!("a\n{long}\nb\n")).unwrap();
        let mut all = Vec::new();
        while !reporter.lock().tails.is_empty() {
            let (reports, marks) = reporter.gather();
            all.extend(texts(&reports));
            reporter.advance(marks);
        }
        assert!(all.first().unwrap().ends_with(":a") && all.last().unwrap().ends_with(":b"));
        assert!(all.iter().all(|l| l.len() <= MAX_LINE + 8));
    }

    #[test]
    fn an_agent_sends_what_its_predecessor_had_not() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(key().job.as_str()).join("main.train/1/0");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(LOG), "before the kill").unwrap();
        let reporter = Reporter::default();
        reporter.adopt(dir.path());
        let (reports, marks) = reporter.gather();
        assert_eq!(texts(&reports), ["0:before the kill"]);
        assert_eq!(reporter.lock().tails[0].key, key());
        reporter.advance(marks);
        let left = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left(), 0, "what has arrived is cleared away, with the folders above it");
        std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
        Reporter::default().adopt(dir.path());
        assert_eq!(left(), 0, "and so are folders that were left empty");
    }
}
