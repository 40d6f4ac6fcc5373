//! cuDNN's convolutions: descriptors, and which algorithm is taken.
//!
//! An algorithm is chosen once for each shape, from cuDNN's own list in its own order, by what it says of it: that it gives
//! the same bits each time, and takes no more scratch memory than [`WORKSPACE`]. Then come those that NVIDIA's documentation
//! calls deterministic, listed or not. The first one that cuDNN does not refuse to run is taken, whatever the reason of a
//! refusal, never the first one by a stopwatch. The list's word on arithmetic counts for nothing: the descriptor allows f32 no
//! tensor core, and bf16 nothing that it would have to be made into on the way. TF32 it allows, and does not demand: where cuDNN
//! sees no use in it, f32 stays f32.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::c_int,
    sync::Arc,
};

use cudarc::{
    cudnn::{
        result::{self, CudnnError},
        sys::{
            self, cudnnConvolutionBwdDataAlgo_t as Inputs, cudnnConvolutionBwdFilterAlgo_t as Weights,
            cudnnConvolutionFwdAlgo_t as Outputs,
        },
    },
    driver::CudaStream,
};
use nvlib::Library;
use tl_proto::spec::Precision;

use super::{Fault, bound, device::free};

/// Bytes of scratch memory that a convolution may use. Part of the result, as the choice of the algorithm is.
const WORKSPACE: usize = 256 << 20;
/// Entries that are asked for: more than there are of any pass, each algorithm with each kind of arithmetic.
const LISTED: usize = 64;

const FLOAT: sys::cudnnDataType_t = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
const BFLOAT16: sys::cudnnDataType_t = sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16;
const CHANNELS_LAST: sys::cudnnTensorFormat_t = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;

/// A convolution of channels-last images on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gpu) struct Plan {
    /// Images, height, width, channels.
    pub x: [usize; 4],
    /// Output channels, height, width, channels of a group.
    pub w: [usize; 4],
    /// Images, height, width, channels.
    pub y: [usize; 4],
    pub stride: usize,
    pub pad: (usize, usize),
    pub groups: usize,
    /// What its numbers are taken as; sums are f32.
    pub precision: Precision,
}

impl Plan {
    fn arithmetic(&self) -> sys::cudnnMathType_t {
        match self.precision {
            Precision::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            // By default cuDNN may read f32 as TF32, since its version 8.
            Precision::Tf32 => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
            Precision::Bf16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        }
    }

    fn memory(&self) -> sys::cudnnDataType_t {
        match self.precision {
            Precision::F32 | Precision::Tf32 => FLOAT,
            Precision::Bf16 => BFLOAT16,
        }
    }
}

/// What is computed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gpu) enum Of {
    Outputs,
    Inputs,
    Weights,
}

/// An algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) enum Algorithm {
    Outputs(Outputs),
    Inputs(Inputs),
    Weights(Weights),
}

/// A handle on one stream, and what was chosen.
pub(in crate::gpu) struct Dnn {
    handle: sys::cudnnHandle_t,
    /// Kept, since the handle is of it.
    stream: Arc<CudaStream>,
    chosen: BTreeMap<(Of, Plan), Chosen>,
}

/// How something is computed of a plan.
pub(in crate::gpu) struct Chosen {
    pub described: Described,
    /// An algorithm that has done it, or those that may, the best one first, or none; with the bytes of scratch memory that each
    /// needs.
    pub offers: Vec<(Algorithm, usize)>,
    /// Whether that is one that has done it, or none for good: from then on nothing else is tried, which would make other bits.
    pub settled: bool,
}

#[expect(unsafe_code, reason = "a handle may be used from any one thread at a time")]
// SAFETY: so says cuDNN's documentation on thread safety; the device keeps it behind a lock.
unsafe impl Send for Dnn {}

impl Drop for Dnn {
    #[expect(unsafe_code, reason = "calls cuDNN")]
    fn drop(&mut self) {
        bound::bind(self.stream.context());
        // SAFETY: made by `create_handle`, and destroyed once. That it cannot be is no reason to stop.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Descriptors of a plan.
pub(in crate::gpu) struct Described {
    pub x: sys::cudnnTensorDescriptor_t,
    pub w: sys::cudnnFilterDescriptor_t,
    pub y: sys::cudnnTensorDescriptor_t,
    pub how: sys::cudnnConvolutionDescriptor_t,
}

impl Described {
    #[expect(unsafe_code, reason = "calls cuDNN")]
    fn of(plan: &Plan) -> Result<Self, Fault> {
        use std::ptr::null_mut;
        [plan.x, plan.w, plan.y].into_iter().try_for_each(countable)?;
        // Filled one by one, so that those that were made are destroyed where a later one fails.
        let mut all = Self { x: null_mut(), w: null_mut(), y: null_mut(), how: null_mut() };
        all.x = result::create_tensor_descriptor()?;
        all.w = result::create_filter_descriptor()?;
        all.y = result::create_tensor_descriptor()?;
        all.how = result::create_convolution_descriptor()?;
        // cuDNN names dimensions in the order images, channels, height, width, whatever the order in memory.
        let first = |[n, h, w, c]: [usize; 4]| Ok::<_, Fault>([int(n)?, int(c)?, int(h)?, int(w)?]);
        let (down, right, stride) = (int(plan.pad.0)?, int(plan.pad.1)?, int(plan.stride)?);
        let cross = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let kind = plan.memory();
        // SAFETY: descriptors that were just made.
        unsafe {
            result::set_tensor4d_descriptor(all.x, CHANNELS_LAST, kind, first(plan.x)?)?;
            result::set_filter4d_descriptor(all.w, kind, CHANNELS_LAST, first(plan.w)?)?;
            result::set_tensor4d_descriptor(all.y, CHANNELS_LAST, kind, first(plan.y)?)?;
            result::set_convolution2d_descriptor(all.how, down, right, stride, stride, 1, 1, cross, FLOAT)?;
            result::set_convolution_group_count(all.how, int(plan.groups)?)?;
            result::set_convolution_math_type(all.how, plan.arithmetic())?;
        }
        Ok(all)
    }
}

impl Drop for Described {
    #[expect(unsafe_code, reason = "calls cuDNN")]
    fn drop(&mut self) {
        // SAFETY: each was made once and is destroyed once. That one cannot be is no reason to stop.
        unsafe {
            let _ = self.x.is_null() || result::destroy_tensor_descriptor(self.x).is_ok();
            let _ = self.w.is_null() || result::destroy_filter_descriptor(self.w).is_ok();
            let _ = self.y.is_null() || result::destroy_tensor_descriptor(self.y).is_ok();
            let _ = self.how.is_null() || result::destroy_convolution_descriptor(self.how).is_ok();
        }
    }
}

fn int(n: usize) -> Result<c_int, Fault> {
    c_int::try_from(n).map_err(|_| Fault::shape(format!("{n} is more than cuDNN counts to")))
}

/// Refuses what has more numbers than cuDNN finds its way among.
fn countable(of: [usize; 4]) -> Result<(), Fault> {
    let count = of.iter().try_fold(1usize, |count, n| count.checked_mul(*n));
    match count.is_some_and(|count| c_int::try_from(count).is_ok()) {
        true => Ok(()),
        false => Err(Fault::TooMany(format!("{of:?}"))),
    }
}

/// Whether another algorithm may do what one was refused for. Where memory was short it may not: which one is taken, and with
/// it the result, would depend on what else is on the GPU.
pub(in crate::gpu) fn may_be_another(error: CudnnError) -> bool {
    let short = [
        sys::cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED,
        sys::cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED,
    ];
    // Newer versions may have more of them.
    !short.contains(&error.0) && !Library::Cudnn.answer(error.0 as c_int).contains("ALLOC")
}

/// What an algorithm was refused for while so many bytes are free: it loads its kernels when it first runs, and where few are
/// free and nothing is wrong with the plan, that is why, whatever cuDNN says.
pub(in crate::gpu) fn refused(error: CudnnError, free: Option<usize>) -> Fault {
    use sys::cudnnStatus_t::{CUDNN_STATUS_BAD_PARAM, CUDNN_STATUS_NOT_SUPPORTED};
    let answer = Library::Cudnn.answer(error.0 as c_int);
    let plan = [CUDNN_STATUS_BAD_PARAM, CUDNN_STATUS_NOT_SUPPORTED].contains(&error.0)
        || ["CUDNN_STATUS_BAD_PARAM", "CUDNN_STATUS_NOT_SUPPORTED"].iter().any(|name| answer.starts_with(name));
    Fault::from(error).at_start(free.filter(|_| !plan))
}

/// How many entries a list has, if the library made it: it may know of none, and yet have the algorithm.
fn listed(answer: Result<(), CudnnError>, count: c_int) -> Result<usize, CudnnError> {
    match answer {
        Ok(()) => Ok(usize::try_from(count).unwrap_or(0).min(LISTED)),
        Err(e) if may_be_another(e) => Ok(0),
        Err(e) => Err(e),
    }
}

/// An entry of a list of algorithms, as cuDNN writes it. What a newer version says of one is a number, whatever it means.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Listing {
    algorithm: c_int,
    status: c_int,
    time: f32,
    memory: usize,
    determinism: c_int,
    arithmetic: c_int,
    reserved: [c_int; 3],
}

const _: () = assert!(size_of::<Listing>() == size_of::<sys::cudnnConvolutionFwdAlgoPerf_t>());

/// The algorithms that there are; one of another number cannot be asked for.
const OUTPUTS: [Outputs; 8] = [
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_GEMM,
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_DIRECT,
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_FFT,
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING,
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD,
    Outputs::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED,
];
const INPUTS: [Inputs; 6] = [
    Inputs::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0,
    Inputs::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
    Inputs::CUDNN_CONVOLUTION_BWD_DATA_ALGO_FFT,
    Inputs::CUDNN_CONVOLUTION_BWD_DATA_ALGO_FFT_TILING,
    Inputs::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD,
    Inputs::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED,
];
const WEIGHTS: [Weights; 7] = [
    Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0,
    Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
    Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT,
    Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3,
    Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD,
    Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD_NONFUSED,
    Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT_TILING,
];

/// Those of a list that always give the same bits, in the memory that there is, and then some others. The list also has entries
/// of other settings than the descriptors', so what one needs, and whether it can be had, is asked once more with just these.
macro_rules! exact {
    ($list:expr, $known:expr, $others:expr, $kind:expr, $needs:expr) => {{
        let good = $list.iter().filter(|a| {
            a.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS as c_int
                && a.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC as c_int
        });
        let named = good.filter_map(|a| $known.into_iter().find(|known| *known as c_int == a.algorithm));
        let mut all: Vec<(Algorithm, usize)> = Vec::new();
        for algorithm in named.chain($others) {
            let asked: Result<usize, CudnnError> = $needs(algorithm);
            if let Err(e) = asked
                && !may_be_another(e)
            {
                return Err(e);
            }
            if let Some(memory) = asked.ok().filter(|memory| *memory <= WORKSPACE)
                && all.iter().all(|(known, _)| *known != $kind(algorithm))
            {
                all.push(($kind(algorithm), memory));
            }
        }
        all
    }};
}

impl Dnn {
    #[expect(unsafe_code, reason = "calls cuDNN")]
    pub(in crate::gpu) fn open(stream: &Arc<CudaStream>) -> Result<Self, Fault> {
        bound::open(Library::Cudnn)?;
        stream.context().bind_to_thread()?;
        let handle = result::create_handle().map_err(|e| Fault::from(e).at_start(free(stream)))?;
        let opened = Self { handle, stream: stream.clone(), chosen: BTreeMap::new() };
        // SAFETY: the stream is kept as long as the handle.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }?;
        Ok(opened)
    }

    /// What cuDNN knows it by.
    pub(in crate::gpu) fn handle(&self) -> sys::cudnnHandle_t {
        self.handle
    }

    /// How it computes something of a plan: what it offers is asked for once.
    pub(in crate::gpu) fn prepare(&mut self, of: Of, plan: &Plan) -> Result<&mut Chosen, Fault> {
        match self.chosen.entry((of, *plan)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(Chosen::new(self.handle, of, plan)?)),
        }
    }
}

impl Chosen {
    fn new(handle: sys::cudnnHandle_t, of: Of, plan: &Plan) -> Result<Self, Fault> {
        let described = Described::of(plan)?;
        let offers = Self::offers(handle, of, &described)?;
        Ok(Self { described, offers, settled: false })
    }

    #[expect(unsafe_code, reason = "calls cuDNN")]
    fn offers(handle: sys::cudnnHandle_t, of: Of, d: &Described) -> Result<Vec<(Algorithm, usize)>, CudnnError> {
        let (most, mut count, mut list) = (LISTED as c_int, 0, [Listing::default(); LISTED]);
        let at = list.as_mut_ptr();
        // SAFETY: descriptors that live, and a list of that many entries in the layout of each of the three.
        unsafe {
            Ok(match of {
                Of::Outputs => {
                    let ask = sys::cudnnGetConvolutionForwardAlgorithm_v7;
                    let answer = ask(handle, d.x, d.w, d.how, d.y, most, &mut count, at.cast()).result();
                    let needs = |a| result::get_convolution_forward_workspace_size(handle, d.x, d.w, d.how, d.y, a);
                    let others = [
                        Outputs::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
                        Outputs::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
                    ];
                    exact!(list[..listed(answer, count)?], OUTPUTS, others, Algorithm::Outputs, needs)
                }
                Of::Inputs => {
                    let ask = sys::cudnnGetConvolutionBackwardDataAlgorithm_v7;
                    let answer = ask(handle, d.w, d.y, d.how, d.x, most, &mut count, at.cast()).result();
                    let size = result::get_convolution_backward_data_workspace_size;
                    let needs = |a| size(handle, d.w, d.y, d.how, d.x, a);
                    let others = [Inputs::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1];
                    exact!(list[..listed(answer, count)?], INPUTS, others, Algorithm::Inputs, needs)
                }
                Of::Weights => {
                    let ask = sys::cudnnGetConvolutionBackwardFilterAlgorithm_v7;
                    let answer = ask(handle, d.x, d.y, d.how, d.w, most, &mut count, at.cast()).result();
                    let size = result::get_convolution_backward_filter_workspace_size;
                    let needs = |a| size(handle, d.x, d.y, d.how, d.w, a);
                    let others = [Weights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1];
                    exact!(list[..listed(answer, count)?], WEIGHTS, others, Algorithm::Weights, needs)
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cudnn_cannot_count_is_refused() {
        assert!(countable([5, 23170, 23170, 1]).is_err() && countable([1, 46340, 46340, 1]).is_ok());
        for over in [[usize::MAX, 2, 1, 1], [1 << 20, 1 << 11, 1, 1]] {
            assert!(matches!(countable(over), Err(Fault::TooMany(_))), "{over:?}");
        }
    }

    #[test]
    fn another_algorithm_may_do_what_one_was_refused_for_unless_memory_was_short() {
        use sys::cudnnStatus_t::{
            CUDNN_STATUS_BAD_PARAM as BAD, CUDNN_STATUS_EXECUTION_FAILED as FAILED,
            CUDNN_STATUS_INTERNAL_ERROR as INTERNAL, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED as THERE,
            CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED as HERE, CUDNN_STATUS_NOT_SUPPORTED as NONE,
        };
        for refused in [NONE, BAD, INTERNAL, FAILED] {
            assert!(may_be_another(CudnnError(refused)));
            assert_eq!(listed(Err(CudnnError(refused)), 5), Ok(0), "others are tried unlisted");
        }
        for short in [THERE, HERE] {
            assert!(!may_be_another(CudnnError(short)));
            assert_eq!(listed(Err(CudnnError(short)), 5), Err(CudnnError(short)));
        }
        // Where little is free, what is no fault of the plan's is for want of memory.
        for (status, free, short) in [
            (FAILED, Some(1 << 20), true),
            (INTERNAL, Some(1 << 20), true),
            (NONE, Some(1 << 20), false),
            (BAD, Some(1 << 20), false),
            (FAILED, Some(1 << 30), false),
            (FAILED, None, false),
            (THERE, Some(1 << 30), true),
        ] {
            assert_eq!(matches!(refused(CudnnError(status), free), Fault::Memory), short, "{status:?} {free:?}");
        }
        assert_eq!([listed(Ok(()), 5), listed(Ok(()), -1), listed(Ok(()), 1 << 20)], [Ok(5), Ok(0), Ok(LISTED)]);
    }
}
