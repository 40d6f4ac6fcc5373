//! Ranks with a GPU each, which add up over NCCL.
//!
//! They have met over TCP before, and stay so: the mesh, which lets in nobody but the ranks of one attempt and generation,
//! carries NCCL's unique id, and before every sum the word that all ranks are there for it, with how many numbers. So a rank
//! that is slow is waited for, as among CPUs, and one that is gone has a name; NCCL's own deadline is for the sum alone.
//!
//! Who waits for NCCL does not hear the mesh. The thread of the mesh that does aborts the communicator as soon as a peer is
//! lost, or calls the meeting off where there is none yet, and the rank leaves with the same error as one on a CPU. Nothing is to
//! be done with a sum before [`Buckets::finish`] has asked `Communicator::complete`: one that was aborted looks like one that is
//! done, and holds a part of it. And no step is applied before its tallies have come over the mesh after that: by then all ranks
//! have had their yes.
//!
//! A sum may begin while its numbers are made ([`NcclGroup::open`]). Then the ranks meet when each has made its first bucket,
//! and again when all have made their last, so that the deadline leaves nobody's backward out.

use std::{
    mem,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cudarc::driver::CudaStream;
use nccl_rs::{Communicator, Nccl, NcclError, Options, UniqueId};

use super::{Collective, Mesh, cut::Cut};
use crate::{
    Error, Full, Result,
    gpu::{Array, Device, Fault, Span, ops},
};

/// Numbers of one bucket: 25 MiB of them.
pub const BUCKET: usize = (25 << 20) / size_of::<f32>();

/// How long ranks wait for NCCL, each time that they do.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// While it begins: until all have met, and for each of the first sums.
    pub ready: Duration,
    /// For a sum after that.
    pub sum: Duration,
}

/// How long the abort of a communicator may take; who waits for the result is told at once.
const ABORT: Duration = Duration::from_secs(2);

/// A group of ranks on GPUs.
pub struct NcclGroup {
    // It is dropped first, and with that aborted: by then every rank has had what it was for.
    communicator: Communicator,
    /// Sums have a stream of their own, so that the GPU goes on meanwhile.
    stream: Arc<CudaStream>,
    device: Arc<Device>,
    bucket: usize,
    /// What the host's numbers were summed in last.
    flat: Option<Array>,
    mesh: Mesh,
}

impl NcclGroup {
    /// Meets the ranks of the mesh again, on GPUs; all of them call it. Each wait, for that and for every sum, begins when the
    /// last one has come. Sums are cut into buckets of so many numbers.
    ///
    /// # Errors
    /// [`Error::LostPeer`] where another rank has failed or does not come; [`Error::Unmet`] where all are there and NCCL does not
    /// bring them together; NCCL is missing, too old or not everywhere the same.
    pub fn join(mut mesh: Mesh, device: Arc<Device>, patience: Patience, bucket: usize) -> Result<Self> {
        let (communicator, stream) = match connect(&mut mesh, &device, patience.ready) {
            Ok(met) => met,
            Err(e) => {
                mesh.abort(&e.to_string());
                return Err(e);
            }
        };
        let mut group = Self { communicator, stream, device, bucket, flat: None, mesh };
        match group.warm().map_err(unmet) {
            Ok(()) => {
                group.communicator.set_patience(patience.sum);
                Ok(group)
            }
            Err(e) => {
                group.mesh.abort(&e.to_string());
                Err(e)
            }
        }
    }

    /// Adds up zeros: one, some, and as many as a bucket has. NCCL connects ranks, and takes memory for that, when a sum of a
    /// size is first asked for (<https://github.com/NVIDIA/nccl/issues/2363> has half a gigabyte). Later that would be in the
    /// middle of the first backward, when the GPU is full.
    fn warm(&mut self) -> Result<()> {
        let device = self.device.clone();
        for count in [1, self.bucket.min(1 << 16), self.bucket] {
            let mut sum = self.begin(device.zeros(&[count])?)?;
            sum.ready(0..count)?;
            sum.finish()?;
        }
        // Nobody goes on while another may still fail.
        self.mesh.barrier()
    }

    /// Begins the sum over all ranks of what they have in `flat`, in place, part by part.
    ///
    /// # Errors
    /// A lost peer, or one that has more numbers, or fewer.
    pub fn begin(&mut self, flat: Array) -> Result<Buckets<'_>> {
        let count = flat.count();
        let mut buckets = self.open(flat, count);
        buckets.meet()?;
        buckets.early = false;
        Ok(buckets)
    }

    /// The same of numbers that are still being made, the first `gradient` of them by backward: it begins, and waits for the
    /// other ranks, when the first bucket is whole.
    pub fn open(&mut self, flat: Array, gradient: usize) -> Buckets<'_> {
        let cut = Cut::new(flat.count(), gradient, self.bucket);
        Buckets { group: self, flat: Some(flat), cut, gradient, early: true, stands: Stands::Alone }
    }

    /// Waits for all to be here, with as many numbers, that are cut alike.
    fn agree(&mut self, count: usize, gradient: usize) -> Result<()> {
        let own = [count, gradient].map(|n| (n as u64).to_le_bytes()).concat();
        let all = self.mesh.all_gather(own.clone())?;
        let Some((peer, theirs)) = all.iter().enumerate().find(|(_, theirs)| **theirs != own) else { return Ok(()) };
        let does = if theirs.get(..8) == own.get(..8) { "cut" } else { "add up" };
        Err(Error::Internal(format!("rank {peer} does not {does} {count} numbers, as rank {} does", self.rank())))
    }

    /// The sum of the host's numbers, bucket by bucket: while one is added up, the next one goes up. Gives the memory back.
    fn through(&mut self, flat: Array, own: &mut [f32]) -> Result<Array> {
        let mut buckets = self.begin(flat)?;
        for bucket in buckets.left() {
            buckets.fill(bucket.clone(), &own[bucket.clone()])?;
            buckets.ready(bucket)?;
        }
        let flat = buckets.finish()?;
        self.device.download_to(&flat, own)?;
        Ok(flat)
    }
}

impl Collective for NcclGroup {
    fn rank(&self) -> usize {
        self.mesh.rank()
    }

    fn weights(&self) -> &[u32] {
        self.mesh.weights()
    }

    fn messages(&self) -> u64 {
        self.mesh.messages()
    }

    fn send_parts(&mut self, to: usize, parts: &[&[u8]]) -> Result<()> {
        self.mesh.send_parts(to, parts)
    }

    fn receive(&mut self, from: usize) -> Result<Vec<u8>> {
        self.mesh.receive(from)
    }

    fn reuse(&mut self, from: usize, bytes: Vec<u8>) {
        self.mesh.reuse(from, bytes);
    }

    fn abort(&mut self, why: &str) {
        // First the mesh: it says why, where NCCL only says that somebody is gone.
        self.mesh.abort(why);
    }

    fn sum(&mut self, own: &mut [f32]) -> Result<bool> {
        if own.is_empty() {
            return self.agree(0, 0).map(|()| true);
        }
        let flat = match self.flat.take().filter(|flat| flat.count() == own.len()) {
            Some(flat) => flat,
            None => self.device.zeros(&[own.len()])?,
        };
        let summed = self.through(flat, own)?;
        self.flat = Some(summed);
        Ok(true)
    }

    fn sum_placed(&mut self, own: Array) -> Result<(Array, bool)> {
        let all = 0..own.count();
        let mut buckets = self.begin(own)?;
        buckets.ready(all)?;
        Ok((buckets.finish()?, true))
    }

    fn on_gpus(&mut self) -> Option<&mut NcclGroup> {
        Some(self)
    }
}

/// A flat gradient that is being added up. Its buckets go from the end of the network to its beginning, as backward makes
/// them, each as soon as all its numbers are final and those before it have gone; meanwhile the GPU goes on.
///
/// Dropped before it is finished, it leaves no sum. Where one has begun, the group is of no use any more then: the other ranks
/// wait for what will not come, until this one gives up. So it has to be dropped: forgotten with a sum begun, it would give the
/// array back while NCCL still writes there.
pub struct Buckets<'a> {
    group: &'a mut NcclGroup,
    /// The numbers, until [`Buckets::finish`] gives them back. Nobody else has them: what the library writes to is not freed
    /// by who drops this, or forgets it.
    flat: Option<Array>,
    cut: Cut,
    gradient: usize,
    /// Whether the numbers are still being made when sums begin.
    early: bool,
    stands: Stands,
}

/// How far a sum has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// The other ranks may not be there yet.
    Alone,
    /// All are there.
    Met,
    /// The library works on it.
    Begun,
    /// It is there.
    Done,
}

impl Buckets<'_> {
    /// The buckets that have not gone, in the order in which they will.
    pub fn left(&self) -> Vec<Range<usize>> {
        self.cut.left()
    }

    /// Puts numbers of the host into their place.
    ///
    /// # Errors
    /// A place for more or fewer, or one whose numbers are final.
    pub fn fill(&mut self, run: Range<usize>, values: &[f32]) -> Result<()> {
        self.cut.is_open(&run)?;
        Ok(there(&mut self.flat)?.fill(run, values)?)
    }

    /// Puts what has gathered in an array of the same GPU into its place.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn place(&mut self, run: Range<usize>, values: &Array) -> Result<()> {
        self.cut.is_open(&run)?;
        Ok(there(&mut self.flat)?.place(run, values)?)
    }

    /// Adds what has gathered in an array of the same GPU, whose `device` it is, to what is in its place.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn add(&mut self, device: &Device, run: Range<usize>, values: &Array) -> Result<()> {
        self.cut.is_open(&run)?;
        if values.count() != run.len() {
            return Err(Error::Internal(format!("{} numbers of a gradient for {run:?}", values.count())));
        }
        Ok(ops::add_run(device, there(&mut self.flat)?, run.start, values)?)
    }

    /// Says that what the array's stream was told to write here is final, and begins the sums that this lets begin.
    ///
    /// # Errors
    /// Numbers that are not there or were final before; a lost peer.
    #[expect(unsafe_code, reason = "the library works on the numbers beside what else is done")]
    pub fn ready(&mut self, run: Range<usize>) -> Result<()> {
        let go = self.cut.ready(run)?;
        if !go.is_empty() {
            self.meet()?;
        }
        for bucket in go {
            // SAFETY: nothing here writes to a bucket that has gone, and its numbers leave by `finish` alone, once their stream
            // waits for the library's.
            let mut span = unsafe { Span::of(there(&mut self.flat)?, bucket, &self.group.stream) }?;
            self.stands = Stands::Begun;
            self.group.communicator.all_reduce(&mut span).map_err(|e| failed(&self.group.mesh, e))?;
        }
        Ok(())
    }

    /// Waits for all sums, and gives them: the gate before anything is done with them.
    ///
    /// # Errors
    /// Numbers that were never final; a lost peer.
    pub fn finish(mut self) -> Result<Array> {
        if let Some(bucket) = self.cut.left().first() {
            return Err(Error::Internal(format!("numbers of {bucket:?} of a gradient were never made")));
        }
        if self.early {
            self.group.mesh.barrier()?;
        }
        self.group.communicator.complete().map_err(|e| failed(&self.group.mesh, e))?;
        there(&mut self.flat)?.after(&self.group.stream)?;
        self.stands = Stands::Done;
        self.flat.take().ok_or_else(taken)
    }

    /// Waits for the other ranks, once.
    fn meet(&mut self) -> Result<()> {
        if self.stands == Stands::Alone {
            let count = there(&mut self.flat)?.count();
            self.group.agree(count, self.gradient)?;
            self.stands = Stands::Met;
        }
        Ok(())
    }
}

impl Drop for Buckets<'_> {
    fn drop(&mut self) {
        if self.stands == Stands::Begun {
            // What is asked of the GPU from here on would wait for the others, and they for this rank. Nobody can be told of an
            // abort that hangs; the error that ends the rank is on its way.
            let _ = self.group.communicator.handle().abort(ABORT);
            // Also where it does not hang: where it does, the library is still at it, and giving the memory back would wait.
            mem::forget(self.flat.take());
        }
    }
}

fn there(flat: &mut Option<Array>) -> Result<&mut Array> {
    flat.as_mut().ok_or_else(taken)
}

fn taken() -> Error {
    Error::Internal("the numbers of a sum were given back before".into())
}

fn connect(mesh: &mut Mesh, device: &Device, patience: Duration) -> Result<(Communicator, Arc<CudaStream>)> {
    let nccl = Nccl::open().map_err(told)?;
    let versions = mesh.all_gather(nccl.version().to_string().into_bytes())?;
    if let Some(odd) = versions.iter().position(|v| *v != versions[0]) {
        let [first, other] = [0, odd].map(|rank| String::from_utf8_lossy(&versions[rank]));
        let text = format!("rank {odd} has NCCL {other}, and rank 0 has {first}");
        return Err(Error::user(text, "install the same NCCL on all nodes"));
    }
    let own = if mesh.rank() == 0 { nccl.unique_id().map_err(told)?.as_bytes().to_vec() } else { Vec::new() };
    let id = UniqueId::try_from(&mesh.broadcast(own, 0)?[..]).map_err(told)?;
    let stream = device.stream().context().new_stream().map_err(Fault::from)?;
    let options = Options { patience, ..Options::default() };
    let (rank, world) = (mesh.rank(), mesh.world());
    let lost = Arc::new(AtomicBool::new(false));
    let hears = lost.clone();
    mesh.when_lost(move || hears.store(true, Ordering::Relaxed));
    let met = Communicator::connect_unless(&stream, rank, world, &id, options, || lost.load(Ordering::Relaxed));
    let communicator = met.map_err(|e| unmet(failed(mesh, e)))?;
    let handle = communicator.handle();
    // Nobody can be told of an abort that hangs; the error that ends the rank is on its way.
    mesh.when_lost(move || drop(handle.abort(ABORT)));
    // Nobody goes on while another may still fail.
    mesh.barrier()?;
    Ok((communicator, stream))
}

/// Of ranks that have met over TCP: where none of them is lost, it is the network that the library takes.
fn unmet(error: Error) -> Error {
    match error {
        Error::LostGroup(cause) => Error::Unmet(cause),
        other => other,
    }
}

/// Who is lost, where that explains what the library says: the mesh has heard of it, or will.
fn failed(mesh: &Mesh, error: NcclError) -> Error {
    let of_the_group = matches!(
        error,
        NcclError::PeerLost { .. } | NcclError::Async { .. } | NcclError::Deadline { .. } | NcclError::Aborted
    );
    let of_the_group = of_the_group && !is_full(&error);
    let lost = if of_the_group { mesh.lost() } else { None };
    lost.unwrap_or_else(|| told(error))
}

/// Whether the library has found no memory on the GPU, which it says in words alone.
fn is_full(error: &NcclError) -> bool {
    let (NcclError::Async { detail, .. } | NcclError::Call { detail, .. } | NcclError::Cuda { detail, .. }) = error
    else {
        return false;
    };
    let detail = detail.to_ascii_lowercase();
    ["out of memory", "out_of_memory", "cuda calloc", "cuda malloc"].iter().any(|words| detail.contains(words))
}

/// What the library says.
fn told(error: NcclError) -> Error {
    if is_full(&error) {
        return Error::GpuMemory(Full::Grain);
    }
    match error {
        NcclError::Missing(missing) => Fault::from(missing).into(),
        NcclError::NoSymbol(_) | NcclError::TooOld { .. } | NcclError::Unsupported { .. } => {
            Error::user(error.to_string(), "install a newer NCCL, or name the folder that it is in with `NVLIB_PATH`")
        }
        NcclError::Blocking { .. } => {
            Error::user(error.to_string(), "start the rank with `NCCL_COMM_BLOCKING=0`, as an agent does")
        }
        NcclError::PeerLost { .. } | NcclError::Async { .. } | NcclError::Deadline { .. } | NcclError::Aborted => {
            Error::LostGroup(error.to_string())
        }
        NcclError::Call { .. } | NcclError::Argument(_) | NcclError::Cuda { .. } | NcclError::Thread(_) => {
            Error::Internal(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use nccl_rs::Code;

    use super::*;

    #[test]
    fn a_full_gpu_is_told_from_a_group_that_is_lost() {
        let (code, function) = (Code(1), "ncclCommInitRankConfig");
        let full =
            ["Cuda failure 2 'out of memory'", "Failed to CUDA calloc 4194304 bytes", "CUDA_ERROR_OUT_OF_MEMORY"];
        for words in full {
            let (detail, what) = (words.to_owned(), "the stream refuses");
            for error in [
                NcclError::Async { code, detail: detail.clone() },
                NcclError::Call { function, code, detail: detail.clone() },
                NcclError::Cuda { what, detail },
            ] {
                assert!(matches!(unmet(told(error)), Error::GpuMemory(_)), "{words}");
            }
        }
        assert!(matches!(unmet(told(NcclError::Blocking { value: "1".into() })), Error::User { .. }));
        let detail = || "the last words".to_owned();
        assert!(matches!(told(NcclError::Async { code, detail: detail() }), Error::LostGroup(_)));
        assert!(matches!(unmet(told(NcclError::Async { code, detail: detail() })), Error::Unmet(_)));
        assert!(matches!(unmet(told(NcclError::Call { function, code, detail: detail() })), Error::Internal(_)));
    }
}
