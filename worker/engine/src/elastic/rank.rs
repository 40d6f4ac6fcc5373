//! The machine: `Spare -> Meet -> CatchUp -> (Compute -> Reduce -> Apply)* -> Done`, and `Quiesced` from anywhere.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::elastic::{Formation, Order, RankProcess, Report, Stamp};

use super::{
    Frame, Input, Output, Plan, Tally,
    reduce::{Reductions, Verdict, part_of},
};

/// How long a rank waits for the coordinator before it keeps its state safe on disk.
const PARK_MS: u64 = 5_000;
/// How long dropping the work under way may take before the process is beyond help.
const ABORT_MS: u64 = 2_000;

/// Where a rank stands.
#[derive(Debug)]
enum Place {
    /// Member of nothing; the state, if any, is kept.
    Spare,
    /// Members tell each other what they have.
    Meet { hellos: BTreeMap<usize, (Stamp, u64)> },
    /// Those below the newest state receive it.
    CatchUp { top: Stamp },
    /// Gradients of a step are computed.
    Compute { step: u64 },
    /// They are added up over the ranks; `closing` is the exchange after the last step.
    Reduce { step: u64, closing: bool },
    /// They change the state. `leave` remembers what came in between, for once begun this finishes.
    Apply { step: u64, verdict: Verdict, leave: bool },
    /// The host drops what was under way.
    Aborting { since: u64 },
    /// Waits for the next generation with a whole state.
    Quiesced { since: u64, parked: bool },
    /// The last step is committed.
    Done,
    /// The process ends.
    Over,
}

/// One rank.
#[derive(Debug)]
pub struct Rank<P> {
    me: RankProcess,
    plan: P,
    stamp: Stamp,
    place: Place,
    /// The newest formation that this rank went into.
    formation: Option<Formation>,
    /// A newer one that it has heard of.
    pending: Option<Formation>,
    /// Told that it is no member any more.
    fenced: bool,
    stop: bool,
    closing: bool,
    parts: Reductions,
    caught: BTreeSet<usize>,
    lost: BTreeSet<usize>,
    now: u64,
}

impl<P: Plan> Rank<P> {
    /// A rank that holds the state before the first step, or one with this stamp.
    pub fn new(me: RankProcess, plan: P, stamp: Stamp) -> Self {
        Self {
            me,
            plan,
            stamp,
            place: Place::Spare,
            formation: None,
            pending: None,
            fenced: false,
            stop: false,
            closing: false,
            parts: Reductions::default(),
            caught: BTreeSet::new(),
            lost: BTreeSet::new(),
            now: 0,
        }
    }

    /// How new the state is.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The generation that the rank went into last; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.formation.as_ref().map_or(0, |f| f.generation)
    }

    /// Takes in what happened; the answer is carried out in order.
    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        if matches!(self.place, Place::Over) {
            return out;
        }
        match input {
            Input::Order(order) => self.order(order, &mut out),
            Input::Connected => self.say_where(&mut out),
            Input::Tick(now) => self.tick(now, &mut out),
            Input::Met { generation, digest } if generation == self.generation() => self.met(digest, &mut out),
            Input::Frame { generation, from, frame } if generation == self.generation() => {
                self.frame(from, frame, &mut out);
            }
            Input::Lost { generation, peer } if generation == self.generation() => self.lose(peer, &mut out),
            Input::Computed { generation, step } if generation == self.generation() => {
                if matches!(self.place, Place::Compute { step: s } if s == step) {
                    self.contribute(step, false, &mut out);
                }
            }
            Input::Applied { step } => self.applied(step, &mut out),
            Input::Loaded { generation } if generation == self.generation() => self.loaded(&mut out),
            Input::Aborted { generation } if generation == self.generation() => {
                if matches!(self.place, Place::Aborting { .. }) {
                    self.rest(&mut out);
                }
            }
            // Left over from a generation that is no more.
            _ => {}
        }
        out
    }

    fn order(&mut self, order: Order, out: &mut Vec<Output>) {
        match order {
            Order::Form(f) if f.generation > self.newest() => {
                let urgent = f.urgent;
                (self.pending, self.fenced) = (Some(f), false);
                self.leave(urgent, out);
            }
            Order::Fence { generation } if generation > self.newest() => {
                (self.pending, self.fenced) = (None, true);
                self.leave(true, out);
            }
            Order::Quiesce { generation } if self.newest() <= generation => {
                self.pending = None;
                self.leave(true, out);
            }
            Order::Stop => self.stop = true,
            Order::Release => self.exit("the run is over", out),
            // Older than what is known.
            Order::Form(_) | Order::Fence { .. } | Order::Quiesce { .. } => {}
        }
    }

    /// The newest generation heard of.
    fn newest(&self) -> u64 {
        self.pending.as_ref().map_or(self.generation(), |f| f.generation)
    }

    /// Gets out of what is under way: at once, or (a planned change) after the step that all agree on.
    fn leave(&mut self, urgent: bool, out: &mut Vec<Output>) {
        match &mut self.place {
            Place::Spare | Place::Quiesced { .. } | Place::Done => self.rest(out),
            Place::Apply { leave, .. } => *leave |= urgent,
            Place::Compute { .. } | Place::Reduce { .. } if !urgent => {}
            Place::Meet { .. } | Place::CatchUp { .. } | Place::Compute { .. } | Place::Reduce { .. } => {
                self.abort(out);
            }
            Place::Aborting { .. } | Place::Over => {}
        }
    }

    fn abort(&mut self, out: &mut Vec<Output>) {
        let generation = self.generation();
        for peer in std::mem::take(&mut self.lost) {
            if let Some(peer) = self.formation.as_ref().and_then(|f| f.members.get(peer)).copied() {
                out.push(Output::Report(Report::Suspect { generation, peer }));
            }
        }
        self.place = Place::Aborting { since: self.now };
        out.push(Output::Abort { generation });
    }

    /// Nothing is under way: into the generation that waits, or say that there is none.
    fn rest(&mut self, out: &mut Vec<Output>) {
        match self.pending.take() {
            Some(f) if f.rank_of(self.me).is_some() => {
                self.parts = Reductions::default();
                (self.caught, self.lost) = (BTreeSet::new(), BTreeSet::new());
                (self.closing, self.fenced) = (false, false);
                self.place = Place::Meet { hellos: BTreeMap::new() };
                self.formation = Some(f.clone());
                out.push(Output::Meet(f));
                return;
            }
            Some(_) => self.fenced = true,
            None => {}
        }
        if self.fenced || self.formation.is_none() {
            self.place = Place::Spare;
        } else if !matches!(self.place, Place::Quiesced { .. }) {
            self.place = Place::Quiesced { since: self.now, parked: false };
        }
        self.say_where(out);
    }

    fn say_where(&self, out: &mut Vec<Output>) {
        let (stamp, generation) = (self.stamp, self.generation());
        out.push(match self.place {
            Place::Spare => Output::Report(Report::Ready { stamp }),
            Place::Quiesced { .. } => Output::Report(Report::Quiesced { generation, stamp }),
            Place::Done => Output::Finish { step: stamp.applied },
            _ => Output::Report(Report::Standing { generation }),
        });
    }

    fn tick(&mut self, now: u64, out: &mut Vec<Output>) {
        self.now = now;
        match &mut self.place {
            Place::Quiesced { since, parked } if !*parked && now >= *since + PARK_MS => {
                *parked = true;
                out.push(Output::Park);
            }
            Place::Aborting { since } if now >= *since + ABORT_MS => self.exit("what was under way does not end", out),
            _ => {}
        }
    }

    fn exit(&mut self, why: &'static str, out: &mut Vec<Output>) {
        self.place = Place::Over;
        out.push(Output::Exit(why));
    }

    /// This rank's number and how many there are.
    fn seat(&self) -> (usize, usize) {
        let f = self.formation.as_ref();
        (f.and_then(|f| f.rank_of(self.me)).unwrap_or(0), f.map_or(1, |f| f.members.len()))
    }

    fn tell_all(&self, frame: &Frame, out: &mut Vec<Output>) {
        let (rank, world) = self.seat();
        out.extend((0..world).filter(|to| *to != rank).map(|to| Output::Send { to, frame: frame.clone() }));
    }

    fn met(&mut self, digest: u64, out: &mut Vec<Output>) {
        let (rank, _) = self.seat();
        let stamp = self.stamp;
        if let Place::Meet { hellos } = &mut self.place {
            hellos.insert(rank, (stamp, digest));
            self.tell_all(&Frame::Hello { stamp, digest }, out);
            self.agree(out);
        }
    }

    fn frame(&mut self, from: usize, frame: Frame, out: &mut Vec<Output>) {
        match (frame, &mut self.place) {
            (Frame::Hello { stamp, digest }, Place::Meet { hellos }) => {
                hellos.insert(from, (stamp, digest));
                self.agree(out);
            }
            (Frame::CaughtUp, Place::Meet { .. } | Place::CatchUp { .. }) => {
                self.caught.insert(from);
                self.all_caught_up(out);
            }
            (Frame::Part { step, tally }, place) if !matches!(place, Place::Aborting { .. }) => {
                self.parts.insert(step, from, tally);
                self.reduce(out);
            }
            _ => {}
        }
    }

    /// With everybody's greeting: who has the newest state, and who has to take it over.
    fn agree(&mut self, out: &mut Vec<Output>) {
        let (rank, world) = self.seat();
        let Place::Meet { hellos } = &self.place else { return };
        if hellos.len() < world {
            return;
        }
        let Some(top) = hellos.values().map(|(stamp, _)| *stamp).max() else { return };
        let has: Vec<(usize, u64)> = hellos.iter().filter(|(_, h)| h.0 == top).map(|(r, h)| (*r, h.1)).collect();
        let below: Vec<usize> = hellos.iter().filter(|(_, h)| h.0 != top).map(|(r, _)| *r).collect();
        let (source, digest) = has[0];
        if let Some((odd, _)) = has.iter().find(|(_, d)| *d != digest) {
            let peer = if *odd == rank { source } else { *odd };
            let peer = self.formation.as_ref().and_then(|f| f.members.get(peer)).copied().unwrap_or(self.me);
            self.place = Place::Over;
            out.push(Output::Diverged(peer));
            return;
        }
        self.place = Place::CatchUp { top };
        if source == rank && !below.is_empty() {
            out.push(Output::Give { to: below });
        }
        if self.stamp == top {
            self.caught_up(top, out);
        } else {
            out.push(Output::Take { from: source, digest });
        }
    }

    fn loaded(&mut self, out: &mut Vec<Output>) {
        let generation = self.generation();
        match &self.place {
            Place::CatchUp { top } => self.caught_up(*top, out),
            Place::Meet { .. } => {
                if let Some(saved) = self.formation.as_ref().and_then(|f| f.restore) {
                    self.stamp = Stamp { generation, applied: saved.step };
                }
            }
            _ => {}
        }
    }

    fn caught_up(&mut self, top: Stamp, out: &mut Vec<Output>) {
        self.stamp = Stamp { generation: self.generation(), applied: top.applied };
        let (rank, _) = self.seat();
        self.caught.insert(rank);
        self.tell_all(&Frame::CaughtUp, out);
        self.all_caught_up(out);
    }

    fn all_caught_up(&mut self, out: &mut Vec<Output>) {
        if matches!(self.place, Place::CatchUp { .. }) && self.caught.len() == self.seat().1 {
            self.begin(out);
        }
    }

    fn begin(&mut self, out: &mut Vec<Output>) {
        if !self.lost.is_empty() {
            return self.abort(out);
        }
        let step = self.stamp.applied + 1;
        if self.closing || step > self.plan.steps() {
            return self.contribute(step, true, out);
        }
        let (rank, world) = self.seat();
        let grains = part_of(&self.plan, step, rank, world).grains;
        if grains.is_empty() {
            self.contribute(step, false, out);
        } else {
            self.place = Place::Compute { step };
            out.push(Output::Compute { step, grains });
        }
    }

    fn contribute(&mut self, step: u64, closing: bool, out: &mut Vec<Output>) {
        let (rank, world) = self.seat();
        let part = if closing { Tally::default() } else { part_of(&self.plan, step, rank, world) };
        let tally = Tally { saw_newer: self.pending.is_some(), wants_stop: self.stop, ..part };
        self.place = Place::Reduce { step, closing };
        self.parts.insert(step, rank, tally.clone());
        self.tell_all(&Frame::Part { step, tally }, out);
        self.reduce(out);
    }

    /// With everybody's part: the step before is committed, and this one may be applied.
    fn reduce(&mut self, out: &mut Vec<Output>) {
        let Place::Reduce { step, closing } = self.place else { return };
        let (rank, world) = self.seat();
        let (grains, samples) = if closing { (0, 0) } else { (self.plan.grains(step), self.plan.samples(step)) };
        let verdict = match self.parts.verdict(step, world, grains, samples) {
            None => return,
            Some(Err(())) => return self.exit("the parts of a step do not hold each of its grains once", out),
            Some(Ok(verdict)) => verdict,
        };
        let committed = step - 1;
        if rank == 0 {
            out.push(Output::Commit { step: committed });
            if committed > 0 && self.plan.publishes(committed) {
                out.push(Output::Publish { step: committed });
            }
        }
        if closing {
            self.place = Place::Done;
            return out.push(Output::Finish { step: committed });
        }
        self.place = Place::Apply { step, verdict, leave: false };
        out.push(Output::Apply { step });
    }

    fn applied(&mut self, step: u64, out: &mut Vec<Output>) {
        let Place::Apply { step: wanted, verdict, leave } = self.place else { return };
        if wanted != step {
            return;
        }
        self.stamp.applied = step;
        self.parts.forget(step);
        self.closing |= verdict.wants_stop;
        if verdict.saw_newer && !leave {
            // All leave after this step; whoever is faster is not lost.
            self.lost.clear();
        }
        if verdict.saw_newer || leave { self.abort(out) } else { self.begin(out) }
    }

    fn lose(&mut self, peer: usize, out: &mut Vec<Output>) {
        match self.place {
            Place::Compute { step } | Place::Reduce { step, .. } => {
                self.lost.insert(peer);
                // Its part is there: the step can still be finished without it.
                if !self.parts.has(step, peer) {
                    self.abort(out);
                }
            }
            Place::Apply { .. } => drop(self.lost.insert(peer)),
            Place::Meet { .. } | Place::CatchUp { .. } => {
                self.lost.insert(peer);
                self.abort(out);
            }
            _ => {}
        }
    }
}
