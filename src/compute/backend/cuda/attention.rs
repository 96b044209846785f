//! Attention on a card: the kernels of `attention.cu`, and the sequences of a pass that they are given.

use std::cmp::Reverse;
use std::sync::Arc;

use super::cache::CudaCache;
use super::card::LaneLease;
use super::device::Cuda;
use super::launch::{THREADS, arguments, by_format};
use super::memory::{DeviceMemory, Plain};
use super::tensors::CudaStates;
use crate::Result;
use crate::compute::attention::heads::{DistanceBias, Heads, LayerAttention};
use crate::compute::backend::rows::PassRows;
use crate::compute::backend::traits::{KvCache as _, lacking};
use crate::compute::isa::DType;

/// A sequence of a pass: `Sequence` of `attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DeviceSequence {
    cache: u64,
    first: i32,
    rows: i32,
    length: i32,
    seen: i32,
    capacity: i32,
    unused: i32,
}

/// Queries of a sequence that a block computes: `Tile` of `attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DeviceTile {
    sequence: i32,
    first: i32,
}

// SAFETY: a `u64` and six `i32` are 32 bytes, a multiple of its alignment of 8: there is no padding.
unsafe impl Plain for DeviceSequence {}
// SAFETY: two `i32` are 8 bytes: there is no padding.
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

/// New tokens of sequences that are short.
const SHORT: usize = 32;

/// The widest heads that have a kernel: `attend_wide` keeps so many columns of a query.
const WIDEST_HEAD: usize = 512;

/// How the queries of a pass are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct QueryDivision {
    /// Queries of a tile.
    queries: usize,
    /// Whether tensor cores multiply.
    on_tensor_cores: bool,
}

impl QueryDivision {
    /// For heads of `width`, and sequences of at most `longest` new tokens.
    fn new(format: DType, width: usize, longest: usize) -> Self {
        if format != DType::Bf16 || kernel_on_tensor_cores(width, false).is_none() {
            return Self { queries: 16, on_tensor_cores: false };
        }
        Self { queries: if longest <= SHORT { 32 } else { 64 }, on_tensor_cores: true }
    }
}

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

/// The queries of all sequences in tiles, on the card.
struct QueryTiles {
    division: QueryDivision,
    memory: DeviceMemory,
    count: usize,
}

/// The sequences of a pass on the card, and their caches.
pub(super) struct Sequences<'a> {
    /// A [`DeviceSequence`] for each.
    memory: DeviceMemory,
    /// The sequence of each row, if there are caches.
    owners: Option<DeviceMemory>,
    /// Their memory stays where `memory` says: they are borrowed as long as this value lives.
    caches: Vec<&'a mut CudaCache>,
    /// Rows of the pass.
    rows: usize,
    /// The number of each sequence and its rows. The longest comes first, so that none begins when all others have ended.
    order: Vec<(usize, usize)>,
    /// Tokens of the longest text, with those in its cache.
    longest: usize,
    /// Made by the first attention.
    tiles: Option<QueryTiles>,
}

impl<'a> Sequences<'a> {
    /// The sequences with these rows on the card. Caches get memory for the new tokens.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`], and errors of the driver.
    ///
    /// # Panics
    /// If sequences do not follow each other, or tokens lie in caches that are not given.
    pub(super) fn new(
        lane: &mut LaneLease,
        rows: &PassRows<'_>,
        caches: Option<Vec<&'a mut CudaCache>>,
    ) -> Result<Self> {
        let has_caches = caches.is_some();
        let mut caches = caches.unwrap_or_default();
        let mut sequences = Vec::with_capacity(rows.sequences.len());
        let mut owners = Vec::new();
        let mut end = 0;
        for (number, own) in rows.sequences.iter().enumerate() {
            assert_eq!(own.start, end, "sequences one after the other");
            end = own.end;
            let length = rows.cached_len(number) + own.len();
            let (mut cache, mut capacity) = (0, 0);
            if has_caches {
                caches[number].reserve(length)?;
                (cache, capacity) = (caches[number].address(), caches[number].capacity);
                owners.resize(end, number as u32);
            }
            assert!(length <= if cache == 0 { own.len() } else { capacity }, "a place for each key");
            sequences.push(DeviceSequence {
                cache,
                first: own.start as i32,
                rows: own.len() as i32,
                length: length as i32,
                seen: rows.seen(number) as i32,
                capacity: capacity as i32,
                unused: 0,
            });
        }
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&number| (Reverse(sequences[number].length), number));
        Ok(Self {
            memory: lane.upload(&sequences)?,
            owners: if has_caches { Some(lane.upload(&owners)?) } else { None },
            caches,
            rows: end,
            longest: order.first().map_or(0, |&number| sequences[number].length as usize),
            order: order.into_iter().map(|number| (number, rows.sequences[number].len())).collect(),
            tiles: None,
        })
    }

    /// Attention of the queries of `qkv`, in the layer with this number. With caches, keys and values are appended to
    /// them first.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`], errors of the driver, and [`crate::Error::Internal`] for heads that are too wide.
    ///
    /// # Panics
    /// If `qkv` has other rows or columns, a cache is of other heads or fewer layers, or a text is longer than the bias.
    pub(super) fn attend(
        &mut self,
        backend: &Cuda,
        lane: &mut LaneLease,
        qkv: &CudaStates,
        heads: Heads,
        (number, attention): (usize, &LayerAttention),
    ) -> Result<CudaStates> {
        let Heads { heads: count, kv_heads, width } = heads;
        assert_eq!(qkv.rows, self.rows, "rows of this pass");
        assert_eq!(qkv.width, (count + 2 * kv_heads) * width, "queries, keys and values");
        assert!(kv_heads > 0 && count.is_multiple_of(kv_heads), "as many queries for each key");
        for cache in &self.caches {
            let shape = (cache.format, cache.shape.kv_heads, cache.shape.width);
            assert_eq!(shape, (qkv.format, kv_heads, width), "a cache of these heads");
            assert!(number < cache.shape.layers, "a layer of the cache");
        }
        if width > WIDEST_HEAD {
            return Err(lacking("attention of heads with more than 512 columns"));
        }
        // The backend keeps the memory of a bias.
        let bias = attention.bias.as_ref().map(|bias| self.bias(backend, bias, count)).transpose()?;
        let layer = LayerArguments {
            number: number as i32,
            heads: count as i32,
            kv_heads: kv_heads as i32,
            before: attention.mask.before.min(FAR) as i32,
            after: attention.mask.after.min(FAR) as i32,
            scale: attention.factor(width),
            soft_cap: attention.soft_cap.unwrap_or(0.0),
            unused: 0,
            bias: bias.as_ref().map_or(0, |bias| bias.at(0)),
            longest: attention.bias.as_ref().map_or(0, |bias| bias.longest()) as i32,
            unused_too: 0,
        };
        let out = CudaStates::new(lane, qkv.format, qkv.rows, count * width)?;
        let division = QueryDivision::new(qkv.format, width, self.longest_new());
        let tiles = self.tiles(lane, division)?;
        let (tile_count, tiles) = (tiles.count, tiles.memory.at(0));
        let (from, to, sequences, columns) = (qkv.address(), out.address(), self.memory.at(0), width as i32);
        if let Some(owners) = &self.owners {
            let owners = owners.at(0);
            let mut arguments = arguments![from, sequences, owners, layer, columns];
            let threads = (kv_heads * width).next_multiple_of(32).clamp(32, THREADS);
            // SAFETY: `qkv` has the rows and columns of the pass and its heads, and every row has an owner. The cache of a
            // sequence has these heads and this layer, by the assertions above, and places for all of its tokens, by `new`.
            unsafe {
                lane.launch(by_format!(qkv.format, "append"), ([qkv.rows, 1], threads), 0, &mut arguments)?;
            }
        }
        let mut arguments = arguments![from, to, sequences, tiles, layer, columns];
        let QueryDivision { queries, on_tensor_cores } = division;
        let is_long = queries > SHORT;
        let (name, threads, shared) = match kernel_on_tensor_cores(width, is_long).filter(|_| on_tensor_cores)
        {
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
        let grid = ([tile_count, count], threads);
        // SAFETY: `qkv` and `out` have the rows of the pass, and the columns of its heads. Tiles begin within sequences, and
        // sequences lie within the rows, by `new`. Keys lie in `qkv`, or in caches with these heads and this layer. A bias has
        // numbers of each head, and of each distance in the longest text. The kernel is one of this format and width.
        unsafe { lane.launch(name, grid, shared, &mut arguments)? };
        Ok(out)
    }

    /// The numbers of `bias` on the card, which has those of all heads and distances.
    fn bias(&self, backend: &Cuda, bias: &Arc<DistanceBias>, heads: usize) -> Result<Arc<DeviceMemory>> {
        assert!(self.longest <= bias.longest(), "positions of a bias by distance");
        assert_eq!(bias.heads(), heads, "a bias of each head");
        backend.bias(bias)
    }

    /// New tokens of the sequence that has the most.
    fn longest_new(&self) -> usize {
        self.order.iter().map(|&(_, rows)| rows).max().unwrap_or(0)
    }

    /// The tiles of this division.
    fn tiles(&mut self, lane: &mut LaneLease, division: QueryDivision) -> Result<&QueryTiles> {
        let tiles = match self.tiles.take().filter(|tiles| tiles.division == division) {
            Some(tiles) => tiles,
            None => {
                let tile = |(number, first)| DeviceTile { sequence: number as i32, first: first as i32 };
                let tiles: Vec<DeviceTile> = self
                    .order
                    .iter()
                    .flat_map(|&(number, rows)| {
                        (0..rows).step_by(division.queries).map(move |first| (number, first))
                    })
                    .map(tile)
                    .collect();
                QueryTiles { division, memory: lane.upload(&tiles)?, count: tiles.len() }
            }
        };
        Ok(self.tiles.insert(tiles))
    }
}
