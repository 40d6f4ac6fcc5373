//! The grains of one step side by side, for batch-norms that take the statistics of the whole batch: each grain makes
//! its ordinary passes on a thread of its own, and at such a layer waits until all grains of all ranks are there.
//!
//! One grain of a rank computes at a time. What all of them keep for backward is in memory at once.

#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::ScopedJoinHandle,
};

use crate::{
    Error, Full, Result,
    collective::Collective,
    nn::{Grains, Join},
    num::pool,
};

/// Computes this rank's grains of a step, which `shares` divides among the ranks; a rank without grains takes part too.
///
/// # Errors
/// That of the first grain to fail, which ends the others; a lost peer.
pub(super) fn run<T: Send>(
    shares: &[Range<usize>],
    group: &mut dyn Collective,
    work: impl Fn(usize, &dyn Grains) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let own = shares[group.rank()].clone();
    pool::lend();
    let meeting = Meeting::new(own.len());
    let mut outcomes = std::thread::scope(|scope| {
        // Whatever ends this, nobody is left waiting.
        let end = End(&meeting);
        let mut threads = Vec::with_capacity(own.len());
        for (place, grain) in own.enumerate() {
            let (seat, work) = (Seat { meeting: &meeting, place }, &work);
            let go = move || {
                seat.turn()?;
                let outcome = work(grain, &seat);
                seat.leave(outcome.is_ok());
                outcome
            };
            let thread = std::thread::Builder::new().name(format!("grain-{grain}")).spawn_scoped(scope, go);
            threads.push(thread.map_err(|e| Error::Internal(format!("a grain has no thread: {e}")))?);
        }
        meeting.lead(shares, group)?;
        drop(end);
        let join = |t: ScopedJoinHandle<'_, Result<T>>| t.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok::<_, Error>(threads.into_iter().map(join).collect::<Vec<_>>())
    })?;
    let failed = meeting.lock().failed;
    let all = match failed {
        // The others only say that they were ended.
        Some(place) => outcomes.swap_remove(place).map(|_| Vec::new()),
        None => outcomes.into_iter().collect::<Result<Vec<T>>>(),
    };
    all.map_err(|e| e.full_of(Full::Grains))
}

/// Where a grain stands.
enum Place {
    Computes,
    /// At a layer, with its numbers.
    Waits(Vec<f64>, Join),
    Done,
}

struct State {
    places: Vec<Place>,
    /// A grain computes.
    busy: bool,
    /// How often all have met.
    round: u64,
    /// What came of the last time.
    sums: Arc<[f64]>,
    /// The grain that failed first.
    failed: Option<usize>,
    /// Nothing more will come.
    over: bool,
}

/// The grains of this rank, and whoever speaks for them.
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a rank says of its grains, in front of their numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Nobody,
    Waiting,
    Done,
}

impl Meeting {
    fn new(grains: usize) -> Self {
        let places = (0..grains).map(|_| Place::Computes).collect();
        let state = State { places, busy: false, round: 0, sums: Arc::new([]), failed: None, over: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, until: impl Fn(&State) -> bool) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, |s| !until(s)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Speaks for the grains of this rank until all grains are done, or one of this rank's has failed.
    fn lead(&self, shares: &[Range<usize>], group: &mut dyn Collective) -> Result<()> {
        while let Some((message, join)) = self.gather()? {
            let all = group.all_gather(message)?;
            let Some(pieces) = pieces(shares, &all)? else { return Ok(()) };
            let Some(join) = join else { continue };
            let sums = match join {
                Join::Append => pieces.concat(),
                Join::Fold(_) if pieces.iter().any(|p| p.len() != pieces[0].len()) => return Err(apart()),
                Join::Fold(add) => {
                    let mut pieces = pieces.into_iter();
                    let mut sums = pieces.next().unwrap_or_default();
                    pieces.for_each(|next| add(&mut sums, &next));
                    sums
                }
            };
            let mut state = self.lock();
            state.places.iter_mut().for_each(|p| *p = Place::Computes);
            (state.sums, state.round) = (sums.into(), state.round + 1);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Waits until no grain computes: what they hand in; nothing if one has failed.
    fn gather(&self) -> Result<Option<(Vec<u8>, Option<Join>)>> {
        let all_stand = |s: &State| s.failed.is_some() || !s.places.iter().any(|p| matches!(p, Place::Computes));
        let state = self.wait(self.lock(), all_stand);
        if state.failed.is_some() {
            return Ok(None);
        }
        let mut join = None;
        let mut numbers = Vec::new();
        for place in &state.places {
            if let Place::Waits(own, with) = place {
                join = Some(*with);
                numbers.extend((own.len() as u64).to_le_bytes());
                numbers.extend(own.iter().flat_map(|v| v.to_le_bytes()));
            }
        }
        let done = state.places.iter().filter(|p| matches!(p, Place::Done)).count();
        let word = match done {
            _ if state.places.is_empty() => Word::Nobody,
            0 => Word::Waiting,
            n if n == state.places.len() => Word::Done,
            _ => return Err(apart()),
        };
        let mut message = vec![word as u8];
        message.append(&mut numbers);
        Ok(Some((message, join)))
    }
}

fn apart() -> Error {
    Error::Internal("the grains of a step do not wait at the same layers".into())
}

/// The numbers of each grain, in order, from what the ranks say; nothing if all are done.
fn pieces(shares: &[Range<usize>], all: &[Vec<u8>]) -> Result<Option<Vec<Vec<f64>>>> {
    let mut pieces: Vec<Vec<f64>> = Vec::new();
    let (mut waiting, mut done) = (false, false);
    for (share, message) in shares.iter().zip(all) {
        let (word, mut numbers) = message.split_first().ok_or_else(apart)?;
        waiting |= *word == Word::Waiting as u8;
        done |= *word == Word::Done as u8;
        let waiting_here = if *word == Word::Waiting as u8 { share.len() } else { 0 };
        for _ in 0..waiting_here {
            let (len, rest) = numbers.split_first_chunk::<8>().ok_or_else(apart)?;
            let len = usize::try_from(u64::from_le_bytes(*len)).ok().and_then(|n| n.checked_mul(8));
            let (own, rest) = len.and_then(|len| rest.split_at_checked(len)).ok_or_else(apart)?;
            pieces.push(own.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect());
            numbers = rest;
        }
        if !numbers.is_empty() {
            return Err(apart());
        }
    }
    let grains: usize = shares.iter().map(Range::len).sum();
    let whole = pieces.len() == grains;
    match (waiting, done) {
        (true, false) if whole => Ok(Some(pieces)),
        (false, _) => Ok(None),
        _ => Err(apart()),
    }
}

/// Releases all who wait.
struct End<'a>(&'a Meeting);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}

/// One grain's place.
struct Seat<'a> {
    meeting: &'a Meeting,
    place: usize,
}

impl Seat<'_> {
    /// Waits until no other grain computes.
    fn turn(&self) -> Result<()> {
        let mut state = self.meeting.wait(self.meeting.lock(), |s| !s.busy || s.over);
        if state.over {
            return Err(Error::Internal("another grain of the step has failed".into()));
        }
        state.busy = true;
        Ok(())
    }

    fn leave(&self, well: bool) {
        let mut state = self.meeting.lock();
        if matches!(state.places[self.place], Place::Computes) {
            (state.places[self.place], state.busy) = (Place::Done, false);
            if !well && !state.over {
                state.failed.get_or_insert(self.place);
            }
            self.meeting.changed.notify_all();
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        // Still there if the grain broke down.
        self.leave(false);
    }
}

impl Grains for Seat<'_> {
    fn joined(&self, own: Vec<f64>, join: Join) -> Result<Arc<[f64]>> {
        let mut state = self.meeting.lock();
        (state.places[self.place], state.busy) = (Place::Waits(own, join), false);
        let round = state.round;
        self.meeting.changed.notify_all();
        let state = self.meeting.wait(state, |s| s.round > round || s.over);
        if state.round == round {
            return Err(Error::Internal("another grain of the step has failed".into()));
        }
        let sums = state.sums.clone();
        drop(state);
        self.turn()?;
        Ok(sums)
    }
}
