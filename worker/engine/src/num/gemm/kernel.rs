//! The innermost loop: up to eight rows times a panel of up to three vectors, all sums in registers.

#![expect(unsafe_code, reason = "vector instructions and unchecked inner loops; `tile` checks every bound")]

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
    ($name:ident, $lanes:literal, $v:ident, $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident) => {
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
x86!(
    Avx2,
    8,
    __m256,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps
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
    _mm512_add_ps
);

/// What a tile reads and writes; every pointer was checked by [`tile`].
#[derive(Clone, Copy)]
struct Job<'a> {
    k: usize,
    a: &'a [*const f32; ROWS],
    step: usize,
    b: *const f32,
    c: &'a [*mut f32; ROWS],
    first: usize,
    rows: usize,
    cols: usize,
    add: bool,
}

/// `c[i][..] (+)= Σₚ a[i][p·step] · b[p][..]` for rows `first..` of a job, at most `MR`.
///
/// # Safety
/// `k` steps of the rows of `a`, `k` rows of `NV` vectors at `b` and `cols` numbers of each row of `c` must be valid.
#[inline(always)]
unsafe fn run<S: Simd, const MR: usize, const NV: usize>(job: Job<'_>) {
    let rows = (job.rows - job.first).min(MR);
    // Missing rows repeat the last one and are not stored.
    let a: [*const f32; MR] = std::array::from_fn(|i| job.a[job.first + i.min(rows - 1)]);
    let mut acc = [[S::zero(); NV]; MR];
    let (mut b, mut at) = (job.b, 0);
    for _ in 0..job.k {
        // SAFETY: inside `k` rows of `b`, and `k` steps of each row of `a`.
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
        at += job.step;
    }
    for (i, sums) in acc.iter().enumerate().take(rows) {
        let c = job.c[job.first + i];
        if job.cols == NV * S::LANES {
            for (j, v) in sums.iter().enumerate() {
                // SAFETY: `cols` numbers of a row are valid.
                unsafe {
                    let p = c.add(j * S::LANES);
                    S::store(p, if job.add { S::add(S::load(p), *v) } else { *v });
                }
            }
        } else {
            let mut line = [0.0f32; 16 * VECTORS];
            for (j, v) in sums.iter().enumerate() {
                // SAFETY: `line` holds the widest panel.
                unsafe { S::store(line.as_mut_ptr().add(j * S::LANES), *v) };
            }
            for (j, v) in line.iter().enumerate().take(job.cols) {
                // SAFETY: `cols` numbers of a row are valid.
                unsafe {
                    let p = c.add(j);
                    *p = if job.add { *p + v } else { *v };
                }
            }
        }
    }
}

/// Calls [`run`] for the width of the panel.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn width<S: Simd, const MR: usize>(job: Job<'_>, vectors: usize) {
    let mut job = job;
    while job.first < job.rows {
        // SAFETY: passed on.
        unsafe {
            match vectors {
                1 => run::<S, MR, 1>(job),
                2 => run::<S, MR, 2>(job),
                _ => run::<S, MR, 3>(job),
            }
        }
        job.first += MR;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn v4(job: Job<'_>, vectors: usize) {
    // SAFETY: passed on.
    unsafe { if job.rows > 4 { width::<Avx512, 8>(job, vectors) } else { width::<Avx512, 4>(job, vectors) } }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn v3(job: Job<'_>, vectors: usize) {
    // SAFETY: passed on.
    unsafe { width::<Avx2, 4>(job, vectors) }
}

/// One tile: `c[at[i]..][..cols] (+)= Σₚ a[i][p·step] · b[p][..]` for `p < k`.
///
/// # Panics
/// If a slice is shorter than its part of the product.
#[expect(clippy::too_many_arguments, reason = "one product of three matrices in place")]
pub fn tile(
    k: usize,
    a: &[&[f32]],
    step: usize,
    b: &[f32],
    vectors: usize,
    c: &mut [f32],
    at: &[usize],
    cols: usize,
    add: bool,
) {
    let rows = a.len();
    assert!(k > 0 && rows > 0 && rows <= ROWS && at.len() == rows && (1..=VECTORS).contains(&vectors));
    assert!(cols <= vectors * lanes() && b.len() >= k * vectors * lanes());
    let mut pa = [std::ptr::null(); ROWS];
    let mut pc = [std::ptr::null_mut(); ROWS];
    for i in 0..rows {
        assert!(a[i].len() > (k - 1) * step && at[i] <= c.len() && c.len() - at[i] >= cols);
        pa[i] = a[i].as_ptr();
        pc[i] = c[at[i]..].as_mut_ptr();
    }
    let job = Job { k, a: &pa, step, b: b.as_ptr(), c: &pc, first: 0, rows, cols, add };
    // SAFETY: the assertions bound every access of the job; the level was found on this machine.
    unsafe {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::V4 => v4(job, vectors),
            #[cfg(target_arch = "x86_64")]
            Level::V3 => v3(job, vectors),
            _ => width::<Base, 4>(job, vectors),
        }
    }
}
