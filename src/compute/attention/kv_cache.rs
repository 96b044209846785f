//! The KV cache: keys and values of one sequence, packed into the panels of attention's GEMMs.
//!
//! A cache grows by pages of [`BLOCK`] positions, each with all layers. A full page never changes, so sequences with the
//! same beginning share it.

use std::ops::Range;
use std::sync::Arc;

use crate::compute::delta_rule::{DeltaLayer, DeltaRuleShape, DeltaRuleState};
use crate::compute::isa::DType;
use crate::compute::kernels::{Kernels, units};
use crate::compute::memory::Buffer;
use crate::compute::short_convolution::{GatedRows, ShortConvolutionShape, ShortConvolutionState};
use crate::{Error, Result};

/// Positions of a page, and keys of a block of attention: the scores of a tile of queries against a block fit into the
/// first-level cache. A multiple of the width of every panel.
pub(crate) const BLOCK: usize = 256;

/// Positions of the smallest page: whole panels, and whole steps of every sum over positions.
const SMALLEST_PAGE: usize = 32;

/// The size in bytes above which a cache is refused: more memory than any machine has.
const LARGEST: u64 = 1 << 46;

/// The layers and heads of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a head's key and of its value.
    pub width: usize,
    /// Layers with other heads. They are counted after the others.
    pub others: LayerShapes,
    /// The convolutions of other layers.
    pub short_convolutions: ShortConvolutionShape,
    /// The delta rules of other layers. A model has none next to convolutions.
    pub delta_rules: DeltaRuleShape,
}

/// Layers with the same heads of keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerShapes {
    /// Layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a head's key and of its value.
    pub width: usize,
}

impl CacheShape {
    /// Both kinds of layers.
    fn kinds(self) -> [LayerShapes; 2] {
        let Self { layers, kv_heads, width, others, .. } = self;
        [LayerShapes { layers, kv_heads, width }, others]
    }

    /// Numbers of a position in all layers.
    pub(in crate::compute) fn numbers(self) -> [[usize; 4]; 2] {
        self.kinds().map(|kind| [2, kind.layers, kind.kv_heads, kind.width])
    }
}

/// The layout of a page. For each layer and head, the keys are the columns of panels, whose product with queries is the
/// scores of the panel's positions. After them, the values are the rows of panels, whose product with probabilities is a
/// sum over positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageLayout {
    shape: CacheShape,
    format: DType,
    /// Columns of a panel.
    panel: usize,
    /// Units of one step of a sum over positions.
    depth: usize,
}

/// The layout of a head of keys and values in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeadLayout {
    /// Heads of the layer.
    kv_heads: usize,
    width: usize,
    format: DType,
    panel: usize,
    depth: usize,
}

/// Keys and values of every layer, in the format of the CPU's activations.
#[derive(Debug)]
pub struct PagedKvCache {
    /// All but the last have [`BLOCK`] positions.
    pages: Vec<Arc<Page>>,
    layout: PageLayout,
    len: usize,
    /// Positions from here on have not been written since they were cleared.
    written: usize,
    short_convolutions: ShortConvolutionState,
    delta_rules: DeltaRuleState,
}

#[derive(Debug)]
struct Page {
    capacity: usize,
    memory: Buffer,
}

/// The panels of one head's keys and values in one block of positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
    /// Units of one panel of values.
    pub value_units: usize,
}

/// One head's part of a page, and the positions in it to write.
pub(crate) struct HeadPage<'a> {
    layout: HeadLayout,
    memory: &'a mut [u32],
    capacity: usize,
    at: Range<usize>,
    /// The index of the first of them among all positions that the caller writes.
    pub offset: usize,
    pub kv_head: usize,
}

impl HeadLayout {
    fn key_units(self) -> usize {
        units(self.format, self.width)
    }

    fn value_units(self, capacity: usize) -> usize {
        units(self.format, capacity).next_multiple_of(self.depth)
    }

    fn value_panels(self) -> usize {
        self.width.div_ceil(self.panel)
    }

    /// The first unit of panel `panel` of a head's values.
    fn values_at(self, capacity: usize, panel: usize) -> usize {
        capacity * self.key_units() + panel * self.panel * self.value_units(capacity)
    }

    /// Units of one head in a page.
    fn head_units(self, capacity: usize) -> usize {
        capacity * self.key_units() + self.value_panels() * self.panel * self.value_units(capacity)
    }
}

impl PageLayout {
    /// The heads of layers of a kind.
    fn of_kind(self, LayerShapes { kv_heads, width, .. }: LayerShapes) -> HeadLayout {
        let Self { format, panel, depth, .. } = self;
        HeadLayout { kv_heads, width, format, panel, depth }
    }

    /// The heads of layer `layer`.
    fn of_layer(self, layer: usize) -> HeadLayout {
        self.of_kind(self.shape.kinds()[usize::from(layer >= self.shape.layers)])
    }

    /// Bytes of a page; `None` on overflow.
    fn page_bytes(self, capacity: usize) -> Option<u64> {
        let of_kind = |kind: LayerShapes| {
            let units = self.of_kind(kind).head_units(capacity) as u64;
            [kind.layers, kind.kv_heads, 4]
                .into_iter()
                .try_fold(units, |bytes, factor| bytes.checked_mul(factor as u64))
        };
        let [own, others] = self.shape.kinds();
        of_kind(own)?.checked_add(of_kind(others)?)
    }

    /// Bytes of a cache of `positions`; `None` on overflow.
    fn bytes(self, positions: usize) -> Option<u64> {
        let full = self.page_bytes(BLOCK)?.checked_mul((positions / BLOCK) as u64)?;
        let rest = match positions % BLOCK {
            0 => 0,
            rest => self.page_bytes(page_capacity(rest))?,
        };
        let others = self
            .shape
            .short_convolutions
            .bytes(positions)?
            .checked_add(self.shape.delta_rules.bytes(positions)?)?;
        full.checked_add(rest)?.checked_add(others)
    }

    fn page(self, capacity: usize) -> Result<Page> {
        let bytes = self.page_bytes(capacity).and_then(|bytes| usize::try_from(bytes).ok());
        let memory = Buffer::zeroed(bytes.ok_or_else(|| too_many(capacity))?)?;
        Ok(Page { capacity, memory })
    }

    /// The units of one head in a page: keys, then values.
    fn head(self, capacity: usize, layer: usize, head: usize) -> Range<usize> {
        let [own, _] = self.shape.kinds();
        let before = layer.min(own.layers) * own.kv_heads * self.of_kind(own).head_units(capacity);
        let layout = self.of_layer(layer);
        let size = layout.head_units(capacity);
        let first = before + ((layer - layer.min(own.layers)) * layout.kv_heads + head) * size;
        first..first + size
    }

    /// Copies the first `positions` of `page` to a new page.
    fn copy(self, page: &Page, positions: usize, capacity: usize) -> Result<Page> {
        let mut copy = self.page(capacity)?;
        let values = units(self.format, positions) * self.panel;
        for (layer, head) in self.heads() {
            let layout = self.of_layer(layer);
            let keys = positions.next_multiple_of(self.panel) * layout.key_units();
            let from = &page.memory.as_slice::<u32>()[self.head(page.capacity, layer, head)];
            let to = &mut copy.memory.as_mut_slice::<u32>()[self.head(capacity, layer, head)];
            to[..keys].copy_from_slice(&from[..keys]);
            for panel in 0..layout.value_panels() {
                let source = &from[layout.values_at(page.capacity, panel)..][..values];
                to[layout.values_at(capacity, panel)..][..values].copy_from_slice(source);
            }
            clear(layout, to, capacity, positions..units(self.format, positions) * 4 / self.format.bytes());
        }
        Ok(copy)
    }

    /// Zeroes the values of some positions of `page` in all layers.
    fn clear(self, page: &mut Page, positions: Range<usize>) {
        for (layer, head) in self.heads() {
            let memory = &mut page.memory.as_mut_slice::<u32>()[self.head(page.capacity, layer, head)];
            clear(self.of_layer(layer), memory, page.capacity, positions.clone());
        }
    }

    fn heads(self) -> impl Iterator<Item = (usize, usize)> {
        let layers = self.shape.layers + self.shape.others.layers;
        let of_layer = move |layer| (0..self.of_layer(layer).kv_heads).map(move |head| (layer, head));
        (0..layers).flat_map(of_layer)
    }
}

/// Zeroes the values of some positions. A sum over positions includes all positions of its last step, whose probabilities
/// are zero, and zero times a NaN would not be zero.
fn clear(layout: HeadLayout, head: &mut [u32], capacity: usize, positions: Range<usize>) {
    for panel in 0..layout.value_panels() {
        let values = &mut head[layout.values_at(capacity, panel)..];
        for position in positions.clone() {
            match layout.format {
                DType::F32 => values[position * layout.panel..][..layout.panel].fill(0),
                DType::Bf16 => {
                    let keep = if position % 2 == 0 { 0xffff_0000 } else { 0xffff };
                    values[position / 2 * layout.panel..][..layout.panel].iter_mut().for_each(|x| *x &= keep);
                }
            }
        }
    }
}

/// The capacity of a page for so many positions.
fn page_capacity(positions: usize) -> usize {
    positions.next_power_of_two().clamp(SMALLEST_PAGE, BLOCK)
}

fn too_many(positions: usize) -> Error {
    Error::OutOfMemory { what: format!("{positions} positions").into(), bytes: u64::MAX }
}

impl PagedKvCache {
    /// An empty cache.
    pub(crate) fn new(kernels: &Kernels, shape: CacheShape, format: DType) -> Self {
        let layout = PageLayout { shape, format, panel: kernels.width, depth: kernels.depth(format) };
        let short_convolutions = ShortConvolutionState::new(shape.short_convolutions);
        let delta_rules = DeltaRuleState::new(shape.delta_rules);
        Self { pages: Vec::new(), layout, len: 0, written: 0, short_convolutions, delta_rules }
    }

    /// Bytes of a cache of `positions`; `u64::MAX` on overflow.
    pub(crate) fn bytes_for(kernels: &Kernels, shape: CacheShape, format: DType, positions: usize) -> u64 {
        Self::new(kernels, shape, format).layout.bytes(positions).unwrap_or(u64::MAX)
    }

    /// Positions in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache has no position.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of its memory, including what it shares.
    pub fn bytes(&self) -> u64 {
        let pages: u64 = self.pages.iter().map(|page| page.memory.len() as u64).sum();
        pages + self.short_convolutions.bytes() + self.delta_rules.bytes()
    }

    /// Extends the cache to `len` positions, which have been written in every layer.
    pub(crate) fn extend_to(&mut self, len: usize) {
        assert!(self.len <= len && len <= self.written, "{len} positions of {} written", self.written);
        self.short_convolutions.extend_to(len);
        self.delta_rules.extend_to(len);
        self.len = len;
    }

    /// Drafts at the end of the next pass that can be taken back after it, at most.
    pub fn most_drafted(&self) -> usize {
        self.delta_rules.most_drafted().min(self.short_convolutions.most_drafted())
    }

    /// The positions that [`truncate`](Self::truncate) to `len` would leave.
    pub fn cut(&self, len: usize) -> usize {
        // One of both has no layers, and can be cut anywhere.
        self.delta_rules.cut(self.short_convolutions.cut(len.min(self.len)))
    }

    /// Shortens the cache to `len` positions, or with convolutions to the last ones before at which it can be cut; without
    /// effect if it has no more.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.cut(len);
        self.short_convolutions.truncate(self.len);
        self.delta_rules.truncate(self.len);
        self.pages.truncate(self.len.div_ceil(BLOCK));
        self.written = self.written.min(self.pages.len() * BLOCK);
    }

    /// Makes the positions up to `capacity` writable.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the positions in the cache are then unchanged.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if self.layout.bytes(capacity).is_none_or(|bytes| bytes > LARGEST) {
            return Err(too_many(capacity));
        }
        if self.written > self.len {
            self.pages.truncate(self.len.div_ceil(BLOCK));
        }
        if let Some(last) = self.pages.len().checked_sub(1) {
            let first = last * BLOCK;
            let filled = self.len.saturating_sub(first);
            let wanted =
                page_capacity(capacity.saturating_sub(first).min(BLOCK)).max(self.pages[last].capacity);
            let page = &mut self.pages[last];
            if filled < BLOCK {
                match Arc::get_mut(page).filter(|page| wanted <= page.capacity) {
                    // Tokens that were taken back.
                    Some(page) => {
                        let stale = filled..self.written.saturating_sub(first).min(page.capacity);
                        if !stale.is_empty() {
                            self.layout.clear(page, stale);
                        }
                    }
                    // Two caches must not write to the same page, so a shared page is copied before it is written.
                    None => *page = Arc::new(self.layout.copy(page, filled, wanted)?),
                }
            }
        }
        while self.pages.len() * BLOCK < capacity {
            let rest = capacity - self.pages.len() * BLOCK;
            self.pages.push(Arc::new(self.layout.page(page_capacity(rest.min(BLOCK)))?));
        }
        self.written = self.len;
        self.short_convolutions.reserve(capacity)?;
        self.delta_rules.reserve(capacity)
    }

    /// Frees the unused capacity of the last page.
    ///
    /// # Errors
    /// Those of [`reserve`](Self::reserve).
    pub fn shrink(&mut self) -> Result<()> {
        self.truncate(self.len);
        self.short_convolutions.shrink();
        self.delta_rules.shrink();
        let filled = self.len % BLOCK;
        if filled > 0
            && let Some(last) = self.pages.last_mut()
            && page_capacity(filled) < last.capacity
        {
            *last = Arc::new(self.layout.copy(last, filled, page_capacity(filled))?);
            self.written = self.len;
        }
        Ok(())
    }

    /// A cache of the first `len` positions, or of as many as [`truncate`](Self::truncate) would leave, with a capacity of
    /// `capacity`. It shares full pages with `self`.
    ///
    /// # Errors
    /// Those of [`reserve`](Self::reserve).
    pub fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
        let len = self.cut(len);
        let mut fork = Self {
            pages: self.pages[..len.div_ceil(BLOCK)].to_vec(),
            layout: self.layout,
            len,
            written: self.written.max(len),
            short_convolutions: self.short_convolutions.fork(len, capacity)?,
            delta_rules: self.delta_rules.fork(len, capacity)?,
        };
        fork.reserve(capacity.max(len))?;
        Ok(fork)
    }

    /// The gated rows of convolution `layer` before `position`: `[before, columns]`.
    ///
    /// # Errors
    /// [`Error::Internal`] for a position at which neither the cache ends nor a pass has stopped.
    pub(crate) fn rows_before(&self, layer: usize, position: usize) -> Result<&[f32]> {
        self.short_convolutions.before(layer, position)
    }

    /// Keeps what later rows of convolution `layer` see of `rows`, which are those of `positions`. The last `drafted` are
    /// drafts.
    ///
    /// # Errors
    /// [`Error::Internal`] if `positions` were not reserved; [`Error::OutOfMemory`].
    pub(crate) fn keep_rows(
        &mut self,
        layer: usize,
        positions: Range<usize>,
        drafted: usize,
        rows: &GatedRows<'_>,
    ) -> Result<()> {
        self.written = self.written.max(positions.end);
        self.short_convolutions.write(layer, positions, drafted, rows)
    }

    /// The states of delta rule `layer`, to write `positions` of a text of which the model reads `prompt` tokens. The last
    /// `drafted` are drafts.
    ///
    /// # Errors
    /// [`Error::Internal`] if the positions do not follow those before; [`Error::OutOfMemory`].
    pub(crate) fn delta_layer(
        &mut self,
        layer: usize,
        positions: Range<usize>,
        drafted: usize,
        prompt: usize,
    ) -> Result<DeltaLayer<'_>> {
        self.written = self.written.max(positions.end);
        self.delta_rules.layer(layer, positions, drafted, prompt)
    }

    /// The heads of `layer` in the pages of `positions`, to write.
    ///
    /// # Errors
    /// [`Error::Internal`] if `positions` were not reserved.
    pub(crate) fn heads_mut(&mut self, layer: usize, positions: Range<usize>) -> Result<Vec<HeadPage<'_>>> {
        let (all, layout) = (self.layout, self.layout.of_layer(layer));
        self.written = self.written.max(positions.end);
        let mut heads = Vec::new();
        let touched = positions.start / BLOCK..positions.end.div_ceil(BLOCK);
        let misuse = || Error::internal("KV cache", "positions were not reserved");
        let pages = self.pages.get_mut(touched.clone()).ok_or_else(misuse)?;
        for (index, page) in touched.zip(pages) {
            let first = index * BLOCK;
            let at = positions.start.max(first) - first..positions.end.min(first + BLOCK) - first;
            let page = Arc::get_mut(page).filter(|page| at.end <= page.capacity).ok_or_else(misuse)?;
            let (capacity, size) = (page.capacity, layout.head_units(page.capacity));
            let of_layer = &mut page.memory.as_mut_slice::<u32>()[all.head(capacity, layer, 0).start..];
            let parts = of_layer.chunks_exact_mut(size.max(1)).take(layout.kv_heads);
            heads.extend(parts.enumerate().map(|(kv_head, memory)| HeadPage {
                layout,
                memory,
                capacity,
                at: at.clone(),
                offset: first + at.start - positions.start,
                kv_head,
            }));
        }
        Ok(heads)
    }

    /// The panels of one head in block `block` of positions.
    pub(crate) fn panels(&self, layer: usize, head: usize, block: usize) -> Panels<'_> {
        let (layout, page) = (self.layout.of_layer(layer), &self.pages[block]);
        let head = &page.memory.as_slice::<f32>()[self.layout.head(page.capacity, layer, head)];
        let (keys, values) = head.split_at(layout.values_at(page.capacity, 0));
        Panels { keys, values, value_units: layout.value_units(page.capacity) }
    }
}

impl HeadPage<'_> {
    /// The number of positions to write.
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether the head is one of `kv_heads` heads of `width` values.
    pub(crate) fn has_shape(&self, kv_heads: usize, width: usize) -> bool {
        (self.layout.kv_heads, self.layout.width) == (kv_heads, width)
    }

    /// Writes the positions from rows that are `stride` bytes apart.
    ///
    /// # Safety
    ///
    /// - `keys` and `values` point to [`len`](Self::len) rows, `stride` bytes apart, of readable elements in the format of
    ///   the cache, as many as the head's width.
    /// - If the width is odd and the format is bf16, one more element is readable after each row of keys.
    pub(crate) unsafe fn write(
        &mut self,
        kernels: &Kernels,
        keys: *const u8,
        values: *const u8,
        stride: usize,
    ) {
        // SAFETY: the preconditions of `write_keys` and of `write_values` are those of this function.
        unsafe {
            self.write_keys(kernels, keys, stride);
            self.write_values(kernels, values, stride);
        }
    }

    /// Packs keys as columns of panels.
    ///
    /// # Safety
    ///
    /// - The preconditions of [`write`](Self::write) for keys.
    unsafe fn write_keys(&mut self, kernels: &Kernels, from: *const u8, stride: usize) {
        let HeadLayout { format, panel, width, .. } = self.layout;
        let units = self.layout.key_units();
        let mut position = self.at.start;
        while position < self.at.end {
            // SAFETY: `position` is in `at`, so this is one of the `len` readable rows.
            let row = unsafe { from.add((position - self.at.start) * stride) };
            let memory = &mut self.memory[position / panel * panel * units..][..panel * units];
            let column = position % panel;
            if column == 0 {
                let count = panel.min(self.at.end - position);
                // SAFETY: `count <= at.end - position`, so so many rows of `width` elements are readable, and one more element
                // after each if the width is odd and the format is bf16.
                unsafe { kernels.pack_columns(format, row, stride, count, width, memory) };
                position += count;
                continue;
            }
            for unit in 0..units {
                let odd = format == DType::Bf16 && unit + 1 == units && width % 2 == 1;
                // SAFETY: `unit < units`, and the row has `units` readable units: the last unit of an odd bf16 row includes
                // the element after it, which is readable. The read is unaligned.
                let number = unsafe { row.add(unit * 4).cast::<u32>().read_unaligned() };
                memory[unit * panel + column] = if odd { number & 0xffff } else { number };
            }
            position += 1;
        }
    }

    /// Packs values as rows of panels.
    ///
    /// # Safety
    ///
    /// - The preconditions of [`write`](Self::write) for values.
    unsafe fn write_values(&mut self, kernels: &Kernels, from: *const u8, stride: usize) {
        let HeadLayout { format, panel, width, .. } = self.layout;
        for (index, first) in (0..width).step_by(panel).enumerate() {
            let columns = panel.min(width - first);
            let memory = &mut self.memory[self.layout.values_at(self.capacity, index)..];
            let (mut start, end) = (self.at.start, self.at.end);
            let mut row = from.wrapping_add(first * format.bytes());
            if format == DType::Bf16 && start % 2 == 1 {
                for (column, unit) in memory[start / 2 * panel..][..columns].iter_mut().enumerate() {
                    // SAFETY: `first + column < width`, and the first row is readable. The read is unaligned.
                    let value = unsafe { row.add(column * 2).cast::<u16>().read_unaligned() };
                    *unit = *unit & 0xffff | u32::from(value) << 16;
                }
                row = row.wrapping_add(stride);
                start += 1;
            }
            if start < end {
                let to = units(format, start) * panel..units(format, end) * panel;
                // SAFETY: `row` points to the row of `start`, and `end - start` rows follow, each with `columns` values from
                // column `first` on, because `first + columns <= width`.
                unsafe {
                    kernels.pack_rows(format, row, stride, end - start, columns, &mut memory[to]);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "kv_cache_tests.rs"]
mod tests;
