//! The log of events, from which the state is rebuilt. An event counts once its transaction is on disk.

use std::path::Path;

use crate::core::{Event, State, apply};

use super::{Error, open};

/// Version of the stored events and of the snapshot; older ones are read too. 2: steps are given up, gates judged, models
/// pinned. 3: what teachers say is shared out. 4: slots are judged, and devices may be lost.
const VERSION: i64 = 4;
/// Events after which a snapshot replaces what came before.
const SNAPSHOT_EVERY: i64 = 5_000;

/// The log.
pub struct Lifecycle {
    db: rusqlite::Connection,
    since_snapshot: i64,
}

impl Lifecycle {
    /// Opens the log in `dir` and replays it.
    ///
    /// # Errors
    /// A disk that refuses, or an entry of a newer version.
    pub fn open(dir: &Path) -> Result<(Self, State), Error> {
        let db = open(&dir.join("lifecycle.db"))?;
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), upto INTEGER NOT NULL, body TEXT NOT NULL);",
        )?;
        // Older releases have written snapshots without a version.
        if db.prepare("SELECT version FROM snapshot").is_err() {
            db.execute_batch("ALTER TABLE snapshot ADD COLUMN version INTEGER NOT NULL DEFAULT 1")?;
        }
        let snapshot = db.query_row("SELECT upto, version, body FROM snapshot", [], |r| {
            Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?, r.get::<_, String>(2)?))
        });
        let (upto, mut state) = match snapshot {
            Ok((_, version, _)) if version > VERSION => return Err(newer("the snapshot", version)),
            Ok((upto, _, body)) => (upto, serde_json::from_str(&body).map_err(|e| Error::Entry(upto, e))?),
            Err(rusqlite::Error::QueryReturnedNoRows) => (0, State::default()),
            Err(e) => return Err(e.into()),
        };
        let mut since_snapshot = 0;
        {
            let mut query = db.prepare("SELECT id, version, body FROM event WHERE id > ? ORDER BY id")?;
            let mut rows = query.query([upto])?;
            while let Some(row) = rows.next()? {
                let (id, version, body): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                if version > VERSION {
                    return Err(newer(&format!("event {id}"), version));
                }
                let event: Event = serde_json::from_str(&body).map_err(|e| Error::Entry(id, e))?;
                apply(&mut state, &event);
                since_snapshot += 1;
            }
        }
        Ok((Self { db, since_snapshot }, state))
    }

    /// Appends events as one transaction; they are on disk when it returns.
    ///
    /// # Errors
    /// The disk refuses; none of them counts then.
    pub fn append(&mut self, events: &[Event]) -> Result<(), Error> {
        let transaction = self.db.transaction()?;
        for event in events {
            let body = serde_json::to_string(event).map_err(|e| Error::Entry(0, e))?;
            transaction.execute("INSERT INTO event (version, body) VALUES (?, ?)", (VERSION, body))?;
        }
        transaction.commit()?;
        self.since_snapshot += events.len() as i64;
        Ok(())
    }

    /// Replaces the log by a snapshot if it has grown long.
    ///
    /// # Errors
    /// The disk refuses; the log is as before then.
    pub fn compact(&mut self, state: &State) -> Result<(), Error> {
        if self.since_snapshot < SNAPSHOT_EVERY {
            return Ok(());
        }
        let body = serde_json::to_string(state).map_err(|e| Error::Entry(0, e))?;
        let transaction = self.db.transaction()?;
        let upto: i64 = transaction.query_row("SELECT COALESCE(MAX(id), 0) FROM event", [], |r| r.get(0))?;
        transaction.execute(
            "INSERT OR REPLACE INTO snapshot (id, upto, version, body) VALUES (1, ?, ?, ?)",
            (upto, VERSION, body),
        )?;
        transaction.execute("DELETE FROM event WHERE id < ?", [upto])?;
        transaction.commit()?;
        self.since_snapshot = 0;
        Ok(())
    }
}

fn newer(what: &str, version: i64) -> Error {
    Error::Refused(format!("{what} was written by a newer coordinator (version {version})"))
}

#[cfg(test)]
mod tests {
    use tl_proto::ids::{JobId, NodeId, PhaseId};

    use super::*;

    fn event(i: u64) -> Event {
        Event::NodeJoined {
            node: NodeId::from_bits(u128::from(i % 7)),
            name: format!("n{i}"),
            incarnation: i.to_string(),
            build: "b".into(),
            slots: Vec::new(),
            catalog: Box::default(),
            hardware: Box::default(),
        }
    }

    #[test]
    fn what_an_older_release_has_written_of_a_node_is_read() {
        let mut stored: serde_json::Value = serde_json::to_value(event(0)).unwrap();
        stored.as_object_mut().unwrap().remove("hardware");
        assert_eq!(serde_json::from_value::<Event>(stored).unwrap(), event(0));
    }

    #[test]
    fn what_an_older_release_has_written_knows_nothing_of_numbers_and_of_who_came_first() {
        let (job, phase) = (JobId::from_bits(1), PhaseId::new("main", "train"));
        let (build, device, numbers) = ("b".to_owned(), "cuda".to_owned(), String::new());
        let split = Event::TeachingSplit { job, phase, units: 2, build, device, numbers, at: 1 };
        let mut stored = serde_json::to_value(&split).unwrap();
        stored.as_object_mut().unwrap().remove("numbers").unwrap();
        assert_eq!(serde_json::from_value::<Event>(stored).unwrap(), split);
        let mut state = State::default();
        apply(&mut state, &event(1));
        let mut stored = serde_json::to_value(&state).unwrap();
        stored.as_object_mut().unwrap().remove("joins").unwrap();
        for node in stored["nodes"].as_object_mut().unwrap().values_mut() {
            node.as_object_mut().unwrap().remove("joined").unwrap();
        }
        let read: State = serde_json::from_value(stored).unwrap();
        assert_eq!((read.joins, read.nodes.values().map(|n| n.joined).collect::<Vec<_>>()), (0, vec![0]));
    }

    #[test]
    fn a_snapshot_of_an_older_release_is_read_and_one_of_a_newer_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut want = State::default();
        apply(&mut want, &event(1));
        let body = serde_json::to_string(&want).unwrap();
        let db = open(&dir.path().join("lifecycle.db")).unwrap();
        db.execute_batch(
            "CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), upto INTEGER NOT NULL, body TEXT NOT NULL)",
        )
        .unwrap();
        db.execute("INSERT INTO snapshot (id, upto, body) VALUES (1, 0, ?)", [body]).unwrap();
        assert_eq!(Lifecycle::open(dir.path()).unwrap().1, want);
        db.execute("UPDATE snapshot SET version = ?", [VERSION + 1]).unwrap();
        let refused = Lifecycle::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused.contains("the snapshot was written by a newer coordinator"), "{refused}");
    }

    #[test]
    fn events_of_older_releases_are_read_and_those_of_a_newer_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut want = State::default();
        let events = [event(1), event(2)];
        events.iter().for_each(|e| apply(&mut want, e));
        Lifecycle::open(dir.path()).unwrap().0.append(&events).unwrap();
        let written = |version: i64| {
            let db = open(&dir.path().join("lifecycle.db")).unwrap();
            db.execute("UPDATE event SET version = ? WHERE id = 2", [version]).unwrap();
            Lifecycle::open(dir.path()).map(|(_, state)| state)
        };
        for version in 1..=VERSION {
            assert_eq!(written(version).unwrap(), want);
        }
        let refused = written(VERSION + 1).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused.contains("event 2 was written by a newer coordinator"), "{refused}");
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart_also_past_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let mut want = State::default();
        let (mut log, _) = Lifecycle::open(dir.path()).unwrap();
        let events: Vec<_> = (0..SNAPSHOT_EVERY as u64 + 3).map(event).collect();
        events.iter().for_each(|e| apply(&mut want, e));
        log.append(&events).unwrap();
        log.compact(&want).unwrap();
        log.append(&[event(99)]).unwrap();
        apply(&mut want, &event(99));
        drop(log);
        assert_eq!(Lifecycle::open(dir.path()).unwrap().1, want);
    }
}
