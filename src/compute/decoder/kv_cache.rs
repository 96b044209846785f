//! Keys and values of one sequence, in the panels that attention multiplies by.

use std::ops::Range;

use super::linear::KernelSet;
use crate::compute::kernels::Kernels;
use crate::compute::memory::Buffer;
use crate::{Error, Result};

/// What attention's heads look like in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a head's key and of its value.
    pub width: usize,
}

/// f32 keys and values of every layer. For each head, keys are the columns of panels (their products with queries are
/// scores of a register's worth of positions), values the rows of panels (their products with probabilities are
/// sums over positions). Memory is mapped whole and taken from the system when written.
#[derive(Debug)]
pub struct KvCache {
    buffer: Buffer,
    shape: CacheShape,
    panel: usize,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// Room for `capacity` positions.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system has no memory.
    pub fn new(machine: &KernelSet, shape: CacheShape, capacity: usize) -> Result<Self> {
        Self::with_panel(machine.kernels.width, shape, capacity)
    }

    /// Bytes that a cache of `capacity` positions takes.
    pub fn bytes_for(machine: &KernelSet, shape: CacheShape, capacity: usize) -> u64 {
        bytes_for(machine.kernels.width, shape, capacity).unwrap_or(u64::MAX)
    }

    fn with_panel(panel: usize, shape: CacheShape, capacity: usize) -> Result<Self> {
        let bytes = bytes_for(panel, shape, capacity).and_then(|bytes| usize::try_from(bytes).ok());
        let too_many =
            || Error::OutOfMemory { what: format!("{capacity} positions").into(), bytes: u64::MAX };
        let buffer = Buffer::zeroed(bytes.ok_or_else(too_many)?)?;
        Ok(Self { buffer, shape, panel, capacity: capacity.next_multiple_of(panel), len: 0 })
    }

    /// Positions held in every layer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Holds exactly the first `len` positions: fewer than before, or those that every layer has been given.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "{len} positions in a cache of {}", self.capacity);
        self.len = len;
    }

    /// Makes room for `capacity` positions.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if capacity > self.capacity {
            *self = self.fork(self.len, capacity)?;
        }
        Ok(())
    }

    /// Gives back most of what a cache has beyond its positions.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shrink(&mut self) -> Result<()> {
        if self.capacity > self.len.next_multiple_of(self.panel) * 5 / 4 {
            *self = self.fork(self.len, self.len)?;
        }
        Ok(())
    }

    /// A copy of the first `len` positions with room for `capacity`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
        let mut copy = Self::with_panel(self.panel, self.shape, capacity.max(len))?;
        copy.len = len.min(self.len);
        let keys = copy.len.next_multiple_of(self.panel) * self.shape.width;
        let values = copy.len * self.panel;
        for layer in 0..self.shape.layers {
            for head in 0..self.shape.kv_heads {
                let (from, to) = (self.head(layer, head), copy.head(layer, head));
                let panels = 0..self.value_panels();
                let runs: Vec<_> = std::iter::once((0, 0, keys))
                    .chain(panels.map(|index| (self.value_start(index), copy.value_start(index), values)))
                    .collect();
                for (source, target, length) in runs {
                    let source = &self.buffer.as_slice::<f32>()[from.start + source..][..length];
                    copy.buffer.as_mut_slice::<f32>()[to.start + target..][..length].copy_from_slice(source);
                }
            }
        }
        Ok(copy)
    }

    /// Writes position `position` of layer `layer`; `keys` and `values` hold all heads one after another.
    ///
    /// # Panics
    /// When the position exceeds the capacity.
    pub(crate) fn put(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        assert!(position < self.capacity, "position {position} in a cache of {}", self.capacity);
        let CacheShape { kv_heads, width, .. } = self.shape;
        let (panel, value_panels) = (self.panel, self.value_panels());
        let starts: Vec<usize> = (0..value_panels).map(|index| self.value_start(index)).collect();
        for head in 0..kv_heads {
            let range = self.head(layer, head);
            let memory = &mut self.buffer.as_mut_slice::<f32>()[range];
            let column = position / panel * panel * width + position % panel;
            for (i, &key) in keys[head * width..][..width].iter().enumerate() {
                memory[column + i * panel] = key;
            }
            for (values, start) in values[head * width..][..width].chunks(panel).zip(&starts) {
                memory[start + position * panel..][..values.len()].copy_from_slice(values);
            }
        }
    }

    pub(crate) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// The panel of keys that starts at position `first`: `width` rows of a panel's positions.
    pub(crate) fn keys(&self, layer: usize, head: usize, first: usize) -> &[f32] {
        let range = self.head(layer, head);
        &self.buffer.as_slice::<f32>()[range][first * self.shape.width..][..self.panel * self.shape.width]
    }

    /// Panel `index` of values: a row for each of the first `positions` positions.
    pub(crate) fn values(&self, layer: usize, head: usize, index: usize, positions: usize) -> &[f32] {
        let range = self.head(layer, head);
        &self.buffer.as_slice::<f32>()[range][self.value_start(index)..][..positions * self.panel]
    }

    pub(crate) fn fits(&self, kernels: &Kernels) -> bool {
        self.panel == kernels.width
    }

    fn head(&self, layer: usize, head: usize) -> Range<usize> {
        let size = self.head_floats();
        let index = layer * self.shape.kv_heads + head;
        index * size..(index + 1) * size
    }

    fn head_floats(&self) -> usize {
        self.capacity * (self.shape.width + self.value_panels() * self.panel)
    }

    fn value_panels(&self) -> usize {
        self.shape.width.div_ceil(self.panel)
    }

    fn value_start(&self, index: usize) -> usize {
        self.capacity * (self.shape.width + index * self.panel)
    }
}

/// `None` when it is more than can be counted.
fn bytes_for(panel: usize, shape: CacheShape, capacity: usize) -> Option<u64> {
    let position = shape.width + shape.width.div_ceil(panel) * panel;
    [position, shape.layers, shape.kv_heads, 4]
        .into_iter()
        .try_fold(capacity.checked_next_multiple_of(panel)? as u64, |bytes, factor| {
            bytes.checked_mul(factor as u64)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Isa;

    const SHAPE: CacheShape = CacheShape { layers: 2, kv_heads: 3, width: 40 };

    fn filled(len: usize, capacity: usize) -> KvCache {
        let mut cache = KvCache::new(&KernelSet::new(Isa::best()), SHAPE, capacity).unwrap();
        for position in 0..len {
            for layer in 0..2 {
                let keys: Vec<f32> =
                    (0..120).map(|i| (layer * 1000 + position) as f32 + i as f32 / 128.0).collect();
                let values: Vec<f32> = keys.iter().map(|key| -key).collect();
                cache.put(layer, position, &keys, &values);
            }
        }
        cache.set_len(len);
        cache
    }

    fn check(cache: &KvCache) {
        for position in 0..cache.len() {
            for (layer, head, i) in [(0, 0, 0), (1, 2, 39), (0, 1, 33)] {
                let expected = (layer * 1000 + position) as f32 + (head * 40 + i) as f32 / 128.0;
                let first = position / cache.panel * cache.panel;
                assert_eq!(cache.keys(layer, head, first)[i * cache.panel + position - first], expected);
                let values = cache.values(layer, head, i / cache.panel, cache.len());
                assert_eq!(values[position * cache.panel + i % cache.panel], -expected);
            }
        }
    }

    #[test]
    fn positions_survive_growth_and_copies() {
        let mut cache = filled(70, 75);
        check(&cache);
        cache.reserve(500).unwrap();
        check(&cache);
        assert!(cache.bytes() >= 500 * 2 * 3 * 80 * 4);
        let copy = cache.fork(33, 40).unwrap();
        assert_eq!(copy.len(), 33);
        check(&copy);
        cache.set_len(10);
        let before = cache.bytes();
        cache.shrink().unwrap();
        assert!(cache.bytes() < before / 4);
        check(&cache);
    }

    #[test]
    fn its_size_is_known_before() {
        let machine = KernelSet::new(Isa::best());
        for capacity in [0, 1, 75, 96, 500] {
            let cache = KvCache::new(&machine, SHAPE, capacity).unwrap();
            assert_eq!(cache.bytes(), KvCache::bytes_for(&machine, SHAPE, capacity));
        }
    }

    #[test]
    fn memory_that_no_machine_has_is_an_error() {
        let machine = KernelSet::new(Isa::best());
        for capacity in [1 << 50, usize::MAX] {
            let refused = KvCache::new(&machine, SHAPE, capacity).map(|_| ());
            assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
        }
        let mut cache = filled(70, 75);
        assert!(matches!(cache.reserve(1 << 50), Err(Error::OutOfMemory { .. })));
        check(&cache);
    }

    #[test]
    #[should_panic(expected = "position 96")]
    fn a_full_cache_is_noticed() {
        filled(0, 96).put(0, 96, &[0.0; 120], &[0.0; 120]);
    }
}
