//! Products of matrices, by cuBLAS.

use std::ffi::{c_int, c_longlong, c_void};

use cudarc::{
    cublas::{
        result::{gemm_ex, gemm_strided_batched_ex},
        sys,
    },
    driver::{DevicePtr, DevicePtrMut},
};
use tl_proto::spec::Precision;

use super::{Element, Math};
use crate::gpu::{Array, Fault, array::counted, blas::refused, device::free};

/// A matrix, or a batch of them, within an array.
pub struct Matrix<'a, T> {
    /// The array.
    pub of: &'a Array<T>,
    /// Where the first number lies.
    pub first: usize,
    /// From one row in memory to the next.
    pub stride: usize,
    /// From one matrix of a batch to the next.
    pub step: usize,
    /// Whether what lies there is the matrix's transpose.
    pub turned: bool,
}

// By hand, since derived ones would ask `T` to be so too.
impl<T> Clone for Matrix<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<'_, T> {}

impl<'a, T> Matrix<'a, T> {
    /// All rows of an array; for a batch `[batch, rows, columns]`, the matrices one after the other.
    pub fn of(of: &'a Array<T>) -> Self {
        let rows = match *of.shape() {
            [_, rows, _] => rows,
            _ => of.rows(),
        };
        Self { of, first: 0, stride: of.width(), step: rows * of.width(), turned: false }
    }

    /// Its transpose.
    pub fn turned(self) -> Self {
        Self { turned: !self.turned, ..self }
    }

    /// That `batch` matrices of so many rows and columns lie inside.
    fn expect(&self, batch: usize, rows: usize, columns: usize) -> Result<(), Fault> {
        let (lines, width) = if self.turned { (columns, rows) } else { (rows, columns) };
        // Where the last matrix begins, its last line, and where that ends. Steps and strides are anybody's numbers.
        let first = (batch - 1).checked_mul(self.step).and_then(|at| at.checked_add(self.first));
        let last = first.and_then(|at| (lines - 1).checked_mul(self.stride)?.checked_add(at));
        let end = last.and_then(|at| at.checked_add(width));
        if width > self.stride || end.is_none_or(|end| end > self.of.count()) {
            return Err(Fault::shape(format!("{batch} matrices of {rows}x{columns} in {:?}", self.of.shape())));
        }
        Ok(())
    }

    fn operation(&self) -> sys::cublasOperation_t {
        if self.turned { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N }
    }
}

fn int(n: usize) -> Result<c_int, Fault> {
    c_int::try_from(n).map_err(|_| Fault::shape(format!("{n} is more than cuBLAS counts to")))
}

/// What is multiplied.
pub type Pair<'a, T> = (Matrix<'a, T>, Matrix<'a, T>);

/// How many products there are, rows and columns of each, and the numbers of a sum.
pub type Size = (usize, usize, usize, usize);

/// `c = a·b`, or `c += a·b`, for `batch` matrices: `a` of `m` rows, `b` of `n` columns, `k` numbers a sum. `c` is
/// `[batch, m, n]`, or any shape of as many numbers.
///
/// # Errors
/// Matrices that do not lie inside their arrays, a full memory, or cuBLAS is not there or refuses.
pub fn product<'d, T: Element>(
    math: impl Into<Math<'d>>,
    pair: Pair<'_, T>,
    size: Size,
    c: &mut Array,
    add: bool,
) -> Result<(), Fault> {
    let (batch, m, n, _) = size;
    c.expect_count(counted(&[batch, m, n])?)?;
    multiply(math.into(), pair, size, (c, 0), add)
}

/// The product in new memory of a shape, of what was multiplied: rounded to that.
///
/// # Errors
/// As [`product`].
pub fn multiplied<'d, T: Element>(
    math: impl Into<Math<'d>>,
    pair: Pair<'_, T>,
    size: Size,
    shape: &[usize],
) -> Result<Array<T>, Fault> {
    let ((batch, m, n, _), math) = (size, math.into());
    let mut c = math.device.fresh::<T>(shape)?;
    c.expect_count(counted(&[batch, m, n])?)?;
    multiply(math, pair, size, (&mut c, 0), false)?;
    Ok(c)
}

/// A product into the numbers of `c` from `first` on.
#[expect(unsafe_code, reason = "cuBLAS takes sizes on trust")]
pub(super) fn multiply<T: Element, C: Element>(
    Math { device, tf32 }: Math<'_>,
    (a, b): Pair<'_, T>,
    (batch, m, n, k): Size,
    (c, first): (&mut Array<C>, usize),
    add: bool,
) -> Result<(), Fault> {
    if k == 0 {
        return Err(Fault::shape(format!("{batch} products of {m}x{k} and {k}x{n}")));
    }
    c.expect_run(&(first..first.saturating_add(counted(&[batch, m, n])?)))?;
    a.expect(batch, m, k)?;
    b.expect(batch, k, n)?;
    device.expect_own(a.of)?;
    device.expect_own(b.of)?;
    device.expect_own(c)?;
    let (alpha, beta) = (1.0f32, f32::from(u8::from(add)));
    let (alpha, beta) = ((&raw const alpha).cast::<c_void>(), (&raw const beta).cast::<c_void>());
    let (rows, columns, depth) = (int(m)?, int(n)?, int(k)?);
    let (a_stride, b_stride, all) = (int(a.stride)?, int(b.stride)?, int(batch)?);
    let (a_step, b_step) = (a.step as c_longlong, b.step as c_longlong);
    let place = device.blas()?;
    let Some(blas) = place.as_ref() else {
        return Err(Fault::shape("cuBLAS was opened and is not there"));
    };
    let stream = device.stream();
    stream.context().bind_to_thread()?;
    let (left, _left) = a.of.data.device_ptr(stream);
    let (right, _right) = b.of.data.device_ptr(stream);
    let (out, _out) = c.data.device_ptr_mut(stream);
    // The bindings only note where one of these cannot be waited for.
    stream.context().check_err()?;
    let at = |start: u64, first: usize, size: usize| start + (first * size) as u64;
    let left = at(left, a.first, size_of::<T>()) as *const c_void;
    let right = at(right, b.first, size_of::<T>()) as *const c_void;
    let out = at(out, first, size_of::<C>()) as *mut c_void;
    let compute = match T::precision(tf32) {
        Precision::F32 | Precision::Bf16 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        Precision::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
    };
    let handle = blas.handle();
    let (algorithm, take, give) = (sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT, T::TYPE, C::TYPE);
    let (turn_b, turn_a) = (b.operation(), a.operation());
    // cuBLAS reads columns: to it each of our matrices is its own transpose, and so is the product if the two change places.
    let begin = || {
        // SAFETY: what is read and written lies inside the arrays, as was checked above.
        unsafe {
            if batch == 1 {
                // One alone may be cut along its sums, where these are long and there are few of them.
                gemm_ex(
                    handle, turn_b, turn_a, columns, rows, depth, alpha, right, take, b_stride, left, take, a_stride,
                    beta, out, give, columns, compute, algorithm,
                )
            } else {
                let step = (m * n) as c_longlong;
                gemm_strided_batched_ex(
                    handle, turn_b, turn_a, columns, rows, depth, alpha, right, take, b_stride, b_step, left, take,
                    a_stride, a_step, beta, out, give, columns, step, all, compute, algorithm,
                )
            }
        }
    };
    // A kernel that could not be loaded has added nothing: a second one adds once.
    device.afford(|| begin().map_err(|e| refused(e, free(stream))))
}

/// Rows `x` and weights `[output, input]`, turned.
fn forward<'a, T>(x: &'a Array<T>, w: &'a Array<T>) -> Result<(Pair<'a, T>, Size), Fault> {
    let (rows, input, output) = (x.rows(), x.width(), w.rows());
    w.expect(&[output, input])?;
    Ok(((flat(x), flat(w).turned()), (1, rows, output, input)))
}

/// `x·wᵀ` for rows `x` and weights `[output, input]`.
///
/// # Errors
/// As [`product`].
pub fn linear<'d, T: Element>(math: impl Into<Math<'d>>, x: &Array<T>, w: &Array<T>) -> Result<Array<T>, Fault> {
    let (pair, size) = forward(x, w)?;
    multiplied(math, pair, size, &[size.1, size.2])
}

/// `x·wᵀ + bias`, rounded once. Of bf16 a bias is what bf16 has of it: the sums begin with it, and are never in f32 memory. One
/// that must not be rounded is [`linear_added`]'s.
///
/// # Errors
/// As [`product`].
pub fn linear_biased<'d, T: Element>(
    math: impl Into<Math<'d>>,
    x: &Array<T>,
    w: &Array<T>,
    bias: &Array,
) -> Result<Array<T>, Fault> {
    let ((pair, size), math) = (forward(x, w)?, math.into());
    let Some(mut y) = T::begun(math.device, bias, &[size.1, size.2])? else { return linear_added(math, x, w, bias) };
    multiply(math, pair, size, (&mut y, 0), true)?;
    Ok(y)
}

/// The same with a bias of f32, which is added to sums in f32: rounded once, too.
///
/// # Errors
/// As [`product`].
pub fn linear_added<'d, T: Element>(
    math: impl Into<Math<'d>>,
    x: &Array<T>,
    w: &Array<T>,
    bias: &Array,
) -> Result<Array<T>, Fault> {
    let ((pair, size), math) = (forward(x, w)?, math.into());
    let mut y = math.device.fresh(&[size.1, size.2])?;
    product(math, pair, size, &mut y, false)?;
    T::add_bias(math.device, y, bias)
}

/// `dy·w`: the input's gradient.
///
/// # Errors
/// As [`product`].
pub fn linear_input<'d, T: Element>(math: impl Into<Math<'d>>, dy: &Array<T>, w: &Array<T>) -> Result<Array<T>, Fault> {
    let (rows, output, input) = (dy.rows(), dy.width(), w.width());
    w.expect(&[output, input])?;
    multiplied(math, (flat(dy), flat(w)), (1, rows, input, output), &[rows, input])
}

/// `dw += dyᵀ·x`: the weights' gradient.
///
/// # Errors
/// As [`product`].
pub fn linear_weights<'d, T: Element>(
    math: impl Into<Math<'d>>,
    dy: &Array<T>,
    x: &Array<T>,
    dw: &mut Array,
) -> Result<(), Fault> {
    let (rows, output, input) = (dy.rows(), dy.width(), x.width());
    x.expect_count(rows * input)?;
    dw.expect(&[output, input])?;
    product(math, (flat(dy).turned(), flat(x)), (1, output, input, rows), dw, true)
}

/// All rows of an array of any shape as one matrix.
pub(super) fn flat<T>(of: &Array<T>) -> Matrix<'_, T> {
    Matrix { of, first: 0, stride: of.width(), step: of.count(), turned: false }
}
