//! The kernels of `rowwise.cu` as functions of states. Each checks the sizes that its kernel assumes; addresses come from
//! methods of [`super::tensors`], which check that what lies there is as long as its owner says. A pass has one lane: memory
//! that it makes is freed on the stream of that lane, behind the kernels that use it.

use super::card::LaneLease;
use super::memory::DeviceMemory;
use super::tensors::{CudaNorm, CudaStates, CudaTable, RowIndices, size};
use crate::Result;
use crate::compute::attention::heads::Heads;
use crate::compute::attention::rope::RopeStyle;
use crate::compute::backend::traits::lacking;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::pooling::Pooling;

/// Threads of a block that works on elements.
pub(super) const THREADS: usize = 256;

/// Blocks of a kernel that strides over its elements.
const MOST_BLOCKS: usize = 4096;

macro_rules! arguments {
    ($($value:expr),* $(,)?) => { [$((&raw const $value).cast_mut().cast::<std::ffi::c_void>()),*] };
}

/// `name` for this format.
macro_rules! by_format {
    ($format:expr, $name:literal) => {
        match $format {
            DType::F32 => concat!($name, "_f32"),
            DType::Bf16 => concat!($name, "_bf16"),
        }
    };
}

/// `name` for these two formats.
macro_rules! by_formats {
    ($from:expr, $to:expr, $name:literal) => {
        match ($from, $to) {
            (DType::F32, DType::F32) => concat!($name, "_f32_f32"),
            (DType::F32, DType::Bf16) => concat!($name, "_f32_bf16"),
            (DType::Bf16, DType::F32) => concat!($name, "_bf16_f32"),
            (DType::Bf16, DType::Bf16) => concat!($name, "_bf16_bf16"),
        }
    };
}

pub(super) use {arguments, by_format};

/// The longest row that a warp keeps in its registers.
const FAST_NORM: usize = 1024;

/// Rows of a block there.
const NORM_ROWS: usize = 4;

fn threads_of(width: usize) -> usize {
    width.div_ceil(4).next_multiple_of(32).clamp(32, THREADS)
}

/// A grid whose blocks stride over `elements`.
fn strided(elements: usize) -> ([usize; 2], usize) {
    ([elements.div_ceil(THREADS).min(MOST_BLOCKS), 1], THREADS)
}

/// A table, and the index of its row for each token.
pub(super) type TableRows<'a> = (&'a CudaTable, &'a RowIndices);

/// The sum of rows of tables, in float32.
pub(super) fn embed(
    lane: &LaneLease,
    format: DType,
    words: TableRows<'_>,
    positions: Option<TableRows<'_>>,
    token_types: Option<TableRows<'_>>,
    out: &CudaStates,
) -> Result<()> {
    let width = words.0.width;
    assert_eq!((out.width, out.format), (width, DType::F32), "states");
    let pair = |lookup: Option<TableRows<'_>>| {
        lookup.map_or((0, 0), |(table, indices)| {
            assert_eq!(table.width, width, "tables of one width");
            (table.address(format), indices.address(out.rows, table.rows))
        })
    };
    let ((words, ids), (positions, places), (types, token_types)) =
        (pair(Some(words)), pair(positions), pair(token_types));
    let (to, width_) = (out.address(), width as i32);
    let name = by_format!(format, "embed");
    let mut arguments = arguments![words, ids, positions, places, types, token_types, to, width_];
    // SAFETY: tables and `out` have rows of one width, which was compared above. Each table has as many indices as `out` has
    // rows, all of them below its number of rows.
    unsafe { lane.launch(name, ([out.rows, 1], threads_of(width)), 0, &mut arguments) }
}

/// `out = norm(x)` of each row; with a factor, `out += factor * norm(x)`.
pub(super) fn norm(
    lane: &LaneLease,
    x: &CudaStates,
    norm: &CudaNorm,
    out: &CudaStates,
    factor: Option<f32>,
) -> Result<()> {
    assert_eq!((out.rows, out.width, norm.length), (x.rows, x.width, x.width), "rows of one width");
    let ((from, to), (scale, shift)) = ((x.address(), out.address()), norm.addresses());
    let (rows, width, add, by) =
        (x.rows as i32, x.width as i32, i32::from(factor.is_some()), factor.unwrap_or(1.0));
    let epsilon = norm.epsilon;
    if x.width.is_multiple_of(4) && x.width <= FAST_NORM {
        let mut arguments = arguments![from, scale, shift, epsilon, to, rows, width, add, by];
        let (name, grid) = (by_formats!(x.format, out.format, "norm_fast"), [x.rows.div_ceil(NORM_ROWS), 1]);
        // SAFETY: both states have these rows and this width, and the norm as many parameters, which was compared above.
        return unsafe { lane.launch(name, (grid, 32 * NORM_ROWS), 0, &mut arguments) };
    }
    let mut arguments = arguments![from, scale, shift, epsilon, to, width, add, by];
    let name = by_formats!(x.format, out.format, "norm");
    // SAFETY: both states have these rows and this width, and the norm as many parameters, which was compared above. A block
    // has memory for a row.
    unsafe { lane.launch(name, ([x.rows, 1], threads_of(x.width)), 4 * x.width, &mut arguments) }
}

/// `out = activation(x)`; gated, of the first half of a row, times the second. `out` may be `x` if it is not gated.
pub(super) fn activation(
    lane: &LaneLease,
    x: &CudaStates,
    out: &CudaStates,
    activation: Activation,
    gated: bool,
) -> Result<()> {
    let width = if gated { x.width / 2 } else { x.width };
    assert_eq!((out.rows, out.width, out.format), (x.rows, width, x.format), "states of the same form");
    let kind: i32 = match activation {
        Activation::Identity => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Silu => 4,
        Activation::Tanh => 5,
        Activation::ReluSquared | Activation::Xielu(_) | Activation::ClampedSwish(_) => {
            return Err(lacking("for this activation"));
        }
    };
    let (from, to) = (x.address(), out.address());
    let (columns, gated) = (width as i32, i32::from(gated));
    let mut arguments = arguments![from, to, columns, kind, gated];
    let threads = (width * size(x.format) / 16).next_multiple_of(32).clamp(32, 128);
    let grid = [x.rows, (width * size(x.format) / 16).div_ceil(2 * threads).max(1)];
    // SAFETY: both states have these rows and one format; a row of `x` has `width` values, twice as many if gated.
    unsafe { lane.launch(by_format!(x.format, "activation"), (grid, threads), 0, &mut arguments) }
}

/// `out += factor * x`, of float32.
pub(super) fn add(lane: &LaneLease, x: &CudaStates, factor: f32, out: &CudaStates) -> Result<()> {
    assert_eq!((out.rows, out.width, out.format), (x.rows, x.width, DType::F32), "states of one size");
    let (from, to, count) = (x.address(), out.address(), (x.rows * x.width) as i64);
    let mut arguments = arguments![from, factor, to, count];
    // SAFETY: both states have `count` values: their rows and widths were compared above.
    unsafe { lane.launch(by_format!(x.format, "add"), strided(x.rows * x.width), 0, &mut arguments) }
}

/// `out = factor * x`; `out` may be `x`.
pub(super) fn convert(lane: &LaneLease, x: &CudaStates, factor: f32, out: &CudaStates) -> Result<()> {
    assert_eq!((out.rows, out.width), (x.rows, x.width), "states of one size");
    let (from, to, count) = (x.address(), out.address(), (x.rows * x.width) as i64);
    let mut arguments = arguments![from, factor, to, count];
    let name = by_formats!(x.format, out.format, "convert");
    // SAFETY: both states have `count` values: their rows and widths were compared above.
    unsafe { lane.launch(name, strided(x.rows * x.width), 0, &mut arguments) }
}

/// Rows `rows` of `x`.
pub(super) fn gather_rows(
    lane: &LaneLease,
    x: &CudaStates,
    rows: &RowIndices,
    out: &CudaStates,
) -> Result<()> {
    assert_eq!((out.width, out.format), (x.width, x.format), "states of one form");
    let (from, indices, to, width) =
        (x.address(), rows.address(out.rows, x.rows), out.address(), x.width as i32);
    let mut arguments = arguments![from, indices, to, width];
    let name = by_format!(x.format, "gather_rows");
    // SAFETY: rows of both states have one width and one format, which was compared above. There are as many indices as
    // `out` has rows, all of them of rows of `x`.
    unsafe { lane.launch(name, ([out.rows, 1], threads_of(x.width)), 0, &mut arguments) }
}

/// One row of each sequence. `offsets` are the first rows of the sequences of `x`, and their end.
pub(super) fn pool(
    lane: &LaneLease,
    x: &CudaStates,
    offsets: &RowIndices,
    pooling: Pooling,
    out: &CudaStates,
) -> Result<()> {
    assert_eq!((out.width, out.format), (x.width, DType::F32), "states of one width");
    let kind: i32 = match pooling {
        Pooling::Mean => 0,
        Pooling::MeanSqrtLen => 1,
        Pooling::WeightedMean => 2,
        Pooling::Max => 3,
        Pooling::Cls | Pooling::Last => unreachable!("rows of these are gathered"),
    };
    let threads = x.width.next_multiple_of(32).clamp(32, 128);
    let starts = offsets.address(out.rows + 1, x.rows + 1);
    let (from, to, width) = (x.address(), out.address(), x.width as i32);
    let mut arguments = arguments![from, starts, to, width, kind];
    let grid = [out.rows, x.width.div_ceil(threads)];
    // SAFETY: rows of both states have one width, which was compared above. A row of `out` has two offsets; the kernel reads
    // rows of `x` between them, and both are at most the number of rows of `x`.
    unsafe { lane.launch(by_format!(x.format, "pool"), (grid, threads), 0, &mut arguments) }
}

/// How the heads of queries or keys are normalized: `HeadNorm` of `rowwise.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct HeadNormArguments {
    scale: u64,
    shift: u64,
    epsilon: f32,
    mode: i32,
    step: i32,
    unused: i32,
}

impl HeadNormArguments {
    fn new(norm: Option<&CudaNorm>, heads: usize, width: usize) -> Self {
        let Some(norm) = norm else {
            return Self { scale: 0, shift: 0, epsilon: 0.0, mode: 0, step: 0, unused: 0 };
        };
        let all = norm.length == heads * width;
        assert!(all || norm.length == width, "a norm as long as a head or as all of them");
        let mode = if all && norm.shift.is_none() { 2 } else { 1 };
        let (scale, shift) = norm.addresses();
        Self {
            scale,
            shift,
            epsilon: norm.epsilon,
            mode,
            step: if all { width as i32 } else { 0 },
            unused: 0,
        }
    }
}

/// The angles of a pass's rows.
pub(super) struct Angles<'a> {
    /// Cosines and sines of each place.
    pub(super) table: &'a DeviceMemory,
    /// The place of each row.
    pub(super) places: &'a RowIndices,
    /// Of each row.
    pub(super) query_factors: Option<&'a DeviceMemory>,
    pub(super) pairs: usize,
    pub(super) style: RopeStyle,
}

/// Normalizes and rotates queries and keys in place.
pub(super) fn rotate(
    lane: &LaneLease,
    qkv: &CudaStates,
    heads: Heads,
    norms: Option<&(CudaNorm, CudaNorm)>,
    angles: &Angles<'_>,
) -> Result<()> {
    let Heads { heads: count, kv_heads, width } = heads;
    assert_eq!(qkv.width, (count + 2 * kv_heads) * width, "queries, keys and values");
    assert!(2 * angles.pairs <= width, "pairs of a head");
    assert!(
        angles.query_factors.is_none_or(|factors| factors.bytes() >= 4 * qkv.rows),
        "a factor for each row"
    );
    let queries = HeadNormArguments::new(norms.map(|norms| &norms.0), count, width);
    let keys = HeadNormArguments::new(norms.map(|norms| &norms.1), kv_heads, width);
    // Without pairs, no kernel reads the table.
    let table_rows = angles.table.bytes().checked_div(2 * 4 * angles.pairs).unwrap_or(usize::MAX);
    let (to, table, places, factors) = (
        qkv.address(),
        angles.table.at(0),
        angles.places.address(qkv.rows, table_rows),
        angles.query_factors.map_or(0, |factors| factors.at(0)),
    );
    let (heads, kv, width_, pairs) = (count as i32, kv_heads as i32, width as i32, angles.pairs as i32);
    let interleaved = i32::from(angles.style == RopeStyle::Interleaved);
    let warps = (count + kv_heads).clamp(1, 8);
    if let Some(name) = halves(qkv.format, width, angles, [&queries, &keys]) {
        let mut arguments = arguments![to, table, places, factors, heads, kv, queries, keys];
        // SAFETY: a row of `qkv` has all heads, and norms are as long as a head, which was checked above. Each row has a
        // place of the table, and a factor if there are any. `halves` returned the kernel of this width.
        return unsafe { lane.launch(name, ([qkv.rows, 1], 32 * warps), 0, &mut arguments) };
    }
    let mut arguments =
        arguments![to, table, places, factors, heads, kv, width_, pairs, interleaved, queries, keys];
    let name = by_format!(qkv.format, "rotate");
    // SAFETY: a row of `qkv` has all heads, and norms are as long as a head or as all of them, which was checked above. Each
    // row has a place of the table, and a factor if there are any. A warp has memory for a head.
    unsafe { lane.launch(name, ([qkv.rows, 1], 32 * warps), 4 * warps * width, &mut arguments) }
}

/// The kernel that keeps a head in registers, if there is one for these heads.
fn halves(
    format: DType,
    width: usize,
    angles: &Angles<'_>,
    norms: [&HeadNormArguments; 2],
) -> Option<&'static str> {
    let all_pairs = angles.style == RopeStyle::Neox && 2 * angles.pairs == width;
    let plain_norms = norms.iter().all(|norm| norm.mode < 2 && norm.shift == 0);
    match width {
        _ if !all_pairs || !plain_norms => None,
        64 => Some(by_format!(format, "rotate_halves_1")),
        128 => Some(by_format!(format, "rotate_halves_2")),
        256 => Some(by_format!(format, "rotate_halves_4")),
        _ => None,
    }
}
