//! bf16 products by AMX: pairs of neighbours along the inner axis, in tiles of 16 × 16 pairs.
//!
//! A left factor `[M, K]` is cut into blocks of 16 rows, a right factor `[K, N]` into blocks of 16 columns, and both along the inner
//! axis into chunks of 32 values. A left tile has a row of pairs for each row, a right tile one for each pair of rows, as `TDPBF16PS`
//! reads them. Values outside a factor are zero.
#![allow(unsafe_code)] // instructions that the language has no names for, and vectors that a processor may lack

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, __m512i, _mm512_cvtne2ps_pbh, _mm512_load_si512, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_permutexvar_epi16, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_store_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::cell::RefCell;
use std::mem::transmute;
use std::sync::OnceLock;

use super::super::product::Matrix;

/// Rows of a left tile, columns of a right one, and pairs of both.
const SIDE: usize = 16;
/// Values of a chunk of the inner axis.
const CHUNK: usize = 2 * SIDE;
/// Rows and columns of a result that are computed at once: two tiles each.
const BLOCK: usize = 2 * SIDE;

/// 16 rows of 16 pairs; the lower half of a word is the earlier value.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([u32; SIDE * SIDE]);

const EMPTY: Tile = Tile([0; SIDE * SIDE]);

/// What `LDTILECFG` reads: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (64, SIDE as u8);
        tile += 1;
    }
    Shapes {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes,
        rows,
    }
};

/// Whether the processor has AMX for bf16 and the kernel lets this process use it.
pub(super) fn found() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        // Leaf 7, EDX: bit 22 AMX-BF16, bit 24 AMX-TILE.
        vectors && __cpuid_count(7, 0).edx & (1 << 22 | 1 << 24) == (1 << 22 | 1 << 24) && permitted()
    })
}

/// Asks the kernel for the tiles' state (Linux, Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tiles of a factor: those of a block one after another, blocks in pairs. Their memory is used again by the thread that drops them.
struct Tiles(Vec<Tile>);

thread_local! {
    static SPARE: RefCell<Vec<Vec<Tile>>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Tiles {
    fn drop(&mut self) {
        let mut tiles = std::mem::take(&mut self.0);
        tiles.clear();
        SPARE.with_borrow_mut(|spare| spare.push(tiles));
    }
}

/// A right factor in tiles.
pub(super) struct Right {
    tiles: Tiles,
    inner: usize,
    columns: usize,
}

impl Right {
    /// # Panics
    /// Where [`found`] is false.
    pub(super) fn new(b: Matrix) -> Self {
        assert!(found(), "products of tiles need AMX");
        let (inner, columns) = b.size();
        Self {
            tiles: Tiles::new(b.transposed(), 1.0, Order::PairsFirst),
            inner,
            columns,
        }
    }

    /// See [`super::Rounded::multiply`].
    pub(super) fn multiply(&self, out: &mut [f32], stride: usize, keep: bool, factor: f32, a: Matrix) {
        let (rows, inner) = a.size();
        assert!(
            inner == self.inner && (rows - 1) * stride + self.columns <= out.len() && self.columns <= stride,
            "sizes of a product"
        );
        let left = Tiles::new(a, factor, Order::OuterFirst);
        let chunks = inner.div_ceil(CHUNK);
        let mut edge = [0.0_f32; BLOCK * BLOCK];
        // SAFETY: `self` exists, so the processor has tiles; SHAPES is what the instruction reads.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) };
        for (j, b) in self.tiles.0.chunks_exact(2 * chunks).enumerate() {
            let width = BLOCK.min(self.columns - j * BLOCK);
            for (i, a) in left.0.chunks_exact(2 * chunks).enumerate() {
                let height = BLOCK.min(rows - i * BLOCK);
                let out = &mut out[i * BLOCK * stride + j * BLOCK..];
                if (height, width) == (BLOCK, BLOCK) {
                    // SAFETY: `a` and `b` hold two blocks of `chunks` tiles, `out` 32 rows of 32 values: the first value of the
                    // last row is inside by the assertion above, and so are those beside it, as `width` is 32.
                    unsafe { block(a, b, chunks, out.as_mut_ptr(), stride, keep) };
                    continue;
                }
                // SAFETY: as above; `edge` holds 32 rows of 32 values.
                unsafe { block(a, b, chunks, edge.as_mut_ptr(), BLOCK, false) };
                for (out, found) in out.chunks_mut(stride).zip(edge.chunks_exact(BLOCK)).take(height) {
                    for (out, found) in out[..width].iter_mut().zip(found) {
                        *out = if keep { *out + found } else { *found };
                    }
                }
            }
        }
        // SAFETY: gives up the tiles' state, which nothing else uses.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// 32 rows of 32 values: `out := keep · out + a · b`.
///
/// # Safety
/// The processor has tiles and they are configured by [`SHAPES`]; `a` and `b` hold twice `chunks` tiles, at least two; `out` points
/// to 32 rows of 32 values, `stride` apart.
unsafe fn block(a: &[Tile], b: &[Tile], chunks: usize, out: *mut f32, stride: usize, keep: bool) {
    let lower = |tiles: &[Tile]| tiles[chunks..].as_ptr();
    // SAFETY: the caller's promise; the loop reads `chunks` tiles from each of the four pointers.
    unsafe {
        asm!(
            "test {keep}, {keep}",
            "jz 2f",
            "tileloadd tmm0, [{out} + {stride}]",
            "tileloadd tmm1, [{out} + {stride} + 64]",
            "tileloadd tmm2, [{low} + {stride}]",
            "tileloadd tmm3, [{low} + {stride} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b_next} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_next} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {b}, 1024",
            "add {a_next}, 1024",
            "add {b_next}, 1024",
            "dec {chunks}",
            "jnz 3b",
            "tilestored [{out} + {stride}], tmm0",
            "tilestored [{out} + {stride} + 64], tmm1",
            "tilestored [{low} + {stride}], tmm2",
            "tilestored [{low} + {stride} + 64], tmm3",
            keep = in(reg) u64::from(keep),
            out = in(reg) out,
            low = in(reg) out.add(SIDE * stride),
            stride = in(reg) 4 * stride,
            row = in(reg) 64_usize,
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            a_next = inout(reg) lower(a) => _,
            b_next = inout(reg) lower(b) => _,
            chunks = inout(reg) chunks => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// What a tile has a row for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Each of 16 rows of the factor: a left tile.
    OuterFirst,
    /// Each of 16 pairs: a right tile, of a factor whose transpose is given.
    PairsFirst,
}

impl Tiles {
    /// `factor · x`, rounded: blocks of 16 rows of `x`, each in chunks of its columns.
    fn new(x: Matrix, factor: f32, order: Order) -> Self {
        let (outer, inner) = x.size();
        let (values, outer_stride, inner_stride) = x.layout();
        let (blocks, chunks) = (outer.next_multiple_of(BLOCK) / SIDE, inner.div_ceil(CHUNK));
        let mut tiles = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        tiles.resize(blocks * chunks, EMPTY);
        for i in 0..tiles.len() {
            // In the order in which the values lie in memory.
            let (block, chunk) = if inner_stride == 1 {
                (i / chunks, i % chunks)
            } else {
                (i % blocks, i / blocks)
            };
            let (tile, first, start) = (&mut tiles[block * chunks + chunk], block * SIDE, chunk * CHUNK);
            let (height, width) = (SIDE.min(outer.saturating_sub(first)), CHUNK.min(inner - start));
            if height == 0 {
                continue;
            }
            let part = &values[first * outer_stride + start * inner_stride..];
            // SAFETY: both are called where the processor has tiles, and so the vectors; `part` holds `height` rows of `width` values
            // with these strides, because the matrix was checked when it was made.
            unsafe {
                let found = if inner_stride == 1 {
                    rows(tile, part, [height, width], outer_stride, factor);
                    Order::OuterFirst
                } else {
                    assert_eq!(outer_stride, 1, "one of a matrix's axes lies in one piece");
                    pairs(tile, part, [height, width], inner_stride, factor);
                    Order::PairsFirst
                };
                if found != order {
                    transpose(tile);
                }
            }
        }
        Self(tiles)
    }
}

/// A row of the tile for each of `height` rows of `width` values, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rows(tile: &mut Tile, values: &[f32], [height, width]: [usize; 2], stride: usize, factor: f32) {
    let masks = [mask(width), mask(width.saturating_sub(SIDE))];
    let factor = _mm512_set1_ps(factor);
    for (row, out) in tile.0.chunks_exact_mut(SIDE).enumerate().take(height) {
        let from = values.as_ptr().wrapping_add(row * stride);
        // SAFETY: masked values are not read, the others are inside by the caller's promise; a row of a tile is 64 bytes, aligned.
        unsafe {
            let low = _mm512_mul_ps(_mm512_maskz_loadu_ps(masks[0], from), factor);
            let high = _mm512_mul_ps(_mm512_maskz_loadu_ps(masks[1], from.wrapping_add(SIDE)), factor);
            let both: __m512i = transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_store_si512(out.as_mut_ptr().cast(), both);
        }
    }
}

/// A row of the tile for each pair of neighbours among `width` lines of `height` values, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pairs(tile: &mut Tile, values: &[f32], [height, width]: [usize; 2], stride: usize, factor: f32) {
    const TURNS: [u16; 32] = {
        let mut turns = [0; 32];
        let mut i = 0;
        while i < 32 {
            turns[i] = (i / 2 + SIDE * (i % 2)) as u16;
            i += 1;
        }
        turns
    };
    let (some, factor) = (mask(height), _mm512_set1_ps(factor));
    for (pair, out) in tile.0.chunks_exact_mut(SIDE).enumerate().take(width.div_ceil(2)) {
        let from = values.as_ptr().wrapping_add(2 * pair * stride);
        // SAFETY: as in `rows`.
        unsafe {
            let low = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, from), factor);
            let high = if 2 * pair + 1 < width {
                _mm512_mul_ps(_mm512_maskz_loadu_ps(some, from.wrapping_add(stride)), factor)
            } else {
                _mm512_setzero_ps()
            };
            let turns: __m512i = transmute(TURNS);
            let both: __m512i = transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_store_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(turns, both));
        }
    }
}

/// The lowest `count` of 16 bits, all of them from 16 on.
fn mask(count: usize) -> u16 {
    u16::try_from((1_u32 << count.min(SIDE)) - 1).expect("16 bits")
}

/// Exchanges rows and columns: words within pairs of rows, pairs within four rows, then four by four quarters of rows.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(tile: &mut Tile) {
    let row = |i: usize, tile: &Tile| {
        // SAFETY: a row of a tile is 64 bytes, aligned.
        unsafe { _mm512_load_si512(tile.0[i * SIDE..][..SIDE].as_ptr().cast()) }
    };
    let rows: [__m512i; SIDE] = std::array::from_fn(|i| row(i, tile));
    let fours: [[__m512i; 4]; 4] = std::array::from_fn(|i| {
        let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    });
    // Of two vectors the first and third quarter, and the second and fourth.
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    for column in 0..4 {
        let [a, b, c, d] = fours.map(|four| four[column]);
        let (ab, cd) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d));
        let (ab_odd, cd_odd) = (_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d));
        let columns = [
            _mm512_shuffle_i32x4::<EVEN>(ab, cd),
            _mm512_shuffle_i32x4::<EVEN>(ab_odd, cd_odd),
            _mm512_shuffle_i32x4::<ODD>(ab, cd),
            _mm512_shuffle_i32x4::<ODD>(ab_odd, cd_odd),
        ];
        for (four, found) in columns.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_store_si512(tile.0[(4 * four + column) * SIDE..][..SIDE].as_mut_ptr().cast(), found) };
        }
    }
}
