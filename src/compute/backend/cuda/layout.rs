//! What a pass tells the card about its sequences: where they lie, their tiles, their rotary positions.

use std::ops::Range;
use std::sync::Arc;

use super::cache::CudaCache;
use super::card::LaneLease;
use super::launch::{DeviceSequence, DeviceTile, QueryDivision, Sequences};
use super::memory::DeviceMemory;
use crate::Result;
use crate::compute::attention::rope::Rotary;
use crate::compute::backend::rows::PassRows;
use crate::compute::backend::traits::KvCache as _;

/// The sequences of a pass on the card.
pub(super) struct Layout {
    sequences: DeviceMemory,
    owners: Option<DeviceMemory>,
    tiles: DeviceMemory,
    tile_count: usize,
    pub(super) tiling: QueryDivision,
}

/// Rotary positions of the rows, and the angles of all positions.
pub(super) struct Rope {
    pub(super) rotary: Rotary,
    pub(super) table: Arc<DeviceMemory>,
    /// Of each row.
    pub(super) places: Vec<i32>,
    pub(super) query_factors: Option<Vec<f32>>,
    /// Both on the card, once they are needed.
    pub(super) uploaded: Option<(DeviceMemory, Option<DeviceMemory>)>,
}

impl Layout {
    /// The sequences with these rows on the card, and their tiles. Caches get room for the new tokens.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`], and errors of the driver.
    pub(super) fn new(
        lane: &mut LaneLease,
        rows: &PassRows<'_>,
        mut caches: Option<&mut [&mut CudaCache]>,
        tiling: QueryDivision,
    ) -> Result<Self> {
        let mut sequences = Vec::with_capacity(rows.sequences.len());
        for (number, own) in rows.sequences.iter().enumerate() {
            let length = rows.cached_len(number) + own.len();
            let (mut cache, mut capacity) = (0, 0);
            if let Some(caches) = &mut caches {
                caches[number].reserve(length)?;
                (cache, capacity) = (caches[number].address(), caches[number].capacity);
            }
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
        // The longest first, so that none of them begins when all others have ended.
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&number| (std::cmp::Reverse(sequences[number].length), number));
        let tiles: Vec<DeviceTile> = order
            .into_iter()
            .flat_map(|number| {
                let firsts = (0..rows.sequences[number].len()).step_by(tiling.queries);
                firsts.map(move |first| DeviceTile { sequence: number as i32, first: first as i32 })
            })
            .collect();
        let owners = match caches {
            Some(_) => {
                let of = |(number, rows): (usize, &Range<usize>)| vec![number as u32; rows.len()];
                let owners: Vec<u32> = rows.sequences.iter().enumerate().flat_map(of).collect();
                Some(lane.upload(&owners)?)
            }
            None => None,
        };
        Ok(Self {
            sequences: lane.upload(&sequences)?,
            owners,
            tile_count: tiles.len(),
            tiles: lane.upload(&tiles)?,
            tiling,
        })
    }

    /// For the kernels of attention.
    pub(super) fn sequences(&self) -> Sequences<'_> {
        Sequences {
            sequences: &self.sequences,
            owners: self.owners.as_ref(),
            tiling: self.tiling,
            tiles: &self.tiles,
            tile_count: self.tile_count,
        }
    }
}
