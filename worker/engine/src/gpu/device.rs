//! One GPU: its stream, its memory, and the kernels that were asked for.

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use cudarc::{
    driver::{
        CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits,
        result, sys,
    },
    nvrtc::Ptx,
};
use nvlib::Library;

use super::{
    Array, Fault,
    ahead::Ahead,
    array::counted,
    blas::Blas,
    bound,
    dnn::Dnn,
    kernels::{Source, compiled, compiled_anew},
    launch::own,
    ops::Spans,
    tables::Tables,
};

/// A GPU and one stream on it: whatever is asked of it happens in the order of the asking.
///
/// Two kinds of streams are beside it: those on which batches go up ahead ([`Device::staging_aside`]), and the one of `nccl-rs`.
/// cudarc would keep two events beside each array, and each operation would wait for those of all that it reads and record those
/// of all that it touches, so that any array may be used on any stream. It is told not to: what crosses streams says so, and
/// nothing else does. [`Device::adopt`] takes over what went up ahead, `Span` lends a run of an array to another stream, and
/// `Array::after` takes it back. An array is given back on the stream that it is of, and whatever is asked of a device with one
/// of another stream is refused ([`Fault::Foreign`]).
pub struct Device {
    stream: Arc<CudaStream>,
    capability: (i32, i32),
    loaded: Mutex<Loaded>,
    blas: Mutex<Option<Blas>>,
    dnn: Mutex<Option<Dnn>>,
    spans: Mutex<Vec<Arc<Spans>>>,
    words: Tables<u32>,
    longs: Tables<u64>,
    spare: Mutex<Vec<Weak<Ahead>>>,
    room: usize,
}

/// Bytes of a square of attention's scores for as many samples as are computed at a time. Part of the result.
const ROOM: usize = 256 << 20;

#[derive(Default)]
struct Loaded {
    modules: BTreeMap<Source, Arc<CudaModule>>,
    functions: BTreeMap<(Source, &'static str), CudaFunction>,
}

impl Device {
    /// The GPU of that number.
    ///
    /// # Errors
    /// There is no driver, or no such GPU.
    pub fn open(index: u32) -> Result<Self, Fault> {
        bound::open(Library::Driver)?;
        // The bindings panic where a library of another age lacks a function.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| Self::on(index)));
        opened.unwrap_or_else(|_| Err(Fault::Driver("that it lacks a function: it is too old".into())))
    }

    #[expect(unsafe_code, reason = "streams are put in order by hand")]
    fn on(index: u32) -> Result<Self, Fault> {
        let context = CudaContext::new(index as usize)?;
        // SAFETY: nothing uses an array on another stream than its own, but for what waits for it, and is waited for, as is said
        // above.
        unsafe { context.disable_event_tracking() };
        keep_memory(&context)?;
        let capability = context.compute_capability()?;
        let stream = context.new_stream()?;
        let (blas, dnn) = (Mutex::new(None), Mutex::new(None));
        let (words, longs, loaded, spans) = (Tables::default(), Tables::default(), Mutex::default(), Mutex::default());
        let spare = Mutex::default();
        Ok(Self { stream, capability, loaded, blas, dnn, spans, words, longs, spare, room: ROOM })
    }

    /// The same, on which attention's scores have less room, for tests: other room makes other bits.
    pub fn with_room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// Bytes of a square of attention's scores for as many samples as are computed at a time.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// What everything happens on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Its compute capability.
    pub(in crate::gpu) fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// Something has failed since the last time.
    pub fn synchronize(&self) -> Result<(), Fault> {
        Ok(self.stream.synchronize()?)
    }

    /// The most bytes of its memory that arrays have had at a time, in this process; nothing where the driver keeps no count.
    ///
    /// # Errors
    /// The driver refuses.
    #[expect(unsafe_code, reason = "calls the driver")]
    pub fn peak(&self) -> Result<Option<u64>, Fault> {
        let context = self.stream.context();
        if !context.has_async_alloc() {
            return Ok(None);
        }
        context.bind_to_thread()?;
        let mut bytes = 0u64;
        // SAFETY: the device is the context's, the attribute is a number of 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device())?;
            let what = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
            sys::cuMemPoolGetAttribute(pool, what, (&raw mut bytes).cast()).result()?;
        }
        Ok(Some(bytes))
    }

    /// Zeros.
    ///
    /// # Errors
    /// The memory is full, or the shape holds nothing.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, shape: &[usize]) -> Result<Array<T>, Fault> {
        let count = counted(shape)?;
        Ok(Array::new(self.afford(|| Ok(self.stream.alloc_zeros(count)?))?, shape))
    }

    /// Memory that whoever asks for it goes on to write, all of it, before anything reads it.
    #[expect(unsafe_code, reason = "memory of a GPU begins as anything")]
    pub(crate) fn fresh<T: DeviceRepr + ValidAsZeroBits>(&self, shape: &[usize]) -> Result<Array<T>, Fault> {
        let count = counted(shape)?;
        // SAFETY: any bits are a number of these types, and each caller writes every one.
        let data = self.afford(|| Ok(unsafe { self.stream.alloc(count) }?))?;
        Ok(Array::new(data, shape))
    }

    /// Numbers of the host.
    ///
    /// # Errors
    /// The memory is full, or the shape is of another count.
    pub fn upload<T: DeviceRepr>(&self, values: &[T], shape: &[usize]) -> Result<Array<T>, Fault> {
        if counted(shape)? != values.len() {
            return Err(Fault::shape(format!("{} numbers for an array of {shape:?}", values.len())));
        }
        Ok(Array::new(self.afford(|| Ok(self.stream.clone_htod(values)?))?, shape))
    }

    /// Numbers for the host; waits until they are made.
    ///
    /// # Errors
    /// What makes them has failed.
    pub fn download<T: DeviceRepr + Clone + Default>(&self, array: &Array<T>) -> Result<Vec<T>, Fault> {
        self.download_run(array, 0..array.count())
    }

    /// Some of them.
    ///
    /// # Errors
    /// As [`Device::download`]; none, or some that are not there.
    pub fn download_run<T: DeviceRepr + Clone + Default>(
        &self,
        array: &Array<T>,
        run: Range<usize>,
    ) -> Result<Vec<T>, Fault> {
        array.expect_run(&run)?;
        self.expect_own(array)?;
        let mut values = vec![T::default(); run.len()];
        self.stream.memcpy_dtoh(&array.data.slice(run), &mut values)?;
        self.stream.synchronize()?;
        Ok(values)
    }

    /// The same numbers in memory of their own.
    ///
    /// # Errors
    /// The memory is full.
    pub fn copy<T: DeviceRepr>(&self, array: &Array<T>) -> Result<Array<T>, Fault> {
        self.expect_own(array)?;
        Ok(Array::new(self.afford(|| Ok(self.stream.clone_dtod(&array.data)?))?, array.shape()))
    }

    /// Some of them, in a shape of as many.
    ///
    /// # Errors
    /// The memory is full; none, some that are not there, or a shape of another count.
    pub fn part<T: DeviceRepr>(&self, array: &Array<T>, run: Range<usize>, shape: &[usize]) -> Result<Array<T>, Fault> {
        array.expect_run(&run)?;
        if counted(shape)? != run.len() {
            return Err(Fault::shape(format!("{run:?} for an array of {shape:?}")));
        }
        self.expect_own(array)?;
        let from = array.data.slice(run);
        Ok(Array::new(self.afford(|| Ok(self.stream.clone_dtod(&from)?))?, shape))
    }

    /// A place in the host's memory from which up to `count` numbers go up while the host goes on.
    ///
    /// # Errors
    /// The host has no such memory.
    pub fn staging(&self, count: usize) -> Result<Staging, Fault> {
        self.staging_on(self.stream.clone(), count)
    }

    /// The same with a stream of its own: what goes up waits for nothing that the GPU is doing, unless memory is short and it is
    /// about to be given back.
    ///
    /// # Errors
    /// As [`Device::staging`].
    pub fn staging_aside(&self, count: usize) -> Result<Staging, Fault> {
        self.staging_on(self.stream.context().new_stream()?, count)
    }

    /// Takes over what is on its way up, on whichever stream: whatever is asked for from now on waits until it is there, and it
    /// is given back behind all that reads it.
    ///
    /// # Errors
    /// It went to another GPU, or the driver refuses.
    #[expect(unsafe_code, reason = "memory changes its stream")]
    pub fn adopt(&self, Upload(array): Upload) -> Result<Array, Fault> {
        let (shape, count) = (array.shape().to_vec(), array.count());
        let from = array.data.stream().clone();
        if from == self.stream {
            return Ok(array);
        }
        if from.context() != self.stream.context() {
            return Err(Fault::Foreign);
        }
        self.stream.join(&from)?;
        // SAFETY: so many numbers, which nobody else has, and which were written on a stream that this one waits for.
        let data = unsafe { self.stream.upgrade_device_ptr(array.data.leak(), count) };
        Ok(Array::new(data, &shape))
    }

    /// Refuses an array of another stream.
    pub(in crate::gpu) fn expect_own<T>(&self, array: &Array<T>) -> Result<(), Fault> {
        own(&self.stream, &array.data)?;
        Ok(())
    }

    #[expect(unsafe_code, reason = "the driver gives memory that holds anything")]
    fn staging_on(&self, stream: Arc<CudaStream>, count: usize) -> Result<Staging, Fault> {
        // SAFETY: it is cleared before anybody sees it.
        let mut memory = unsafe { self.stream.context().alloc_pinned::<f32>(counted(&[count])?) }?;
        let first = memory.as_mut_ptr()?;
        // SAFETY: so many numbers are there.
        unsafe { first.write_bytes(0, count) };
        Ok(Staging { stream, memory, busy: None })
    }

    /// A kernel, compiled and loaded when it is first asked for.
    pub(in crate::gpu) fn function(&self, source: Source, name: &'static str) -> Result<CudaFunction, Fault> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(&(source, name)) {
            return Ok(function.clone());
        }
        let module = match loaded.modules.get(&source) {
            Some(module) => module.clone(),
            None => {
                let context = self.stream.context();
                let load =
                    |cubin: Arc<Vec<u8>>| self.afford(|| Ok(context.load_module(Ptx::from_binary(cubin.to_vec()))?));
                let module = match load(compiled(source, self.capability)?) {
                    Err(Fault::Driver(_)) => load(compiled_anew(source, self.capability)?)?,
                    taken => taken?,
                };
                loaded.modules.insert(source, module.clone());
                module
            }
        };
        // The driver may put off until here what it has to load.
        let function = self.afford(|| Ok(module.load_function(name)?))?;
        loaded.functions.insert((source, name), function.clone());
        Ok(function)
    }

    /// cuBLAS, opened when it is first needed.
    pub(in crate::gpu) fn blas(&self) -> Result<MutexGuard<'_, Option<Blas>>, Fault> {
        let mut place = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some(self.afford(|| Blas::open(&self.stream))?);
        }
        Ok(place)
    }

    /// cuDNN, opened when it is first needed.
    pub(in crate::gpu) fn dnn(&self) -> Result<MutexGuard<'_, Option<Dnn>>, Fault> {
        let mut place = self.dnn.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some(self.afford(|| Dnn::open(&self.stream))?);
        }
        Ok(place)
    }

    /// A table that an operation reads.
    pub(in crate::gpu) fn words(&self, values: &[u32], shape: &[usize]) -> Result<Arc<Array<u32>>, Fault> {
        self.words.of(self, values, shape)
    }

    /// One of wide numbers, one after the other.
    pub(in crate::gpu) fn longs(&self, values: &[u64]) -> Result<Arc<Array<u64>>, Fault> {
        self.longs.of(self, values, &[values.len()])
    }

    /// Says what is to be given back where its memory is short.
    pub(in crate::gpu) fn spares(&self, ahead: &Arc<Ahead>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(ahead));
    }

    /// What there is of that.
    pub(in crate::gpu) fn spare(&self) -> Vec<Arc<Ahead>> {
        let mut all = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|ahead| ahead.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Lengths of sequences that were sent up, the newest first.
    pub(in crate::gpu) fn spans(&self) -> MutexGuard<'_, Vec<Arc<Spans>>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a GPU's memory that nobody has; nothing where the driver does not tell.
pub(in crate::gpu) fn free(stream: &CudaStream) -> Option<usize> {
    stream.context().mem_get_info().ok().map(|(free, _)| free)
}

/// What is freed stays with the driver's pool for the next array, instead of going back to the system at each
/// synchronisation. [`Device::afford`] sends it back where memory is short.
#[expect(unsafe_code, reason = "calls the driver")]
fn keep_memory(context: &Arc<CudaContext>) -> Result<(), Fault> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    // SAFETY: the device is the context's, the attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let what = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, what, (&raw mut threshold).cast()).result()?;
    }
    Ok(())
}

/// Memory of the host that a GPU reads by itself. Two of them, one being filled while the other is on its way, keep both
/// sides busy.
pub struct Staging {
    stream: Arc<CudaStream>,
    memory: PinnedHostSlice<f32>,
    /// The copy that is under way.
    busy: Option<CudaEvent>,
}

impl Staging {
    /// How many numbers it holds.
    pub fn room(&self) -> usize {
        self.memory.len()
    }

    /// Sends numbers up; waits only until those that it was given before are there.
    ///
    /// # Errors
    /// More than it has room for, or a full memory.
    #[expect(unsafe_code, reason = "memory of a GPU begins as anything")]
    pub fn upload(&mut self, values: &[f32], shape: &[usize]) -> Result<Upload, Fault> {
        if counted(shape)? != values.len() || values.len() > self.memory.len() {
            let room = self.memory.len();
            return Err(Fault::shape(format!("{} numbers for {shape:?}, with room for {room}", values.len())));
        }
        // SAFETY: any bits are a number, and each is written below, on the same stream.
        let mut array = Array::new(unsafe { self.stream.alloc(values.len()) }?, shape);
        if let Some(copy) = &self.busy {
            copy.synchronize()?;
            self.busy = None;
        }
        let place = &mut self.memory.as_mut_slice()?[..values.len()];
        place.copy_from_slice(values);
        let sent = self.stream.memcpy_htod(&*place, &mut array.data);
        // Also where it failed: the memory must not be written before the driver is through with it.
        match self.stream.record_event(None) {
            Ok(copy) => self.busy = Some(copy),
            Err(e) => {
                self.stream.synchronize()?;
                return Err(e.into());
            }
        }
        sent?;
        Ok(Upload(array))
    }
}

/// Numbers on their way up, perhaps on a stream that nothing else waits for: only [`Device::adopt`] makes an array of them.
#[derive(Debug)]
pub struct Upload(Array);

impl Upload {
    /// What they go up on.
    pub(in crate::gpu) fn stream(&self) -> &Arc<CudaStream> {
        self.0.data.stream()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The driver may still be reading what is about to be freed. Nobody can be told that it failed; where the bindings
        // answer with an error of before, they have not waited yet.
        if let Some(copy) = self.busy.take() {
            let _ = copy.synchronize().or_else(|_| copy.synchronize());
        }
    }
}
