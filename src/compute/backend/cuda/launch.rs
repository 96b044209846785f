//! The kernels of `rowwise.cu` and `attention.cu` as functions of states: each checks the sizes that its kernel assumes.

use std::ffi::c_void;

use super::card::LaneLease;
use super::memory::{DeviceMemory, Plain};
use super::tensors::{CudaNorm, CudaStates, CudaTable, size};
use crate::Result;
use crate::compute::attention::heads::{Heads, LayerAttention};
use crate::compute::attention::rope::RopeStyle;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::pooling::Pooling;

/// Threads of a block that works on elements.
const THREADS: usize = 256;

/// Blocks of a kernel that strides over its elements.
const MOST_BLOCKS: usize = 4096;

macro_rules! arguments {
    ($($value:expr),* $(,)?) => { [$((&raw const $value).cast_mut().cast::<c_void>()),*] };
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

fn address(memory: Option<&DeviceMemory>) -> u64 {
    memory.map_or(0, |memory| memory.at(0))
}

/// A table and the row of it for each token.
pub(super) type TableRows<'a> = (&'a CudaTable, &'a DeviceMemory);

/// The sum of rows of tables, in float32. The numbers of the rows were checked.
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
    for (table, numbers) in [Some(words), positions, token_types].into_iter().flatten() {
        assert_eq!(table.width, width, "tables of one width");
        assert!(table.memory.bytes() >= table.rows * width * size(format), "a whole table");
        assert!(numbers.bytes() >= 4 * out.rows, "a number for each row");
    }
    let pair = |lookup: Option<TableRows<'_>>| {
        lookup.map_or((0, 0), |(table, rows)| (table.memory.at(0), rows.at(0)))
    };
    let ((words, ids), (positions, places), (types, token_types)) =
        (pair(Some(words)), pair(positions), pair(token_types));
    let (to, width_) = (out.memory.at(0), width as i32);
    let name = by_format!(format, "embed");
    let mut arguments = arguments![words, ids, positions, places, types, token_types, to, width_];
    // SAFETY: sizes were checked above, and the caller checked the numbers of rows.
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
    let (from, to, scale, shift) =
        (x.memory.at(0), out.memory.at(0), norm.scale.at(0), address(norm.shift.as_ref()));
    let (rows, width, add, by) =
        (x.rows as i32, x.width as i32, i32::from(factor.is_some()), factor.unwrap_or(1.0));
    let epsilon = norm.epsilon;
    if x.width.is_multiple_of(4) && x.width <= FAST_NORM {
        let mut arguments = arguments![from, scale, shift, epsilon, to, rows, width, add, by];
        let (name, grid) = (by_formats!(x.format, out.format, "norm_fast"), [x.rows.div_ceil(NORM_ROWS), 1]);
        // SAFETY: both have these rows and this width, and the parameters that length.
        return unsafe { lane.launch(name, (grid, 32 * NORM_ROWS), 0, &mut arguments) };
    }
    let mut arguments = arguments![from, scale, shift, epsilon, to, width, add, by];
    let name = by_formats!(x.format, out.format, "norm");
    // SAFETY: both have these rows and this width, and the parameters that length.
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
    };
    let (from, to) = (x.memory.at(0), out.memory.at(0));
    let (columns, gated) = (width as i32, i32::from(gated));
    let mut arguments = arguments![from, to, columns, kind, gated];
    let threads = (width * size(x.format) / 16).next_multiple_of(32).clamp(32, 128);
    let grid = [x.rows, (width * size(x.format) / 16).div_ceil(2 * threads).max(1)];
    // SAFETY: the sizes were checked above.
    unsafe { lane.launch(by_format!(x.format, "activation"), (grid, threads), 0, &mut arguments) }
}

/// `out += factor * x`, of float32.
pub(super) fn add(lane: &LaneLease, x: &CudaStates, factor: f32, out: &CudaStates) -> Result<()> {
    assert_eq!((out.rows, out.width, out.format), (x.rows, x.width, DType::F32), "states of one size");
    let (from, to, count) = (x.memory.at(0), out.memory.at(0), (x.rows * x.width) as i64);
    let mut arguments = arguments![from, factor, to, count];
    // SAFETY: both have so many values.
    unsafe { lane.launch(by_format!(x.format, "add"), strided(x.rows * x.width), 0, &mut arguments) }
}

/// `out = factor * x`; `out` may be `x`.
pub(super) fn convert(lane: &LaneLease, x: &CudaStates, factor: f32, out: &CudaStates) -> Result<()> {
    assert_eq!((out.rows, out.width), (x.rows, x.width), "states of one size");
    let (from, to, count) = (x.memory.at(0), out.memory.at(0), (x.rows * x.width) as i64);
    let mut arguments = arguments![from, factor, to, count];
    let name = by_formats!(x.format, out.format, "convert");
    // SAFETY: both have so many values.
    unsafe { lane.launch(name, strided(x.rows * x.width), 0, &mut arguments) }
}

/// Rows `rows` of `x`, each of which it has.
pub(super) fn gather_rows(
    lane: &LaneLease,
    x: &CudaStates,
    rows: &DeviceMemory,
    out: &CudaStates,
) -> Result<()> {
    assert_eq!((out.width, out.format), (x.width, x.format), "states of one form");
    assert!(rows.bytes() >= 4 * out.rows, "a number for each row");
    let (from, numbers, to, width) = (x.memory.at(0), rows.at(0), out.memory.at(0), x.width as i32);
    let mut arguments = arguments![from, numbers, to, width];
    // SAFETY: the sizes were checked above, and the caller checked the numbers.
    unsafe {
        lane.launch(
            by_format!(x.format, "gather_rows"),
            ([out.rows, 1], threads_of(x.width)),
            0,
            &mut arguments,
        )
    }
}

/// One row of each sequence. `offsets` are the first rows of sequences of `x` and their end.
pub(super) fn pool(
    lane: &LaneLease,
    x: &CudaStates,
    offsets: &DeviceMemory,
    pooling: Pooling,
    out: &CudaStates,
) -> Result<()> {
    assert_eq!((out.width, out.format), (x.width, DType::F32), "states of one width");
    assert!(offsets.bytes() >= 4 * (out.rows + 1), "offsets of all sequences");
    let kind: i32 = match pooling {
        Pooling::Mean => 0,
        Pooling::MeanSqrtLen => 1,
        Pooling::WeightedMean => 2,
        Pooling::Max => 3,
        Pooling::Cls | Pooling::Last => unreachable!("rows of these are gathered"),
    };
    let threads = x.width.next_multiple_of(32).clamp(32, 128);
    let (from, starts, to, width) = (x.memory.at(0), offsets.at(0), out.memory.at(0), x.width as i32);
    let mut arguments = arguments![from, starts, to, width, kind];
    let grid = [out.rows, x.width.div_ceil(threads)];
    // SAFETY: the sizes were checked above, and the caller checked the offsets.
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
        Self {
            scale: norm.scale.at(0),
            shift: address(norm.shift.as_ref()),
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
    /// The place of each row, which the table has.
    pub(super) places: &'a DeviceMemory,
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
    assert!(angles.places.bytes() >= 4 * qkv.rows, "a place for each row");
    assert!(
        angles.query_factors.is_none_or(|factors| factors.bytes() >= 4 * qkv.rows),
        "a factor for each row"
    );
    let queries = HeadNormArguments::new(norms.map(|norms| &norms.0), count, width);
    let keys = HeadNormArguments::new(norms.map(|norms| &norms.1), kv_heads, width);
    let (to, table, places, factors) =
        (qkv.memory.at(0), angles.table.at(0), angles.places.at(0), address(angles.query_factors));
    let (heads, kv, width_, pairs) = (count as i32, kv_heads as i32, width as i32, angles.pairs as i32);
    let interleaved = i32::from(angles.style == RopeStyle::Interleaved);
    let warps = (count + kv_heads).clamp(1, 8);
    if let Some(name) = halves(qkv.format, width, angles, [&queries, &keys]) {
        let mut arguments = arguments![to, table, places, factors, heads, kv, queries, keys];
        // SAFETY: the sizes were checked above, and `halves` returned the kernel of this width.
        return unsafe { lane.launch(name, ([qkv.rows, 1], 32 * warps), 0, &mut arguments) };
    }
    let mut arguments =
        arguments![to, table, places, factors, heads, kv, width_, pairs, interleaved, queries, keys];
    let name = by_format!(qkv.format, "rotate");
    // SAFETY: the sizes were checked above; each warp has memory for a head.
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

/// A sequence of a pass: `Sequence` of `attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceSequence {
    pub(super) cache: u64,
    pub(super) first: i32,
    pub(super) rows: i32,
    pub(super) length: i32,
    pub(super) seen: i32,
    pub(super) capacity: i32,
    pub(super) unused: i32,
}

/// Queries of a sequence that a block computes: `Tile` of `attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceTile {
    pub(super) sequence: i32,
    pub(super) first: i32,
}

// SAFETY: numbers without gaps.
unsafe impl Plain for DeviceSequence {}
// SAFETY: numbers without gaps.
unsafe impl Plain for DeviceTile {}

/// What all tiles of a layer share: `Layer` of `attention.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LayerArguments {
    number: i32,
    heads: i32,
    kv_heads: i32,
    before: i32,
    after: i32,
    scale: f32,
    soft_cap: f32,
    unused: i32,
    bias: u64,
    longest: i32,
    unused_too: i32,
}

/// A distance that no text has.
const FAR: usize = 1 << 30;

impl LayerArguments {
    fn new(
        number: usize,
        heads: Heads,
        attention: &LayerAttention,
        bias: Option<(&DeviceMemory, usize)>,
    ) -> Self {
        Self {
            number: number as i32,
            heads: heads.heads as i32,
            kv_heads: heads.kv_heads as i32,
            before: attention.mask.before.min(FAR) as i32,
            after: attention.mask.after.min(FAR) as i32,
            scale: attention.factor(heads.width),
            soft_cap: attention.soft_cap.unwrap_or(0.0),
            unused: 0,
            bias: address(bias.map(|bias| bias.0)),
            longest: bias.map_or(0, |bias| bias.1 as i32),
            unused_too: 0,
        }
    }
}

/// How [`attend`] divides the queries of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueryDivision {
    /// Queries of a tile.
    pub(super) queries: usize,
    /// Whether tensor cores multiply.
    on_tensor_cores: bool,
}

impl QueryDivision {
    /// For heads of `width`, and sequences of at most `longest` new tokens.
    pub(super) fn new(format: DType, width: usize, longest: usize) -> Self {
        if format != DType::Bf16 || kernel_on_tensor_cores(width, false).is_none() {
            return Self { queries: 16, on_tensor_cores: false };
        }
        Self { queries: if longest <= SHORT { 32 } else { 64 }, on_tensor_cores: true }
    }
}

/// New tokens of sequences that are short.
const SHORT: usize = 32;

/// The kernel on tensor cores for heads of this width.
fn kernel_on_tensor_cores(width: usize, is_long: bool) -> Option<&'static str> {
    let [short, long] = match width {
        16 => ["attend_short_16", "attend_long_16"],
        32 => ["attend_short_32", "attend_long_32"],
        48 => ["attend_short_48", "attend_long_48"],
        64 => ["attend_short_64", "attend_long_64"],
        80 => ["attend_short_80", "attend_long_80"],
        96 => ["attend_short_96", "attend_long_96"],
        128 => ["attend_short_128", "attend_long_128"],
        _ => return None,
    };
    Some(if is_long { long } else { short })
}

/// The sequences of a pass, on the card.
pub(super) struct Sequences<'a> {
    pub(super) sequences: &'a DeviceMemory,
    /// The sequence of each row.
    pub(super) owners: Option<&'a DeviceMemory>,
    pub(super) tiling: QueryDivision,
    pub(super) tiles: &'a DeviceMemory,
    pub(super) tile_count: usize,
}

/// Attention of the queries of `qkv`. With caches, keys and values are appended to them first.
pub(super) fn attend(
    lane: &LaneLease,
    qkv: &CudaStates,
    heads: Heads,
    (number, attention): (usize, &LayerAttention),
    bias: Option<(&DeviceMemory, usize)>,
    sequences: &Sequences<'_>,
    out: &CudaStates,
) -> Result<()> {
    let Heads { heads: count, kv_heads, width } = heads;
    assert_eq!(qkv.width, (count + 2 * kv_heads) * width, "queries, keys and values");
    assert_eq!((out.rows, out.width, out.format), (qkv.rows, count * width, qkv.format), "sums of all heads");
    let layer = LayerArguments::new(number, heads, attention, bias);
    let (from, to, members, tiles, columns) =
        (qkv.memory.at(0), out.memory.at(0), sequences.sequences.at(0), sequences.tiles.at(0), width as i32);
    if let Some(owners) = sequences.owners {
        assert!(owners.bytes() >= 4 * qkv.rows, "the sequence of each row");
        let owners = owners.at(0);
        let mut arguments = arguments![from, members, owners, layer, columns];
        let threads = (kv_heads * width).next_multiple_of(32).clamp(32, THREADS);
        // SAFETY: the caller sees to caches with memory for the new tokens of each sequence.
        unsafe {
            lane.launch(by_format!(qkv.format, "append"), ([qkv.rows, 1], threads), 0, &mut arguments)?;
        }
    }
    let mut arguments = arguments![from, to, members, tiles, layer, columns];
    let QueryDivision { queries, on_tensor_cores } = sequences.tiling;
    let is_long = queries > SHORT;
    let (name, threads, shared) = match kernel_on_tensor_cores(width, is_long).filter(|_| on_tensor_cores) {
        // Rows of queries, and two steps of as many keys and values, each 16 bytes longer than a head.
        Some(name) => (name, 2 * queries, 5 * queries * (width + 8) * 2),
        None => {
            let name = match width {
                0..=256 => by_format!(qkv.format, "attend"),
                _ => by_format!(qkv.format, "attend_wide"),
            };
            // Rows of queries, keys and values, each a number longer than a head; scores; three numbers of each query.
            (name, 128, 4 * (3 * 16 * (width + 1) + 16 * 16 + 3 * 16))
        }
    };
    let grid = ([sequences.tile_count, count], threads);
    // SAFETY: the sizes were checked above; the caller sees to sequences and tiles within these rows.
    unsafe { lane.launch(name, grid, shared, &mut arguments) }
}
