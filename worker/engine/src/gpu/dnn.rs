//! cuDNN's convolutions: descriptors, and which algorithm is taken.
//!
//! An algorithm is chosen once for each shape, from cuDNN's own list in its own order, by what it says of it: that it gives
//! the same bits each time, needs no tensor cores, and takes no more scratch memory than [`WORKSPACE`]. Never by a stopwatch.

use std::{collections::BTreeMap, ffi::c_int, sync::Arc};

use cudarc::{
    cudnn::{
        result::{self, CudnnError},
        sys,
    },
    driver::CudaStream,
};
use nvlib::Library;

use super::{Fault, device::free};

/// Bytes of scratch memory that a convolution may use. Part of the result, as the choice of the algorithm is.
const WORKSPACE: usize = 256 << 20;
/// Entries that are asked for: more than there are of any pass, each algorithm with each kind of arithmetic.
const LISTED: usize = 64;

const FLOAT: sys::cudnnDataType_t = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
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
}

/// What is computed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gpu) enum Of {
    Outputs,
    Inputs,
    Weights,
}

/// A chosen algorithm.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) enum Algorithm {
    Outputs(sys::cudnnConvolutionFwdAlgo_t),
    Inputs(sys::cudnnConvolutionBwdDataAlgo_t),
    Weights(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// A handle on one stream, and what was chosen.
pub(in crate::gpu) struct Dnn {
    handle: sys::cudnnHandle_t,
    /// Kept, since the handle is of it.
    stream: Arc<CudaStream>,
    chosen: BTreeMap<(Of, Plan), (Algorithm, usize)>,
}

#[expect(unsafe_code, reason = "a handle may be used from any one thread at a time")]
// SAFETY: so says cuDNN's documentation on thread safety; the device keeps it behind a lock.
unsafe impl Send for Dnn {}

impl Drop for Dnn {
    #[expect(unsafe_code, reason = "calls cuDNN")]
    fn drop(&mut self) {
        let _ = self.stream.context().bind_to_thread();
        // SAFETY: made by `create_handle`, and destroyed once. That it cannot be is no reason to stop.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Descriptors of a plan, destroyed with it.
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
        // Filled one by one, so that those that were made are destroyed where a later one fails.
        let mut all = Self { x: null_mut(), w: null_mut(), y: null_mut(), how: null_mut() };
        all.x = result::create_tensor_descriptor()?;
        all.w = result::create_filter_descriptor()?;
        all.y = result::create_tensor_descriptor()?;
        all.how = result::create_convolution_descriptor()?;
        // cuDNN names dimensions in the order images, channels, height, width, whatever the order in memory.
        let first = |[n, h, w, c]: [usize; 4]| Ok::<_, Fault>([int(n)?, int(c)?, int(h)?, int(w)?]);
        let (down, right, stride) = (int(plan.pad.0)?, int(plan.pad.1)?, int(plan.stride)?);
        let (cross, fma) = (sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION, sys::cudnnMathType_t::CUDNN_FMA_MATH);
        // SAFETY: descriptors that were just made.
        unsafe {
            result::set_tensor4d_descriptor(all.x, CHANNELS_LAST, FLOAT, first(plan.x)?)?;
            result::set_filter4d_descriptor(all.w, FLOAT, CHANNELS_LAST, first(plan.w)?)?;
            result::set_tensor4d_descriptor(all.y, CHANNELS_LAST, FLOAT, first(plan.y)?)?;
            result::set_convolution2d_descriptor(all.how, down, right, stride, stride, 1, 1, cross, FLOAT)?;
            result::set_convolution_group_count(all.how, int(plan.groups)?)?;
            // Not TF32, which the default allows.
            result::set_convolution_math_type(all.how, fma)?;
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

/// The first of a list that always gives the same bits, in f32 and in the memory that there is. The list also has entries of
/// other settings than the descriptors', so what one needs, and whether it can be had, is asked once more with just these.
macro_rules! first_exact {
    ($list:expr, $kind:expr, $needs:expr) => {
        $list
            .iter()
            .filter(|a| {
                a.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                    && a.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
                    && matches!(
                        a.mathType,
                        sys::cudnnMathType_t::CUDNN_DEFAULT_MATH | sys::cudnnMathType_t::CUDNN_FMA_MATH
                    )
            })
            .find_map(|a| {
                let memory = $needs(a.algo).ok().filter(|memory| *memory <= WORKSPACE)?;
                Some(($kind(a.algo), memory))
            })
    };
}

impl Dnn {
    #[expect(unsafe_code, reason = "calls cuDNN")]
    pub(in crate::gpu) fn open(stream: &Arc<CudaStream>) -> Result<Self, Fault> {
        Library::Cudnn.open()?;
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

    /// Descriptors, and the algorithm with the bytes of scratch memory that it needs.
    pub(in crate::gpu) fn prepare(&mut self, of: Of, plan: &Plan) -> Result<(Described, Algorithm, usize), Fault> {
        let described = Described::of(plan)?;
        if let Some((algorithm, memory)) = self.chosen.get(&(of, *plan)) {
            return Ok((described, *algorithm, *memory));
        }
        let chosen = self.choose(of, &described)?;
        let (algorithm, memory) = chosen.ok_or_else(|| Fault::NoAlgorithm(format!("{of:?} of {plan:?}")))?;
        self.chosen.insert((of, *plan), (algorithm, memory));
        Ok((described, algorithm, memory))
    }

    #[expect(unsafe_code, reason = "calls cuDNN")]
    fn choose(&self, of: Of, d: &Described) -> Result<Option<(Algorithm, usize)>, CudnnError> {
        let (most, mut count) = (LISTED as c_int, 0);
        let found = |count: c_int| usize::try_from(count).unwrap_or(0).min(LISTED);
        // SAFETY: descriptors that live, and lists of that many entries, for which zeros are good values: each of their
        // enumerations has one.
        unsafe {
            Ok(match of {
                Of::Outputs => {
                    let mut list = [std::mem::zeroed::<sys::cudnnConvolutionFwdAlgoPerf_t>(); LISTED];
                    let (handle, at) = (self.handle, list.as_mut_ptr());
                    let ask = sys::cudnnGetConvolutionForwardAlgorithm_v7;
                    ask(handle, d.x, d.w, d.how, d.y, most, &mut count, at).result()?;
                    let needs = |a| result::get_convolution_forward_workspace_size(handle, d.x, d.w, d.how, d.y, a);
                    first_exact!(list[..found(count)], Algorithm::Outputs, needs)
                }
                Of::Inputs => {
                    let mut list = [std::mem::zeroed::<sys::cudnnConvolutionBwdDataAlgoPerf_t>(); LISTED];
                    let (handle, at) = (self.handle, list.as_mut_ptr());
                    let ask = sys::cudnnGetConvolutionBackwardDataAlgorithm_v7;
                    ask(handle, d.w, d.y, d.how, d.x, most, &mut count, at).result()?;
                    let size = result::get_convolution_backward_data_workspace_size;
                    let needs = |a| size(handle, d.w, d.y, d.how, d.x, a);
                    first_exact!(list[..found(count)], Algorithm::Inputs, needs)
                }
                Of::Weights => {
                    let mut list = [std::mem::zeroed::<sys::cudnnConvolutionBwdFilterAlgoPerf_t>(); LISTED];
                    let (handle, at) = (self.handle, list.as_mut_ptr());
                    let ask = sys::cudnnGetConvolutionBackwardFilterAlgorithm_v7;
                    ask(handle, d.x, d.y, d.how, d.w, most, &mut count, at).result()?;
                    let size = result::get_convolution_backward_filter_workspace_size;
                    let needs = |a| size(handle, d.x, d.y, d.how, d.w, a);
                    first_exact!(list[..found(count)], Algorithm::Weights, needs)
                }
            })
        }
    }
}
