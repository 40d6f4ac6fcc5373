//! The innermost loop: up to eight rows times a panel of up to three vectors, all sums in registers.

#![expect(unsafe_code, reason = "vector instructions and unchecked inner loops; `strip` checks every bound")]

use crate::num::simd::{Level, level};

/// Rows of one tile.
pub const ROWS: usize = 8;
/// Vectors of the widest panel.
pub const VECTORS: usize = 3;

/// Numbers in one vector at the level of this machine.
pub fn lanes() -> usize {
    if level() == Level::V4 { 16 } else { 8 }
}

/// Vector operations of one level.
trait Simd {
    const LANES: usize;
    type V: Copy;
    fn zero() -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n` numbers, zeros behind them.
    unsafe fn load_some(p: *const f32, n: usize) -> Self::V;
    /// The first `n` numbers.
    unsafe fn store_some(p: *mut f32, v: Self::V, n: usize);
    unsafe fn splat(p: *const f32) -> Self::V;
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn add(a: Self::V, b: Self::V) -> Self::V;
}

struct Base;

impl Simd for Base {
    const LANES: usize = 8;
    type V = [f32; 8];
    #[inline(always)]
    fn zero() -> Self::V {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for eight numbers.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for eight numbers.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_some(p: *const f32, n: usize) -> Self::V {
        // SAFETY: the caller vouches for `n` numbers.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_some(p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the caller vouches for `n` numbers.
        v.iter().take(n).enumerate().for_each(|(i, v)| unsafe { *p.add(i) = *v });
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for one number.
        [unsafe { *p }; 8]
    }
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Where the machine has no fused product a call would emulate one: two roundings are the better choice.
        std::array::from_fn(
            |i| if cfg!(target_arch = "aarch64") { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] },
        )
    }
    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($name:ident, $lanes:literal, $v:ident, $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident,
     $mask:expr, $load_some:ident, $store_some:ident) => {
        struct $name;

        impl Simd for $name {
            const LANES: usize = $lanes;
            type V = std::arch::x86_64::$v;
            #[inline(always)]
            fn zero() -> Self::V {
                // SAFETY: only reached from functions compiled for these features.
                unsafe { std::arch::x86_64::$zero() }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self::V {
                // SAFETY: as above, and the caller vouches for the numbers.
                unsafe { std::arch::x86_64::$load(p) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: Self::V) {
                // SAFETY: as above, and the caller vouches for the numbers.
                unsafe { std::arch::x86_64::$store(p, v) }
            }
            #[inline(always)]
            unsafe fn load_some(p: *const f32, n: usize) -> Self::V {
                // SAFETY: as above; what the mask leaves out is not touched.
                unsafe { $load_some(p, $mask(n)) }
            }
            #[inline(always)]
            unsafe fn store_some(p: *mut f32, v: Self::V, n: usize) {
                // SAFETY: as above; what the mask leaves out is not touched.
                unsafe { $store_some(p, $mask(n), v) }
            }
            #[inline(always)]
            unsafe fn splat(p: *const f32) -> Self::V {
                // SAFETY: as above, and the caller vouches for one number.
                unsafe { std::arch::x86_64::$splat(*p) }
            }
            #[inline(always)]
            fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                // SAFETY: as above.
                unsafe { std::arch::x86_64::$fma(a, b, c) }
            }
            #[inline(always)]
            fn add(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: as above.
                unsafe { std::arch::x86_64::$add(a, b) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod masks {
    use std::arch::x86_64::{__m256i, __m512, __mmask16, _mm256_loadu_si256, _mm512_maskz_loadu_ps};

    /// All bits of the first `n` of eight numbers.
    #[inline(always)]
    pub unsafe fn eight(n: usize) -> __m256i {
        const BITS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: eight numbers from one of the first nine places on.
        unsafe { _mm256_loadu_si256(BITS.as_ptr().add(8 - n.min(8)).cast()) }
    }

    /// A bit for each of the first `n` of sixteen numbers.
    #[inline(always)]
    pub fn sixteen(n: usize) -> __mmask16 {
        ((1u32 << n.min(16)) - 1) as __mmask16
    }

    /// The arguments in the order of AVX2.
    #[inline(always)]
    pub unsafe fn load(p: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: passed on.
        unsafe { _mm512_maskz_loadu_ps(mask, p) }
    }
}

#[cfg(target_arch = "x86_64")]
use {
    masks::load as load_sixteen,
    std::arch::x86_64::{
        _mm256_maskload_ps as load_eight, _mm256_maskstore_ps as store_eight, _mm512_mask_storeu_ps as store_sixteen,
    },
};

#[cfg(target_arch = "x86_64")]
x86!(
    Avx2,
    8,
    __m256,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    masks::eight,
    load_eight,
    store_eight
);
#[cfg(target_arch = "x86_64")]
x86!(
    Avx512,
    16,
    __m512,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    masks::sixteen,
    load_sixteen,
    store_sixteen
);

/// The left side of a product: where the numbers of its rows lie.
///
/// # Safety
/// From [`Left::row`] of each of the [`Left::rows`] on, [`Left::depth`] numbers can be read, [`Left::STEP`] apart.
pub unsafe trait Left {
    /// Distance between two numbers of a row.
    const STEP: usize;
    /// Rows.
    fn rows(&self) -> usize;
    /// Numbers that each row has at least.
    fn depth(&self) -> usize;
    /// The first number of a row.
    fn row(&self, i: usize) -> *const f32;
}

/// Rows that each lie together, wherever they begin.
pub struct Slices<'a> {
    rows: &'a [&'a [f32]],
    depth: usize,
}

impl<'a> Slices<'a> {
    /// # Panics
    /// If a slice is shorter than `depth`.
    pub fn new(rows: &'a [&'a [f32]], depth: usize) -> Self {
        assert!(rows.iter().all(|row| row.len() >= depth), "rows are shorter than their product");
        Self { rows, depth }
    }
}

// SAFETY: `new` has looked at every slice.
unsafe impl Left for Slices<'_> {
    const STEP: usize = 1;
    fn rows(&self) -> usize {
        self.rows.len()
    }
    fn depth(&self) -> usize {
        self.depth
    }
    #[inline(always)]
    fn row(&self, i: usize) -> *const f32 {
        self.rows[i].as_ptr()
    }
}

/// Tiles of [`ROWS`] rows, one after the other: a number of each row, then the next of each.
pub struct Tiles<'a> {
    data: &'a [f32],
    rows: usize,
    depth: usize,
}

impl<'a> Tiles<'a> {
    /// # Panics
    /// If there are fewer numbers than that.
    pub fn new(data: &'a [f32], rows: usize, depth: usize) -> Self {
        assert!(data.len() >= rows.div_ceil(ROWS) * ROWS * depth, "tiles are shorter than their product");
        Self { data, rows, depth }
    }
}

// SAFETY: `new` has seen that all tiles are there, and a row's last number lies before its tile's end.
unsafe impl Left for Tiles<'_> {
    const STEP: usize = ROWS;
    fn rows(&self) -> usize {
        self.rows
    }
    fn depth(&self) -> usize {
        self.depth
    }
    #[inline(always)]
    fn row(&self, i: usize) -> *const f32 {
        self.data[i / ROWS * ROWS * self.depth + i % ROWS..].as_ptr()
    }
}

/// Where rows of a product go: `width` numbers from each place on.
pub struct Target<'a> {
    c: &'a mut [f32],
    at: &'a [usize],
    width: usize,
}

impl<'a> Target<'a> {
    /// # Panics
    /// If a row does not fit.
    pub fn new(c: &'a mut [f32], at: &'a [usize], width: usize) -> Self {
        let fits = |at: &usize| *at <= c.len() && c.len() - at >= width;
        assert!(at.iter().all(fits), "rows of a product do not fit their slice");
        Self { c, at, width }
    }
}

/// A part of the right side: `len` rows of a panel, for the columns `[first, first + cols)` of the product.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// The rows, `vectors` wide.
    pub data: &'a [f32],
    /// Width in vectors.
    pub vectors: usize,
    /// First column.
    pub first: usize,
    /// Columns.
    pub cols: usize,
    /// Rows.
    pub len: usize,
    /// The first of the left side's numbers that they belong to.
    pub from: usize,
}

/// Rows `first..first + MR` of a product with a part, or as many as there are: all sums in registers.
///
/// # Safety
/// What [`strip`] asserts.
#[inline(always)]
unsafe fn tile<S: Simd, L: Left, const MR: usize, const NV: usize>(
    left: &L,
    first: usize,
    part: Part<'_>,
    c: &[*mut f32; MR],
    add: bool,
) {
    let rows = (left.rows() - first).min(MR);
    // SAFETY: each row has numbers up to `from + len`. Missing rows repeat the last one and are not stored.
    let a: [*const f32; MR] =
        std::array::from_fn(|i| unsafe { left.row(first + i.min(rows - 1)).add(part.from * L::STEP) });
    let mut acc = [[S::zero(); NV]; MR];
    let (mut b, mut at) = (part.data.as_ptr(), 0);
    for _ in 0..part.len {
        // SAFETY: inside `len` rows of the panel, and `len` numbers of each row on the left.
        unsafe {
            let panel: [S::V; NV] = std::array::from_fn(|j| S::load(b.add(j * S::LANES)));
            for i in 0..MR {
                let x = S::splat(a[i].add(at));
                for j in 0..NV {
                    acc[i][j] = S::fma(x, panel[j], acc[i][j]);
                }
            }
            b = b.add(NV * S::LANES);
        }
        at += L::STEP;
    }
    for (sums, c) in acc.iter().zip(c).take(rows) {
        for (j, v) in sums.iter().enumerate() {
            let left = part.cols.saturating_sub(j * S::LANES);
            // SAFETY: `cols` numbers of a row are valid.
            unsafe {
                let p = c.add(j * S::LANES);
                if left >= S::LANES {
                    S::store(p, if add { S::add(S::load(p), *v) } else { *v });
                } else {
                    S::store_some(p, if add { S::add(S::load_some(p, left), *v) } else { *v }, left);
                }
            }
        }
    }
}

/// All rows of a product with a part, `MR` at a time.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn tiles<S: Simd, L: Left, const MR: usize, const NV: usize>(
    left: &L,
    part: Part<'_>,
    c: &mut Target<'_>,
    add: bool,
) {
    let (base, count) = (c.c.as_mut_ptr(), c.at.len());
    for first in (0..count).step_by(MR) {
        // SAFETY: each row of the output has `first + cols` numbers.
        unsafe {
            let place = |i: usize| base.add(c.at[(first + i).min(count - 1)] + part.first);
            if MR > 4 && count - first <= 4 {
                tile::<S, L, 4, NV>(left, first, part, &std::array::from_fn(place), add);
            } else {
                tile::<S, L, MR, NV>(left, first, part, &std::array::from_fn(place), add);
            }
        }
    }
}

/// Calls [`tiles`] for the width of the panel.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn width<S: Simd, L: Left, const MR: usize>(left: &L, part: Part<'_>, c: &mut Target<'_>, add: bool) {
    // SAFETY: passed on.
    unsafe {
        match part.vectors {
            1 => tiles::<S, L, MR, 1>(left, part, c, add),
            2 => tiles::<S, L, MR, 2>(left, part, c, add),
            _ => tiles::<S, L, MR, 3>(left, part, c, add),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn v4<L: Left>(left: &L, part: Part<'_>, c: &mut Target<'_>, add: bool) {
    // SAFETY: passed on.
    unsafe { width::<Avx512, L, 8>(left, part, c, add) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn v3<L: Left>(left: &L, part: Part<'_>, c: &mut Target<'_>, add: bool) {
    // SAFETY: passed on.
    unsafe { width::<Avx2, L, 4>(left, part, c, add) }
}

/// `c[at[i]..][first..first + cols] (+)= Σₚ left[i][from + p] · part[p][..]` for `p < len`.
///
/// # Panics
/// If a side is shorter than its part of the product.
pub fn strip<L: Left>(left: &L, part: Part<'_>, c: &mut Target<'_>, add: bool) {
    assert!(left.rows() == c.at.len() && part.from + part.len <= left.depth());
    assert!((1..=VECTORS).contains(&part.vectors) && part.first + part.cols <= c.width);
    // So that neither a row of the left side nor one of the product is gone past.
    assert!(part.len > 0 && part.cols > (part.vectors - 1) * lanes() && part.cols <= part.vectors * lanes());
    assert!(part.data.len() >= part.len * part.vectors * lanes());
    // SAFETY: the assertions, and those of the sides, bound every access; the level was found on this machine.
    unsafe {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::V4 => v4(left, part, c, add),
            #[cfg(target_arch = "x86_64")]
            Level::V3 => v3(left, part, c, add),
            _ => width::<Base, L, 4>(left, part, c, add),
        }
    }
}

#[cfg(test)]
mod tests;
