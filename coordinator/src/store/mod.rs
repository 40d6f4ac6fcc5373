//! What survives a `kill -9`: the lifecycle log, the series, the logs of ranks; and blobs beside them.

mod blobs;
mod lifecycle;
mod logs;
mod room;
mod series;

use std::{io::ErrorKind, path::Path};

pub use blobs::Blobs;
pub use lifecycle::Lifecycle;
pub use logs::Logs;
pub use series::Series;

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error("database: {0}")]
    Sql(#[from] rusqlite::Error),
    /// The disk.
    #[error("disk: {0}")]
    Io(#[from] std::io::Error),
    /// A stored entry that this build cannot read.
    #[error("stored entry {0} cannot be read: {1}")]
    Entry(i64, serde_json::Error),
    /// The disk has less than so many bytes left, which the log needs.
    #[error("less than {} MiB are left, which the log needs", .0.div_ceil(1 << 20))]
    Tight(u64),
    /// An upload that is not where its sender takes it to be, because another one has got in its way.
    #[error("the upload stands at {there}, not at {at}")]
    Gap {
        /// Bytes that have arrived.
        there: u64,
        /// Where the sender went on.
        at: u64,
    },
    /// A request that contradicts what is stored.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether the disk had no room left for it.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sql(e) => e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Self::Io(e) => matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
            Self::Tight(_) => true,
            Self::Entry(..) | Self::Gap { .. } | Self::Refused(_) => false,
        }
    }
}

/// Deletes the rows of every job that `keep` does not want from a table that has an index on its jobs.
fn retain(db: &rusqlite::Connection, table: &str, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
    // One look into the index per job, however many rows it has.
    let next = format!("SELECT MIN(job) FROM {table} WHERE job > known.job");
    let mut query = db.prepare(&format!(
        "WITH RECURSIVE known(job) AS (
           SELECT MIN(job) FROM {table} UNION ALL SELECT ({next}) FROM known WHERE known.job IS NOT NULL)
         SELECT job FROM known WHERE job IS NOT NULL"
    ))?;
    let jobs: Vec<String> = query.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?;
    for job in jobs.iter().filter(|job| !keep(job)) {
        db.execute(&format!("DELETE FROM {table} WHERE job = ?"), [job.as_str()])?;
    }
    Ok(())
}

/// Opens a database that flushes each transaction to disk.
fn open(path: &Path) -> Result<rusqlite::Connection, Error> {
    let db = rusqlite::Connection::open(path)?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(db)
}
