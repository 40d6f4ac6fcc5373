//! Lines of ranks, with retention per job.

use std::path::Path;

use tl_proto::{ids::JobId, v1};

use super::{Error, open};

/// Lines that are kept of one job.
const KEEP: i64 = 200_000;

/// The logs of all jobs.
pub struct Logs {
    db: rusqlite::Connection,
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
        Ok(Self { db })
    }

    /// Adds lines; one that is there already has no effect.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn append(&mut self, lines: &[(JobId, v1::LogLine)]) -> Result<(), Error> {
        let transaction = self.db.transaction()?;
        for (job, l) in lines {
            let (generation, sequence, at) = (l.generation as i64, l.sequence as i64, l.unix_ms as i64);
            transaction.execute(
                "INSERT OR IGNORE INTO line (job, phase, generation, rank, sequence, at, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job.as_str(), &l.phase, generation, l.rank, sequence, at, &l.text),
            )?;
        }
        if let Some((job, _)) = lines.first() {
            let cut = "DELETE FROM line WHERE job = ?1 AND id <= (SELECT MAX(id) FROM line WHERE job = ?1) - ?2";
            transaction.execute(cut, (job.as_str(), KEEP))?;
        }
        Ok(transaction.commit()?)
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remove(&mut self, job: &JobId) -> Result<(), Error> {
        self.db.execute("DELETE FROM line WHERE job = ?", [job.as_str()])?;
        Ok(())
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
}
