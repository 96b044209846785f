//! Linear layers at work: one product for one row or for thousands.
//!
//! The unit is a tile of rows times a panel of weights. Rows pass a block of panels that stays in the second-level
//! cache; bias, activation, gate and residual are fused into the store of a tile. A row's result does not depend on
//! the rows beside it, nor on how the work is divided.

use std::ops::Range;

use super::activations::{Activations, Plain, WORTH_SPLITTING};
use super::blocks::GROUP;
use super::dot::{PANEL, Product};
use super::linear::{Form, Linear, Machine, Part};
use crate::Result;
use crate::compute::cpu::{Target, Team, share};
use crate::compute::kernels::rows::Finish;
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, LARGEST_TILE, units};
use crate::compute::{Activation, Threads};

/// Panels of one block together should stay in the second-level cache while all rows pass by.
const BLOCK_BYTES: usize = 384 << 10;

/// Tasks for each thread: enough that a thread which starts late leaves work to the others.
const TASKS_PER_THREAD: usize = 4;

/// Rows that pass a panel of codes at once: whole heights of its tiles.
const CODED_ROWS: usize = 24;

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
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
    machine: &'a Machine,
    x: Operand<'a>,
    then: Then,
    out: &'a Target<'a>,
    /// The row of the output where the first one goes.
    first: usize,
}

impl Linear {
    /// The layer for rows of `x`, on all threads: from one row, where it is the reading of weights that takes time.
    /// `scratch` keeps its memory between calls.
    pub(crate) fn apply(
        &self,
        machine: &Machine,
        threads: &Threads,
        scratch: &mut Activations,
        x: &[f32],
        out: &mut [f32],
        then: Then,
    ) -> Result<()> {
        let rows = x.len() / self.inputs;
        assert!(
            x.len() == rows * self.inputs && out.len() == rows * self.outputs,
            "shapes of a linear layer"
        );
        let team = if x.len() < WORTH_SPLITTING { Team::One } else { Team::All(threads) };
        let x = Plain::of_f32(x, self.inputs);
        scratch.prepare(x, self.forms, team)?;
        let plain = scratch.plain(x, self.forms);
        let out = Target::over(out, self.outputs);
        let work =
            Work { layer: self, machine, x: Operand { plain, coded: scratch }, then, out: &out, first: 0 };
        let panels = self.panels(machine.kernels);
        let tasks = panels.min(threads.count() * TASKS_PER_THREAD);
        threads.run(tasks, &|task| work.block(0..rows, share(panels, tasks, task)))
    }

    /// The layer for rows that lie in the format of its plain weights, into the rows of `out` from `first` on.
    #[expect(clippy::too_many_arguments, reason = "two matrices, and who multiplies them how")]
    pub(crate) fn multiply(
        &self,
        machine: &Machine,
        team: Team<'_>,
        scratch: &mut Activations,
        x: Plain<'_>,
        then: Then,
        out: &Target<'_>,
        first: usize,
    ) -> Result<()> {
        assert_eq!(x.columns, self.inputs, "operand of a linear layer");
        if self.forms.codes {
            scratch.encode(x, team)?;
        }
        let work = Work { layer: self, machine, x: Operand { plain: x, coded: scratch }, then, out, first };
        let height = machine.kernels.rows(x.format);
        let tiles = x.rows.div_ceil(height);
        team.split(tiles, self.panels(machine.kernels), |tiles, panels| {
            work.block(tiles.start * height..x.rows.min(tiles.end * height), panels);
        })
    }

    /// Parts whose panels are divided among tasks: a gated one brings its partner along.
    fn leading(&self) -> &[Part] {
        if self.gated { &self.parts[..1] } else { &self.parts }
    }

    fn panels(&self, kernels: &Kernels) -> usize {
        self.leading().iter().map(|part| part.panels(kernels)).sum()
    }
}

impl Work<'_> {
    /// One task: some rows times some of the layer's panels.
    fn block(&self, rows: Range<usize>, panels: Range<usize>) {
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
        let block = (BLOCK_BYTES / bytes.max(1)).max(1);
        let height = match part.form {
            // As even as whole numbers go: a tile costs about the same whether it is full or not.
            Form::Plain(format) => {
                let tiles = rows.len().div_ceil(kernels.rows(format)).max(1);
                rows.len().div_ceil(tiles).max(1)
            }
            Form::Coded(_) => CODED_ROWS,
        };
        // Made once: clearing them for each tile would cost as much as a twentieth of its product.
        let mut tiles = [[0.0_f32; LARGEST_TILE]; 2];
        for first in panels.clone().step_by(block) {
            for row in rows.clone().step_by(height) {
                for panel in first..panels.end.min(first + block) {
                    self.tile(part, panel, row..rows.end.min(row + height), &mut tiles);
                }
            }
        }
    }

    /// One panel, and its partner in a gated layer, times some rows, by way of `tiles`.
    fn tile(&self, part: &Part, panel: usize, rows: Range<usize>, tiles: &mut [[f32; LARGEST_TILE]; 2]) {
        let (layer, kernels) = (self.layer, self.machine.kernels);
        let width = part.form.width(kernels);
        let start = part.columns.start + panel * width;
        let columns = start..part.columns.end.min(start + width);
        let [product, partner] = tiles;
        self.product(part, panel, rows.clone(), product);
        if layer.gated {
            self.product(&layer.parts[1], panel, rows.clone(), partner);
        }
        let bias = |from: usize| {
            let own = layer.bias.get(from..from + columns.len());
            own.map_or(std::ptr::null(), <[f32]>::as_ptr)
        };
        let accumulate = self.then == Then::Add;
        let finish = Finish {
            tile: product.as_ptr(),
            tile_stride: width,
            rows: rows.len(),
            columns: columns.len(),
            bias: bias(columns.start),
            activation: if let Then::Store(activation) = self.then {
                activation
            } else {
                Activation::Identity
            },
            gated: if layer.gated { partner.as_ptr() } else { std::ptr::null() },
            gated_bias: if layer.gated { bias(layer.outputs + columns.start) } else { std::ptr::null() },
            factors: std::ptr::null(),
            out: self.out.part(self.first + rows.start..self.first + rows.end, columns),
            out_stride: self.out.stride(),
            to: self.out.format(),
            accumulate,
        };
        // SAFETY: the tiles hold whole registers, biases were bounds-checked, and the part of `out` is this task's own.
        unsafe { kernels.finish(&finish) };
    }

    fn product(&self, part: &Part, panel: usize, rows: Range<usize>, out: &mut [f32; LARGEST_TILE]) {
        let (kernels, inputs) = (self.machine.kernels, self.layer.inputs);
        let width = part.form.width(kernels);
        let panel = part.panel(panel, part.form.panel_bytes(kernels, inputs)).as_ptr();
        assert!(rows.len() * width <= out.len(), "a tile");
        match part.form {
            Form::Plain(format) => {
                assert_eq!(self.x.plain.format, format, "format of an operand");
                let tile = Tile {
                    a: self.x.plain.row(rows.start),
                    a_stride: self.x.plain.stride,
                    panel: panel.cast(),
                    k: units(format, inputs),
                    c: out.as_mut_ptr(),
                    c_stride: width,
                    rows: rows.len(),
                    accumulate: false,
                };
                // SAFETY: the rows have whole units, the panel was bounds-checked, and the tile fits.
                unsafe { kernels.tile(format, &tile) };
            }
            Form::Coded(layout) => {
                let (coded, groups) = (self.x.coded, inputs.div_ceil(GROUP));
                let terms = Product {
                    panel,
                    groups,
                    x: coded.codes[rows.start * groups * GROUP..rows.end * groups * GROUP].as_ptr(),
                    x_scales: coded.scales[rows.start * groups..rows.end * groups].as_ptr(),
                    x_sums: coded.sums[rows.start * groups * 2..rows.end * groups * 2].as_ptr(),
                    x_totals: coded.totals[rows.start * groups..rows.end * groups].as_ptr(),
                    rows: rows.len(),
                    out: out.as_mut_ptr(),
                    out_stride: PANEL,
                };
                // SAFETY: as above, with a scale and sums for each group of each row.
                unsafe { self.machine.dot.run(&terms, layout) };
            }
        }
    }
}
