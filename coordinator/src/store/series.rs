//! The training series: one row per (job, phase, kind of row, step); the newest generation wins.

use std::path::Path;

use tl_proto::{ids::JobId, v1};

use super::{Error, open};

/// The series of all jobs.
pub struct Series {
    db: rusqlite::Connection,
}

impl Series {
    /// Opens the series in `dir`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let db = open(&dir.join("series.db"))?;
        // What is lost with the machine is reported again by the rank: no need to flush every batch.
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS row (
               id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, phase TEXT NOT NULL, part TEXT NOT NULL,
               step INTEGER NOT NULL, generation INTEGER NOT NULL, stage TEXT NOT NULL, epoch REAL NOT NULL, body TEXT NOT NULL,
               UNIQUE (job, phase, part, step));
             CREATE INDEX IF NOT EXISTS row_job ON row (job, id);",
        )?;
        Ok(Self { db })
    }

    /// Adds rows; a row of an older generation than the stored one has no effect.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn append(&mut self, rows: &[(JobId, v1::MetricRow)]) -> Result<(), Error> {
        let transaction = self.db.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO row (job, phase, part, step, generation, stage, epoch, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT (job, phase, part, step) DO UPDATE SET generation = excluded.generation, stage = excluded.stage,
                   epoch = excluded.epoch, body = excluded.body WHERE excluded.generation > row.generation",
            )?;
            for (job, row) in rows {
                let body = serde_json::to_string(&row.values).map_err(|e| Error::Entry(0, e))?;
                let part = if row.values.keys().any(|k| k.starts_with("val.")) { "val" } else { "train" };
                let (step, generation) = (row.step as i64, row.generation as i64);
                insert.execute((job.as_str(), &row.phase, part, step, generation, &row.stage, row.epoch, body))?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remove(&mut self, job: &JobId) -> Result<(), Error> {
        self.db.execute("DELETE FROM row WHERE job = ?", [job.as_str()])?;
        Ok(())
    }

    /// Forgets every job that `keep` does not want.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
        super::retain(&self.db, "row", keep)
    }

    /// Up to `limit` rows of a job after `cursor`, each with its cursor.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read(&self, job: &JobId, cursor: u64, limit: u32) -> Result<Vec<(u64, v1::MetricRow)>, Error> {
        let mut query = self.db.prepare_cached(
            "SELECT id, phase, step, generation, stage, epoch, body FROM row WHERE job = ? AND id > ? ORDER BY id LIMIT ?",
        )?;
        let rows = query.query_map((job.as_str(), cursor as i64, limit), |r| {
            let row = v1::MetricRow {
                phase: r.get(1)?,
                step: r.get::<_, i64>(2)? as u64,
                generation: r.get::<_, i64>(3)? as u64,
                stage: r.get(4)?,
                epoch: r.get(5)?,
                values: serde_json::from_str(&r.get::<_, String>(6)?).unwrap_or_default(),
            };
            Ok((r.get::<_, i64>(0)? as u64, row))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redone_step_replaces_the_old_one_and_a_late_old_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut series = Series::open(dir.path()).unwrap();
        let job = JobId::from_bits(1);
        let row = |generation, step, loss: f64| {
            let values = [("train.loss".to_owned(), loss)].into();
            (job.clone(), v1::MetricRow { phase: "p".into(), generation, step, values, ..v1::MetricRow::default() })
        };
        series.append(&[row(1, 1, 0.5), row(1, 2, 0.4), row(2, 2, 0.3), row(1, 2, 9.0)]).unwrap();
        let got: Vec<_> =
            series.read(&job, 0, 10).unwrap().into_iter().map(|(_, r)| (r.step, r.values["train.loss"])).collect();
        assert_eq!(got, [(1, 0.5), (2, 0.3)]);
    }

    #[test]
    fn the_rows_of_jobs_that_are_no_more_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut series = Series::open(dir.path()).unwrap();
        series.retain(|_| false).unwrap();
        let jobs = [1, 2, 3].map(JobId::from_bits);
        let row = |job: &JobId, step| (job.clone(), v1::MetricRow { step, ..v1::MetricRow::default() });
        series.append(&jobs.iter().flat_map(|j| [row(j, 1), row(j, 2)]).collect::<Vec<_>>()).unwrap();
        series.retain(|job| job == jobs[1].as_str()).unwrap();
        let left = jobs.map(|j| series.read(&j, 0, 10).unwrap().len());
        assert_eq!(left, [0, 2, 0]);
    }
}
