//! The GEMM of linear layers, for one row or for thousands.
//!
//! The unit of work is a tile of rows times a panel of weights. A block of panels stays in the second-level cache while
//! all rows are multiplied by it. The epilogue of a tile fuses bias, activation, gate and residual into its store. The
//! result of a row depends neither on other rows nor on how the work is divided.
//!
//! AMX multiplies in a unit of its own, so the vector registers meanwhile run the epilogue of the tile before ([`Unfinished`]).
//! Elsewhere both would wait for the same registers, and the epilogue runs after its product.
//!
//! On AMX, rows of a prompt or an encoder's text are multiplied by quantized weights in tiles of bf16: a block of panels is
//! unpacked once for all of a task's rows ([`super::quant_unpack`]). Rows that the model wrote are multiplied as integers, as
//! all rows are on other CPUs. Which of both a row is, its [`TokenPhase`] alone decides (docs/decisions/0014-amx-quantized.md).

use std::mem::MaybeUninit;
use std::ops::Range;

use super::activations::{Activations, Forms, PlainRows, ScaledRows};
use super::blocks::GROUP;
use super::layer::{KernelSet, Linear, LinearPart, PartFormat};
use super::phases::{RowPhases, TokenPhase};
use super::quant_gemm::Product;
use super::quant_unpack::Unpack;
use super::unfinished::Unfinished;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::kernels::rowwise::{StoreMode, TileEpilogue};
use crate::compute::kernels::tile::{Ahead, Overlap, Tile};
use crate::compute::kernels::{Kernels, LARGEST_TILE, ScaledTile, units};
use crate::compute::memory::Buffer;
use crate::compute::parallel::{Parallelism, Share, Target};
use crate::sync::Mutex;
use crate::{Error, Result};

#[path = "gemm_grouped.rs"]
mod grouped;
#[path = "gemm_unpacked.rs"]
mod unpacked;

pub(crate) use self::grouped::{LayerRows, multiply_grouped};

/// Bytes of a block of panels, which stays in the second-level cache while all rows are multiplied by it.
const BLOCK_BYTES: usize = 384 << 10;

/// Bytes of a block of panels for AMX, which shares the second-level cache with the next block, which is prefetched.
const AMX_BLOCK_BYTES: usize = 192 << 10;

/// How far ahead the panels are prefetched that AMX multiplies by all rows at once, in bytes.
const AMX_STREAM_BYTES: usize = 8 << 10;

/// The least number of rows for which the next panel is prefetched. From here on, a panel takes longer to multiply than
/// to read from main memory. With fewer rows, memory bandwidth is the limit, and prefetching only adds load.
const PREFETCH_ROWS: usize = 8;

/// Up to this number of row tiles, blocks of several panels do not pay: a block is one panel.
const FEW_TILES: usize = 8;

/// Rows that are multiplied by a quantized panel at once: a multiple of the tile heights.
const QUANTIZED_ROWS: usize = 24;

/// Panels side by side, in the form in which tiles multiply them.
#[derive(Clone, Copy)]
struct PanelBlock<'a> {
    form: PartFormat,
    memory: &'a [u8],
    /// Bytes of each.
    bytes: usize,
    /// What is prefetched while the first one is multiplied.
    ahead: Option<Prefetch>,
}

/// Memory to prefetch while a panel is multiplied; for each panel after it, as many bytes further.
#[derive(Clone, Copy)]
struct Prefetch {
    from: *const u8,
    bytes: usize,
}

/// A block of panels that rows are multiplied by.
struct Block<'a> {
    /// Of a part of the layer and, in a gated layer, of its second part.
    panels: [PanelBlock<'a>; 2],
    /// Their number in each.
    count: usize,
    /// Their outputs, counted over all parts.
    columns: Range<usize>,
}

/// The memory of products, which later ones reuse.
#[derive(Debug, Default)]
pub(crate) struct GemmScratch {
    activations: Activations,
    /// A block of unpacked panels for each thread that multiplies.
    unpacked: Mutex<Vec<Buffer>>,
}

impl GemmScratch {
    /// Brings the rows of `x` into the forms that layers need; only those that are multiplied as integers are quantized.
    /// Returns how weights are unpacked for the others, if there are any.
    fn prepare(
        &mut self,
        kernel_set: &KernelSet,
        parallelism: Parallelism<'_>,
        x: PlainRows<'_>,
        phases: &RowPhases,
        forms: Forms,
    ) -> Result<Option<Unpack>> {
        let unpack = kernel_set.unpack.filter(|_| x.format == DType::Bf16);
        let is_integer = |rows| unpack.is_none() || phases.any(rows, TokenPhase::Decode);
        if forms.quantized && is_integer(0..x.rows) {
            let wanted = |row| is_integer(row..row + 1);
            let (kernels, dot) = (kernel_set.kernels, kernel_set.dot);
            self.activations.quantized.quantize(kernels, dot, x, wanted, forms, parallelism)?;
        }
        if forms.scaled {
            self.activations.scaled.fill(kernel_set.kernels, x, parallelism)?;
        }
        Ok(unpack)
    }
}

/// The product of a tile before its epilogue. It is not cleared, because products write every value that the epilogue
/// reads; clearing it would cost a twentieth of the time of a product.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct TileBuffer([MaybeUninit<f32>; LARGEST_TILE]);

impl TileBuffer {
    /// The product of a layer's part and, in a gated layer, of its second part.
    const PAIR: [Self; 2] = [Self([MaybeUninit::uninit(); LARGEST_TILE]); 2];
}

/// The height of tiles of at most `most` rows that divide `rows` evenly: a tile takes about the same time whether it is full or
/// not.
fn even_height(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// What is done with a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Epilogue {
    /// The activation is applied, and the result is stored.
    Store(Activation),
    /// The product is added to the output, which is in f32.
    Add,
}

/// The left operand, in the forms that the parts of the layer need.
struct Operand<'a> {
    plain: PlainRows<'a>,
    other: &'a Activations,
}

/// The product of a layer, divided among tasks by rows and panels.
struct Gemm<'a> {
    layer: &'a Linear,
    kernel_set: &'a KernelSet,
    x: Operand<'a>,
    phases: &'a RowPhases,
    /// If quantized weights are unpacked for rows of [`TokenPhase::Prefill`].
    unpack: Option<Unpack>,
    unpacked: &'a Mutex<Vec<Buffer>>,
    epilogue: Epilogue,
    out: &'a Target<'a>,
    /// The row of the output for row 0 of `x`.
    first: usize,
    fault: Mutex<Option<Error>>,
}

impl Linear {
    /// Multiplies rows in the format of the layer's plain weights, and stores the result in the rows of `out` from `first`
    /// on.
    #[expect(clippy::too_many_arguments, reason = "two matrices, and how they are multiplied")]
    pub(crate) fn multiply(
        &self,
        kernel_set: &KernelSet,
        parallelism: Parallelism<'_>,
        scratch: &mut GemmScratch,
        x: PlainRows<'_>,
        phases: &RowPhases,
        epilogue: Epilogue,
        out: &Target<'_>,
        first: usize,
    ) -> Result<()> {
        assert_eq!(x.columns, self.inputs, "operand of a linear layer");
        assert!(epilogue != Epilogue::Add || out.format() == DType::F32, "a product is added to f32");
        assert!(phases.rows() >= x.rows, "phases of {} of {} rows", phases.rows(), x.rows);
        let unpack = scratch.prepare(kernel_set, parallelism, x, phases, self.forms)?;
        let gemm = Gemm {
            layer: self,
            kernel_set,
            x: Operand { plain: x, other: &scratch.activations },
            phases,
            unpack,
            unpacked: &scratch.unpacked,
            epilogue,
            out,
            first,
            fault: Mutex::new(None),
        };
        let height = kernel_set.kernels.rows(x.format);
        let tiles = x.rows.div_ceil(height);
        let (groups, panels) = self.groups(kernel_set.kernels);
        parallelism.split(tiles, groups, |tiles, groups| {
            gemm.block(tiles.start * height..x.rows.min(tiles.end * height), panels(groups));
        })?;
        gemm.fault.into_inner().map_or(Ok(()), Err)
    }

    /// The parts whose panels are divided among tasks. A gated layer divides its first part, and each task multiplies the
    /// same panels of the second part.
    fn leading(&self) -> &[LinearPart] {
        if self.gated { &self.parts[..1] } else { &self.parts }
    }

    /// The number of panel groups, which are divided among threads, and a function from groups to their panels. Quantized
    /// rows are multiplied by two panels at once.
    fn groups(&self, kernels: &Kernels) -> (usize, impl Fn(Range<usize>) -> Range<usize> + Sync + use<>) {
        let all: usize = self.leading().iter().map(|part| part.panels(kernels)).sum();
        let size = if self.forms.quantized { 2 } else { 1 };
        (all.div_ceil(size), move |groups| groups.start * size..all.min(groups.end * size))
    }
}

impl Gemm<'_> {
    /// Multiplies some rows by some of the layer's panels.
    fn block(&self, rows: Range<usize>, panels: Range<usize>) {
        let _tiles = self.kernel_set.kernels.keep_tiles();
        let mut memory = match self.take_unpacked(&rows) {
            Ok(memory) => memory,
            Err(error) => {
                self.fault.lock().get_or_insert(error);
                return;
            }
        };
        let mut before = 0;
        for part in self.layer.leading() {
            let count = part.panels(self.kernel_set.kernels);
            let inside = |panel: usize| panel.clamp(before, before + count) - before;
            let panels = inside(panels.start)..inside(panels.end);
            match (part.form, self.unpack, &mut memory) {
                (PartFormat::Quantized(_), Some(unpack), Some(memory)) => {
                    self.unpacked_part(unpack, part, rows.clone(), panels, memory);
                }
                _ => self.packed_part(part, rows.clone(), panels),
            }
            before += count;
        }
        self.unpacked.lock().extend(memory);
    }

    /// A part and, in a gated layer, the second one, or else the same again.
    fn pair<'p>(&'p self, part: &'p LinearPart) -> [&'p LinearPart; 2] {
        [part, if self.layer.gated { &self.layer.parts[1] } else { part }]
    }

    /// Multiplies rows by some panels of a part as they are packed.
    fn packed_part(&self, part: &LinearPart, rows: Range<usize>, panels: Range<usize>) {
        let kernels = self.kernel_set.kernels;
        let bytes = part.form.panel_bytes(kernels, self.layer.inputs);
        let (block, distance) = self.blocks(part, rows.len(), bytes.max(1));
        for first in panels.clone().step_by(block) {
            let panels = first..panels.end.min(first + block);
            let block = Block {
                panels: self.pair(part).map(|part| {
                    let bytes = part.form.panel_bytes(kernels, self.layer.inputs);
                    let memory = part.panels_from(panels.start, panels.len(), bytes);
                    let from = |distance| memory.as_ptr().wrapping_add(distance);
                    let ahead = distance.map(|distance| Prefetch { from: from(distance), bytes });
                    PanelBlock { form: part.form, memory, bytes, ahead }
                }),
                count: panels.len(),
                columns: part.outputs(panels.clone(), part.form.width(kernels)),
            };
            self.row_tiles(&block, rows.clone());
        }
    }

    /// The height of the tiles that rows are divided into.
    fn tile_height(&self, form: PartFormat, rows: usize) -> usize {
        match form {
            PartFormat::Plain(format) => even_height(rows, self.kernel_set.kernels.rows(format)),
            PartFormat::Scaled => even_height(rows, self.kernel_set.kernels.scaled_rows()),
            PartFormat::Quantized(_) => QUANTIZED_ROWS,
        }
    }

    /// The number of packed panels of a block, and how far ahead panels are prefetched, if at all.
    fn blocks(&self, part: &LinearPart, rows: usize, bytes: usize) -> (usize, Option<usize>) {
        let block = (BLOCK_BYTES / bytes).max(1);
        let row_tiles = rows.div_ceil(self.tile_height(part.form, rows));
        match part.form {
            PartFormat::Quantized(_) => (block, None),
            PartFormat::Plain(format) if self.kernel_set.kernels.uses_amx(format) => {
                let block = (AMX_BLOCK_BYTES / bytes).max(1);
                (block, Some(if row_tiles > 1 { block * bytes } else { AMX_STREAM_BYTES }))
            }
            _ if rows < PREFETCH_ROWS || row_tiles > FEW_TILES => (block, None),
            _ => (if row_tiles > 1 { 1 } else { block }, Some(bytes)),
        }
    }

    /// Multiplies rows by a block of panels, a tile at a time.
    fn row_tiles(&self, block: &Block<'_>, rows: Range<usize>) {
        let form = block.panels[0].form;
        let (width, height) = (form.width(self.kernel_set.kernels), self.tile_height(form, rows.len()));
        let of = rows.len().div_ceil(height);
        // Where a unit of its own multiplies, the vector registers meanwhile finish the product before.
        let overlaps = matches!(form, PartFormat::Plain(format) if self.kernel_set.kernels.uses_amx(format));
        let [first, second] = &mut [TileBuffer::PAIR; 2];
        let (mut tiles, mut others) = (first, second);
        let mut before: Option<Unfinished> = None;
        for (index, row) in rows.clone().step_by(height).enumerate() {
            let rows = row..rows.end.min(row + height);
            // With few rows, one epilogue handles the products of several panels.
            let count = LARGEST_TILE / (width * rows.len());
            for panel in (0..block.count).step_by(count) {
                let panels = panel..block.count.min(panel + count);
                let share = Share { index, of };
                let epilogue =
                    self.multiply_panels(block, panels, rows.clone(), share, tiles, before.as_mut());
                if let Some(mut before) = before.take() {
                    before.finish_rest();
                }
                // SAFETY: `multiply_panels` states the preconditions for what it returns. It wrote to `tiles`. The next
                // product is written to `others`, and the one after it when this epilogue is finished. `split` gives each row
                // and panel to one task, so no other thread accesses this part of the output.
                let mut unfinished = unsafe { Unfinished::new(self.kernel_set.kernels, epilogue) };
                if overlaps {
                    before = Some(unfinished);
                    std::mem::swap(&mut tiles, &mut others);
                } else {
                    unfinished.finish_rest();
                }
            }
        }
        if let Some(mut before) = before {
            before.finish_rest();
        }
    }

    /// Multiplies rows by panels of a block, and in a gated layer by the same panels of its second part, into `tiles`, and
    /// meanwhile finishes another product. Returns the epilogue, which reads `tiles` and writes to a part of the output; its
    /// pointers are valid for that as long as the layer, the output and `tiles` are.
    fn multiply_panels(
        &self,
        block: &Block<'_>,
        panels: Range<usize>,
        rows: Range<usize>,
        share: Share,
        tiles: &mut [TileBuffer; 2],
        meanwhile: Option<&mut Unfinished>,
    ) -> TileEpilogue {
        let (layer, kernels) = (self.layer, self.kernel_set.kernels);
        let width = block.panels[0].form.width(kernels);
        let start = block.columns.start + panels.start * width;
        let columns = start..block.columns.end.min(start + panels.len() * width);
        let [product, gated] = tiles;
        let overlap = meanwhile.map(|before| {
            let steps = units(DType::Bf16, layer.inputs).div_ceil(kernels.depth(DType::Bf16));
            let products = panels.len() * if layer.gated { 2 } else { 1 };
            before.overlap(products * steps)
        });
        self.products(&block.panels[0], panels.clone(), rows.clone(), share, overlap, product);
        if layer.gated {
            self.products(&block.panels[1], panels.clone(), rows.clone(), share, overlap, gated);
        }
        let bias = |from: usize| {
            let bias = layer.bias.get(from..from + columns.len());
            bias.map_or(std::ptr::null(), <[f32]>::as_ptr)
        };
        // `products` wrote `rows.len()` rows of `panels.len() * width` values, which is `columns` rounded up to whole registers,
        // to `product` and, if the layer is gated, to `gated`. A bias is null or has `columns.len()` values. `Target::part`
        // checked rows and columns, and the target is aligned; its values are initialized.
        TileEpilogue {
            tile: product.0.as_ptr().cast(),
            tile_stride: panels.len() * width,
            rows: rows.len(),
            columns: columns.len(),
            bias: bias(columns.start),
            activation: if let Epilogue::Store(activation) = self.epilogue {
                activation
            } else {
                Activation::Identity
            },
            gated: if layer.gated { gated.0.as_ptr().cast() } else { std::ptr::null() },
            gated_bias: if layer.gated { bias(layer.outputs + columns.start) } else { std::ptr::null() },
            factors: std::ptr::null(),
            out: self.out.part(self.first + rows.start..self.first + rows.end, columns),
            out_stride: self.out.stride(),
            store: match self.epilogue {
                Epilogue::Add => StoreMode::AddF32,
                Epilogue::Store(_) => self.out.format().into(),
            },
        }
    }

    /// Multiplies `rows` by some panels of `block`, whose columns lie side by side in the rows of `out`.
    fn products(
        &self,
        block: &PanelBlock<'_>,
        panels: Range<usize>,
        rows: Range<usize>,
        share: Share,
        overlap: Option<Overlap>,
        out: &mut TileBuffer,
    ) {
        let (kernels, inputs, bytes) = (self.kernel_set.kernels, self.layer.inputs, block.bytes);
        let width = block.form.width(kernels);
        let stride = panels.len() * width;
        assert!(rows.len() * stride <= out.0.len() && rows.end <= self.x.plain.rows, "a tile");
        let out = out.0.as_mut_ptr().cast::<f32>();
        let height = rows.len();
        // A tile for each panel; `a` is the first of its rows, and `k` their units.
        let tiles = |a: *const u8, a_stride, k, panels: Range<usize>| {
            panels.enumerate().map(move |(at, panel)| Tile {
                a,
                a_stride,
                panel: block.memory[panel * bytes..][..bytes].as_ptr().cast(),
                k,
                // SAFETY: `at < panels.len()`, so `at * width < stride`, and `out` has `height * stride` values by the
                // assertion above.
                c: unsafe { out.add(at * width) },
                c_stride: stride,
                rows: height,
                accumulate: false,
                ahead: block.ahead.map(|Prefetch { from, bytes }| Ahead {
                    from: from.wrapping_add(panel * bytes + bytes * share.index / share.of),
                    step: bytes / k / share.of,
                }),
                overlap,
            })
        };
        match block.form {
            PartFormat::Plain(format) => {
                let x = &self.x.plain;
                assert_eq!(x.format, format, "format of an operand");
                for tile in tiles(x.row(rows.start), x.stride, units(format, inputs), panels) {
                    // SAFETY: `row_tiles` divides rows into tiles of at most `kernels.rows(format)`. `rows` are rows of `x`
                    // by the assertion above, and `PlainRows::new` checked that each has `units(format, inputs)` units, because
                    // `multiply` asserts `x.columns == inputs`. The slice has the bytes of one panel, which has at least as
                    // many rows of `width` units and starts at a cache line. `out` has `rows.len()` rows of `width` values
                    // from `at * width` on, and belongs to this task. `overlap` is an `Unfinished` that outlives the call.
                    unsafe { kernels.tile(format, &tile) };
                }
            }
            PartFormat::Scaled => {
                let (scaled, x_stride) = (&self.x.other.scaled, ScaledRows::stride(inputs));
                let x = scaled.numbers[rows.start * x_stride / 2..rows.end * x_stride / 2].as_ptr();
                let scales = scaled.scales[rows].as_ptr();
                for tile in tiles(x.cast(), x_stride, units(DType::Bf16, inputs), panels) {
                    // SAFETY: `row_tiles` divides rows into tiles of at most `kernels.scaled_rows()`. The slices of numbers and
                    // scales were bounds-checked; `fill` wrote them, and a row of `x_stride` bytes has at least the units of
                    // `inputs` values. The slice has the bytes of one panel, which has `k + 1` rows of `width` units and starts
                    // at a cache line. `out` has `height` rows of `width` values from `at * width` on, and belongs to this
                    // task.
                    unsafe { kernels.tile_scaled(&ScaledTile { tile, scales }) };
                }
            }
            PartFormat::Quantized(layout) => {
                let (quantized, groups) = (&self.x.other.quantized, inputs.div_ceil(GROUP));
                let terms = Product {
                    panel: block.memory[panels.start * bytes..panels.end * bytes].as_ptr(),
                    panel_bytes: bytes,
                    panels: panels.len(),
                    groups,
                    x: quantized.quants[rows.start * groups * GROUP..rows.end * groups * GROUP].as_ptr(),
                    x_flipped: if self.kernel_set.dot.flips() && layout.bits == 8 {
                        quantized.flipped[rows.start * groups..rows.end * groups].as_ptr()
                    } else {
                        std::ptr::null()
                    },
                    x_scales: quantized.scales[rows.start * groups..rows.end * groups].as_ptr(),
                    x_sums: if layout.halves {
                        quantized.sums[rows.start * groups * 2..rows.end * groups * 2].as_ptr()
                    } else {
                        std::ptr::null()
                    },
                    x_offsets: quantized.offsets[rows.start * groups..rows.end * groups].as_ptr(),
                    rows: rows.len(),
                    out,
                    out_stride: stride,
                };
                // SAFETY: the slice has the bytes of `panels.len()` panels of `groups` groups. The slices of `quants`, `flipped`,
                // `scales`, `sums` and `offsets` were bounds-checked, and have `groups` groups for each row.
                // `out` has `rows.len()` rows of `stride` values, sixteen for each panel, and belongs to this task.
                unsafe { self.kernel_set.dot.run(&terms, layout) };
            }
        }
    }
}
