//! Linear layers at work: one product for one row or for thousands.
//!
//! The unit is a tile of rows times a panel of weights. Rows pass a block of panels that stays in the second-level
//! cache; bias, activation, gate and residual are fused into the store of a tile. A row's result does not depend on
//! the rows beside it, nor on how the work is divided.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::activations::{Activations, Plain};
use super::blocks::GROUP;
use super::layer::{Form, KernelSet, Linear, Part};
use super::quant_gemm::Product;
use crate::Result;
use crate::compute::kernels::activation::Activation;
use crate::compute::kernels::rowwise::TileEpilogue;
use crate::compute::kernels::tile::{Ahead, Tile};
use crate::compute::kernels::{Kernels, LARGEST_TILE, units};
use crate::compute::parallel::{Parallelism, Target};

/// Panels of one block together should stay in the second-level cache while all rows pass by.
const BLOCK_BYTES: usize = 384 << 10;

/// From so many rows on a panel takes longer to multiply than to read from far memory, so that the next one can be
/// fetched meanwhile. With fewer, memory is always busy, and asking it early only makes it slower.
const FETCHING: usize = 8;

/// Up to so many tiles of rows it does not pay to let them all pass a block of panels.
const FEW: usize = 8;

/// Rows that pass a panel of codes at once: whole heights of its tiles.
const CODED_ROWS: usize = 24;

/// Where a tile's result lies before it is finished. Products write all that is read, so nothing clears it: that
/// would cost as much as a twentieth of a product.
type Room = [MaybeUninit<f32>; LARGEST_TILE];

/// One of `of` equal shares.
#[derive(Clone, Copy)]
struct Share {
    index: usize,
    of: usize,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// The activation is applied, and the result stored.
    Store(Activation),
    /// It is added to what the output (f32) holds.
    Add,
}

/// The left operand, in the forms that the layer's parts ask for.
struct Operand<'a> {
    plain: Plain<'a>,
    coded: &'a Activations,
}

/// One product of a layer, divided among tasks by rows and panels.
struct Work<'a> {
    layer: &'a Linear,
    machine: &'a KernelSet,
    x: Operand<'a>,
    then: Epilogue,
    out: &'a Target<'a>,
    /// The row of the output where the first one goes.
    first: usize,
}

impl Linear {
    /// The layer for rows that lie in the format of its plain weights, into the rows of `out` from `first` on.
    #[expect(clippy::too_many_arguments, reason = "two matrices, and who multiplies them how")]
    pub(crate) fn multiply(
        &self,
        machine: &KernelSet,
        team: Parallelism<'_>,
        scratch: &mut Activations,
        x: Plain<'_>,
        then: Epilogue,
        out: &Target<'_>,
        first: usize,
    ) -> Result<()> {
        assert_eq!(x.columns, self.inputs, "operand of a linear layer");
        if self.forms.quantized {
            scratch.quantize(machine.kernels, x, self.forms.halves, team)?;
        }
        let work = Work { layer: self, machine, x: Operand { plain: x, coded: scratch }, then, out, first };
        let height = machine.kernels.rows(x.format);
        let tiles = x.rows.div_ceil(height);
        let (groups, panels) = self.groups(machine.kernels);
        team.split(tiles, groups, |tiles, groups| {
            work.block(tiles.start * height..x.rows.min(tiles.end * height), panels(groups));
        })
    }

    /// Parts whose panels are divided among tasks: a gated one brings its partner along.
    fn leading(&self) -> &[Part] {
        if self.gated { &self.parts[..1] } else { &self.parts }
    }

    /// What threads share out: how many groups of panels there are, and which panels some of them are. Quantized ones are
    /// multiplied by two panels at once.
    fn groups(&self, kernels: &Kernels) -> (usize, impl Fn(Range<usize>) -> Range<usize> + Sync + use<>) {
        let all: usize = self.leading().iter().map(|part| part.panels(kernels)).sum();
        let size = if self.forms.quantized { 2 } else { 1 };
        (all.div_ceil(size), move |groups| groups.start * size..all.min(groups.end * size))
    }
}

impl Work<'_> {
    /// One task: some rows times some of the layer's panels.
    fn block(&self, rows: Range<usize>, panels: Range<usize>) {
        let _tiles = self.machine.kernels.keep_tiles();
        let mut before = 0;
        for part in self.layer.leading() {
            let count = part.panels(self.machine.kernels);
            let inside = |panel: usize| panel.clamp(before, before + count) - before;
            self.part(part, rows.clone(), inside(panels.start)..inside(panels.end));
            before += count;
        }
    }

    fn part(&self, part: &Part, rows: Range<usize>, panels: Range<usize>) {
        let kernels = self.machine.kernels;
        let bytes = part.form.panel_bytes(kernels, self.layer.inputs);
        let height = match part.form {
            // As even as whole numbers go: a tile costs about the same whether it is full or not.
            Form::Plain(format) => {
                let tiles = rows.len().div_ceil(kernels.rows(format)).max(1);
                rows.len().div_ceil(tiles).max(1)
            }
            Form::Quantized(_) => CODED_ROWS,
        };
        let turns = rows.len().div_ceil(height);
        let few = rows.len() >= FETCHING && turns <= FEW && matches!(part.form, Form::Plain(_));
        let block = if few && turns > 1 { 1 } else { (BLOCK_BYTES / bytes.max(1)).max(1) };
        let mut tiles = [[MaybeUninit::uninit(); LARGEST_TILE]; 2];
        for first in panels.clone().step_by(block) {
            let end = panels.end.min(first + block);
            for (turn, row) in rows.clone().step_by(height).enumerate() {
                let fetched = few.then_some(Share { index: turn, of: turns });
                let rows = row..rows.end.min(row + height);
                // Of few rows, the products of several panels are finished together.
                let together = LARGEST_TILE / (part.form.width(kernels) * rows.len());
                for panel in (first..end).step_by(together) {
                    self.tile(part, panel..end.min(panel + together), rows.clone(), fetched, &mut tiles);
                }
            }
        }
    }

    /// Panels, and their partners in a gated layer, times some rows, by way of `tiles`; `fetched` of
    /// the panel after each is fetched meanwhile.
    fn tile(
        &self,
        part: &Part,
        panels: Range<usize>,
        rows: Range<usize>,
        fetched: Option<Share>,
        tiles: &mut [Room; 2],
    ) {
        let (layer, kernels) = (self.layer, self.machine.kernels);
        let width = part.form.width(kernels);
        let start = part.columns.start + panels.start * width;
        let columns = start..part.columns.end.min(start + panels.len() * width);
        let [product, partner] = tiles;
        self.products(part, panels.clone(), rows.clone(), fetched, product);
        if layer.gated {
            self.products(&layer.parts[1], panels.clone(), rows.clone(), fetched, partner);
        }
        let bias = |from: usize| {
            let own = layer.bias.get(from..from + columns.len());
            own.map_or(std::ptr::null(), <[f32]>::as_ptr)
        };
        let accumulate = self.then == Epilogue::Add;
        let finish = TileEpilogue {
            tile: product.as_ptr().cast(),
            tile_stride: panels.len() * width,
            rows: rows.len(),
            columns: columns.len(),
            bias: bias(columns.start),
            activation: if let Epilogue::Store(activation) = self.then {
                activation
            } else {
                Activation::Identity
            },
            gated: if layer.gated { partner.as_ptr().cast() } else { std::ptr::null() },
            gated_bias: if layer.gated { bias(layer.outputs + columns.start) } else { std::ptr::null() },
            factors: std::ptr::null(),
            out: self.out.part(self.first + rows.start..self.first + rows.end, columns),
            out_stride: self.out.stride(),
            to: self.out.format(),
            accumulate,
        };
        // SAFETY: `products` wrote whole registers, biases were bounds-checked, and the part of `out` is this task's own.
        unsafe { kernels.finish(&finish) };
    }

    /// The products of `panels` side by side: `out` becomes rows of all their columns.
    fn products(
        &self,
        part: &Part,
        panels: Range<usize>,
        rows: Range<usize>,
        fetched: Option<Share>,
        out: &mut Room,
    ) {
        let (kernels, inputs) = (self.machine.kernels, self.layer.inputs);
        let width = part.form.width(kernels);
        let stride = panels.len() * width;
        assert!(rows.len() * stride <= out.len(), "a tile");
        let bytes = part.form.panel_bytes(kernels, inputs);
        let out = out.as_mut_ptr().cast::<f32>();
        match part.form {
            Form::Plain(format) => {
                assert_eq!(self.x.plain.format, format, "format of an operand");
                for (at, panel) in panels.enumerate() {
                    let start = part.panels_from(panel, 1, bytes).as_ptr();
                    let tile = Tile {
                        a: self.x.plain.row(rows.start),
                        a_stride: self.x.plain.stride,
                        panel: start.cast(),
                        k: units(format, inputs),
                        // SAFETY: `at * width` is less than `stride`, of which `out` has room for so many.
                        c: unsafe { out.add(at * width) },
                        c_stride: stride,
                        rows: rows.len(),
                        accumulate: false,
                        ahead: fetched.map(|share| Ahead {
                            from: start.wrapping_add(bytes + bytes * share.index / share.of),
                            step: kernels.width * 4 / share.of,
                        }),
                    };
                    // SAFETY: the rows have whole units, the panel was bounds-checked, and the tile fits.
                    unsafe { kernels.tile(format, &tile) };
                }
            }
            Form::Quantized(layout) => {
                let (coded, groups) = (self.x.coded, inputs.div_ceil(GROUP));
                let terms = Product {
                    panel: part.panels_from(panels.start, panels.len(), bytes).as_ptr(),
                    panel_bytes: bytes,
                    panels: panels.len(),
                    groups,
                    x: coded.codes[rows.start * groups * GROUP..rows.end * groups * GROUP].as_ptr(),
                    x_scales: coded.scales[rows.start * groups..rows.end * groups].as_ptr(),
                    x_sums: if layout.halves {
                        coded.sums[rows.start * groups * 2..rows.end * groups * 2].as_ptr()
                    } else {
                        std::ptr::null()
                    },
                    x_offsets: coded.offsets[rows.start * groups..rows.end * groups].as_ptr(),
                    rows: rows.len(),
                    out,
                    out_stride: stride,
                };
                // SAFETY: as above, with a scale, sums and an offset for each group of each row.
                unsafe { self.machine.dot.run(&terms, layout) };
            }
        }
    }
}
