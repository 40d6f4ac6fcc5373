//! Lines of ranks, with retention per job.

use std::{collections::BTreeMap, path::Path};

use tl_proto::{ids::JobId, v1};

use super::{Error, open};

/// Lines that are kept of one job.
const KEEP: i64 = 200_000;

/// The logs of all jobs.
pub struct Logs {
    db: rusqlite::Connection,
    keep: i64,
    /// Lines of each job since its old ones were last cut off.
    fresh: BTreeMap<JobId, i64>,
}

impl Logs {
    /// Opens the logs in `dir`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let db = open(&dir.join("logs.db"))?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS line (
               id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, phase TEXT NOT NULL, generation INTEGER NOT NULL,
               rank INTEGER NOT NULL, sequence INTEGER NOT NULL, at INTEGER NOT NULL, body TEXT NOT NULL,
               UNIQUE (job, phase, generation, rank, sequence));
             CREATE INDEX IF NOT EXISTS line_job ON line (job, id);",
        )?;
        Ok(Self { db, keep: KEEP, fresh: BTreeMap::new() })
    }

    /// Adds lines; one that is there already has no effect.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn append(&mut self, lines: &[(JobId, v1::LogLine)]) -> Result<(), Error> {
        let transaction = self.db.transaction()?;
        let mut added: BTreeMap<&JobId, i64> = BTreeMap::new();
        for (job, l) in lines {
            let (generation, sequence, at) = (l.generation as i64, l.sequence as i64, l.unix_ms as i64);
            let new = transaction.execute(
                "INSERT OR IGNORE INTO line (job, phase, generation, rank, sequence, at, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job.as_str(), &l.phase, generation, l.rank, sequence, at, &l.text),
            )?;
            *added.entry(job).or_default() += new as i64;
        }
        for (job, new) in added {
            // How many there were is not known after a start.
            let fresh = self.fresh.entry(job.clone()).or_insert(self.keep);
            *fresh += new;
            // Counting takes a walk over all of them, which is not worth a few lines.
            if *fresh > self.keep / 20 {
                let oldest = "SELECT id FROM line WHERE job = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2";
                let cut = format!("DELETE FROM line WHERE job = ?1 AND id <= ({oldest})");
                transaction.execute(&cut, (job.as_str(), self.keep))?;
                *fresh = 0;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remove(&mut self, job: &JobId) -> Result<(), Error> {
        self.fresh.remove(job);
        self.db.execute("DELETE FROM line WHERE job = ?", [job.as_str()])?;
        Ok(())
    }

    /// Forgets every job that `keep` does not want.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
        super::retain(&self.db, "line", keep)
    }

    /// Up to `limit` lines of a job after `cursor`, and the cursor after the last of them.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read(&self, job: &JobId, cursor: u64, limit: u32) -> Result<(u64, Vec<v1::LogLine>), Error> {
        let mut query = self.db.prepare_cached(
            "SELECT id, phase, generation, rank, sequence, at, body FROM line WHERE job = ? AND id > ? ORDER BY id LIMIT ?",
        )?;
        let mut last = cursor;
        let rows = query.query_map((job.as_str(), cursor as i64, limit), |r| {
            last = r.get::<_, i64>(0)? as u64;
            Ok(v1::LogLine {
                phase: r.get(1)?,
                generation: r.get::<_, i64>(2)? as u64,
                rank: r.get(3)?,
                sequence: r.get::<_, i64>(4)? as u64,
                unix_ms: r.get::<_, i64>(5)? as u64,
                text: r.get(6)?,
            })
        })?;
        let lines = rows.collect::<Result<_, _>>()?;
        Ok((last, lines))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_sent_twice_are_kept_once_and_read_on_from_a_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs::open(dir.path()).unwrap();
        let (job, other) = (JobId::from_bits(1), JobId::from_bits(2));
        let line = |sequence, text: &str| v1::LogLine { sequence, text: text.into(), ..v1::LogLine::default() };
        logs.append(&[(job.clone(), line(0, "a")), (other, line(0, "x")), (job.clone(), line(1, "b"))]).unwrap();
        logs.append(&[(job.clone(), line(1, "b")), (job.clone(), line(2, "c"))]).unwrap();
        let texts = |lines: Vec<v1::LogLine>| lines.into_iter().map(|l| l.text).collect::<Vec<_>>();
        let (cursor, first) = logs.read(&job, 0, 2).unwrap();
        assert_eq!(texts(first), ["a", "b"]);
        let (end, rest) = logs.read(&job, cursor, 10).unwrap();
        assert_eq!(texts(rest), ["c"]);
        assert_eq!(logs.read(&job, end, 10).unwrap(), (end, Vec::new()));
    }

    #[test]
    fn each_job_keeps_its_own_newest_lines_however_much_others_say() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs { keep: 3, ..Logs::open(dir.path()).unwrap() };
        let (quiet, chatty) = (JobId::from_bits(1), JobId::from_bits(2));
        let line = |job: &JobId, sequence| (job.clone(), v1::LogLine { sequence, ..v1::LogLine::default() });
        let first = [line(&quiet, 0), line(&quiet, 1)];
        logs.append(&first).unwrap();
        let many: Vec<_> = (0..50).map(|n| line(&chatty, n)).collect();
        logs.append(&many).unwrap();
        // Also of a job that is not the first of its batch.
        logs.append(&[line(&quiet, 2), line(&chatty, 50), line(&chatty, 51)]).unwrap();
        let left = |job: &JobId| logs.read(job, 0, 99).unwrap().1.iter().map(|l| l.sequence).collect::<Vec<_>>();
        assert_eq!((left(&quiet), left(&chatty)), (vec![0, 1, 2], vec![49, 50, 51]));
        logs.retain(|job| job == quiet.as_str()).unwrap();
        let left = [quiet, chatty].map(|job| logs.read(&job, 0, 99).unwrap().1.len());
        assert_eq!(left, [3, 0]);
    }
}
