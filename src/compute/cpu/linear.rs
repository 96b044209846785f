//! Linear layers: weights packed once into panels, multiplied tile by tile.

use std::ops::Range;

use half::bf16;

use super::matrix::{Matrix, Target};
use super::team::Team;
use crate::compute::kernels::rows::Finish;
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, LARGEST_TILE, units};
use crate::compute::memory::Buffer;
use crate::compute::{Activation, DType, Threads, Weight};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Panels of one block together should stay in the second-level cache while all rows pass by.
const BLOCK_BYTES: usize = 384 << 10;

/// A linear layer `x Wᵀ + b`, packed for one instruction set.
#[derive(Debug)]
pub struct Linear {
    panels: Buffer,
    bias: Vec<f32>,
    inputs: usize,
    outputs: usize,
    format: DType,
}

impl Linear {
    /// Packs the matrices of `parts` (`[outputs, inputs]` each, with biases `[outputs]`) side by side.
    pub(super) fn pack(kernels: &Kernels, format: DType, parts: &[(Weight, Option<Weight>)]) -> Result<Self> {
        let inputs = parts.first().map_or(0, |(matrix, _)| matrix.columns());
        let mut bias = Vec::new();
        let mut rows = Vec::new();
        for (matrix, shift) in parts {
            let fits = matrix.shape().len() == 2
                && matrix.columns() == inputs
                && shift.as_ref().is_none_or(|shift| shift.shape() == [matrix.rows()]);
            if !fits {
                return Err(Error::Internal {
                    place: "linear".into(),
                    reason: format!("parts do not fit together: {:?}", matrix.shape()),
                });
            }
            rows.extend((0..matrix.rows()).map(|row| (matrix, row)));
            match shift {
                Some(shift) => bias.extend(shift.to_f32()),
                None => bias.resize(rows.len(), 0.0),
            }
        }
        let outputs = rows.len();
        let units = units(format, inputs);
        let mut panels = Buffer::zeroed(outputs.next_multiple_of(kernels.width) * units * 4)?;
        let size = (units * kernels.width).max(1);
        let tasks: Vec<_> = panels.as_mut_slice::<u32>().chunks_mut(size).map(Mutex::new).collect();
        let width = kernels.width;
        Threads::global().run(tasks.len(), &|panel| {
            let columns = &rows[panel * width..outputs.min((panel + 1) * width)];
            let mut values = vec![0.0; columns.len() * inputs];
            for ((matrix, row), out) in columns.iter().zip(values.chunks_mut(inputs)) {
                matrix.row_f32(*row, out);
            }
            let mut to = tasks[panel].lock();
            match format {
                // SAFETY: `values` holds the rows, one after another.
                DType::F32 => unsafe {
                    kernels.pack_columns(
                        format,
                        values.as_ptr().cast(),
                        inputs * 4,
                        columns.len(),
                        inputs,
                        &mut to,
                    );
                },
                DType::Bf16 => {
                    let mut narrow: Vec<u16> = values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                    narrow.push(0);
                    // SAFETY: as above, with one element more for an odd number of inputs.
                    unsafe {
                        kernels.pack_columns(
                            format,
                            narrow.as_ptr().cast(),
                            inputs * 2,
                            columns.len(),
                            inputs,
                            &mut to,
                        );
                    }
                }
            }
        })?;
        // The packed copy serves from now on: the file's pages need not count as ours.
        parts.iter().for_each(|(matrix, _)| matrix.release());
        Ok(Self { panels, bias, inputs, outputs, format })
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.panels.len() + self.bias.len() * 4
    }

    /// `out = activation(a Wᵀ + b)`, or `out += a Wᵀ + b`.
    pub(super) fn multiply(
        &self,
        kernels: &Kernels,
        team: Team<'_>,
        a: &Matrix,
        activation: Activation,
        out: &Target<'_>,
        accumulate: bool,
    ) -> Result<()> {
        assert!(a.format() == self.format && a.columns() == self.inputs, "operand of a linear layer");
        let panels = self.outputs.div_ceil(kernels.width);
        let tiles = a.rows().div_ceil(kernels.rows);
        team.split(tiles, panels, |tiles_of, panels_of| {
            let rows =
                share(a.rows(), tiles, tiles_of.start).start..share(a.rows(), tiles, tiles_of.end - 1).end;
            self.block(kernels, a, rows, panels_of, activation, out, accumulate);
        })
    }

    /// One task: some rows times some panels.
    #[expect(clippy::too_many_arguments, reason = "the task of one thread, called from `multiply` alone")]
    fn block(
        &self,
        kernels: &Kernels,
        a: &Matrix,
        rows: Range<usize>,
        panels: Range<usize>,
        activation: Activation,
        out: &Target<'_>,
        accumulate: bool,
    ) {
        let width = kernels.width;
        let k = units(self.format, self.inputs);
        let data = self.panels.as_slice::<f32>();
        let tiles = rows.len().div_ceil(kernels.rows);
        let block = (BLOCK_BYTES / (k * width * 4).max(1)).max(1);
        let mut product = [0.0_f32; LARGEST_TILE];
        let product = product.as_mut_ptr();
        for first in panels.clone().step_by(block) {
            for index in 0..tiles {
                let tile = share(rows.len(), tiles, index);
                let tile = rows.start + tile.start..rows.start + tile.end;
                for panel in first..panels.end.min(first + block) {
                    let columns = panel * width..self.outputs.min((panel + 1) * width);
                    let tile_of = Tile {
                        a: a.row_ptr(tile.start),
                        a_stride: a.stride(),
                        panel: data[panel * k * width..(panel + 1) * k * width].as_ptr(),
                        k,
                        c: product,
                        c_stride: width,
                        rows: tile.len(),
                        accumulate: false,
                    };
                    let finish = Finish {
                        tile: product,
                        rows: tile.len(),
                        columns: columns.len(),
                        bias: self.bias[columns.clone()].as_ptr(),
                        activation,
                        factors: std::ptr::null(),
                        out: out.part(tile.clone(), columns),
                        out_stride: out.stride(),
                        to: out.format(),
                        accumulate,
                    };
                    // SAFETY: the rows of `a` have `k` units (a row's end is padded to a whole unit), the panel
                    // was bounds-checked, and the part of `out` is this task's own.
                    unsafe {
                        kernels.tile(self.format, &tile_of);
                        kernels.finish(&finish);
                    }
                }
            }
        }
    }
}

/// Share `index` of `items` divided among `parts` as evenly as whole numbers go.
pub(super) fn share(items: usize, parts: usize, index: usize) -> Range<usize> {
    let start = |index: usize| items * index / parts.max(1);
    start(index)..start(index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_complete() {
        for (items, parts) in [(18, 2), (256, 19), (5, 5), (1, 1), (0, 0), (29, 3)] {
            let shares: Vec<_> = (0..parts).map(|i| share(items, parts, i)).collect();
            assert_eq!(shares.iter().map(ExactSizeIterator::len).sum::<usize>(), items);
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(shares.iter().all(|share| share.len() <= items.div_ceil(parts)));
        }
    }
}
