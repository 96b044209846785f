//! Packs stored matrices into the panels of layers. [`super::layer`] and [`super::quant_gemm`] define their layouts.

use half::f16;

use super::activations::Forms;
use super::blocks::{GROUP, QuantGroup, QuantLayout};
use super::joined::{JoinedLinear, misfit};
use super::layer::{Biased, KernelSet, Linear, LinearPart, Matrix, PartFormat, WeightFormat};
use super::quant_gemm::{PANEL, group_bytes, quant_offset};
use crate::Result;
use crate::compute::isa::{DType, Isa};
use crate::compute::kernels::scaled::scale_column;
use crate::compute::kernels::{Kernels, units};
use crate::compute::memory::{Arena, Piece, zeroed};
use crate::compute::narrow::to_bf16;
use crate::compute::threads::Threads;
use crate::compute::weight::Weight;
use crate::sync::Mutex;

/// Packs the weights of one model into one arena, in the order of the calls. The best order is that in which a pass reads
/// them.
#[derive(Debug)]
pub struct Packer {
    /// The kernels that multiply the weights.
    pub kernel_set: KernelSet,
    /// The format of plain weights.
    pub format: WeightFormat,
    arena: Arena,
}

impl Packer {
    /// A packer for the kernels of `isa`, and for plain weights in `format`.
    pub fn new(isa: Isa, format: WeightFormat) -> Self {
        Self { kernel_set: KernelSet::new(isa), format, arena: Arena::default() }
    }

    /// Packs `matrices` with their biases; their outputs lie side by side.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::Error::Internal) if the shapes do not match, and errors of reading a file or of memory.
    pub fn linear(&self, matrices: &[Biased]) -> Result<Linear> {
        self.layer(matrices, |a, b| self.form(&a.0) == self.form(&b.0))
    }

    /// Packs a gated layer.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn gated(&self, gate: Biased, up: Biased) -> Result<Linear> {
        if gate.0.rows() != up.0.rows() {
            return Err(misfit(&up.0, gate.0.columns()));
        }
        let mut parts = [gate, up];
        let quantized = |part: &Biased| matches!(self.form(&part.0), PartFormat::Quantized(_));
        if quantized(&parts[0]) != quantized(&parts[1]) {
            // Both parts need panels of the same width, so if one is quantized, it is converted to plain weights.
            for (matrix, _) in &mut parts {
                *matrix = Weight::from_f32(&matrix.to_f32()?, &[matrix.rows(), matrix.columns()])?.into();
            }
        }
        let mut layer = self.layer(&parts, |_, _| false)?;
        layer.outputs /= 2;
        layer.gated = true;
        Ok(layer)
    }

    /// Packs a matrix as plain numbers in f32, whatever the format of the others.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn exact(&self, part: &Biased) -> Result<Linear> {
        let JoinedLinear { bias, inputs, outputs } = JoinedLinear::of(std::slice::from_ref(part))?;
        let plain = Weight::from_f32(&part.0.to_f32()?, &[outputs, inputs])?;
        let form = PartFormat::Plain(DType::F32);
        let memory = self.panels(form, &[(plain.into(), None)], inputs)?;
        let parts = vec![LinearPart { form, memory, columns: 0..outputs }];
        let bias = bias.unwrap_or_default();
        Ok(Linear { parts, bias, inputs, outputs, forms: Forms::default(), gated: false })
    }

    fn form(&self, matrix: &Matrix) -> PartFormat {
        PartFormat::of(matrix, self.format)
    }

    fn layer(&self, matrices: &[Biased], one_part: impl Fn(&Biased, &Biased) -> bool) -> Result<Linear> {
        let JoinedLinear { bias, inputs, outputs } = JoinedLinear::of(matrices)?;
        let mut parts = Vec::new();
        let mut start = 0;
        for same in matrices.chunk_by(one_part) {
            let form = self.form(&same[0].0);
            let rows = same.iter().map(|(matrix, _)| matrix.rows()).sum::<usize>();
            let memory = self.panels(form, same, inputs)?;
            parts.push(LinearPart { form, memory, columns: start..start + rows });
            start += rows;
        }
        let quantized = |part: &LinearPart| match part.form {
            PartFormat::Quantized(layout) => Some(layout),
            PartFormat::Plain(_) | PartFormat::Scaled => None,
        };
        let forms = Forms {
            scaled: parts.iter().any(|part| part.form == PartFormat::Scaled),
            quantized: parts.iter().any(|part| quantized(part).is_some()),
            halves: parts.iter().filter_map(quantized).any(|layout| layout.halves),
            eight_bits: parts.iter().filter_map(quantized).any(|layout| layout.bits == 8),
        };
        Ok(Linear { parts, bias: bias.unwrap_or_default(), inputs, outputs, forms, gated: false })
    }

    /// Packs the panels of `matrices`, whose outputs lie side by side.
    fn panels(&self, form: PartFormat, matrices: &[Biased], inputs: usize) -> Result<Piece> {
        let (kernels, plain) = (self.kernel_set.kernels, self.format);
        let rows: Vec<(&Matrix, usize)> = matrices
            .iter()
            .flat_map(|(matrix, _)| (0..matrix.rows()).map(move |row| (matrix, row)))
            .collect();
        let width = form.width(kernels);
        let bytes = form.panel_bytes(kernels, inputs);
        let mut panels = self.arena.take(rows.len().div_ceil(width) * bytes)?;
        let tasks: Vec<_> = panels.as_mut_slice::<u32>().chunks_mut(bytes / 4).map(Mutex::new).collect();
        let fault = Mutex::new(None);
        Threads::global().run(tasks.len(), &|panel| {
            let rows = &rows[panel * width..rows.len().min((panel + 1) * width)];
            let mut panel = tasks[panel].lock();
            let packed = match form {
                PartFormat::Plain(dtype) => pack_plain(kernels, dtype, rows, inputs, &mut panel),
                PartFormat::Scaled => pack_scaled(kernels, rows, inputs, &mut panel),
                PartFormat::Quantized(layout) => pack_quantized(layout, plain, rows, inputs, &mut panel),
            };
            if let Err(error) = packed {
                fault.lock().get_or_insert(error);
            }
        })?;
        drop(tasks);
        if let Some(error) = fault.into_inner() {
            return Err(error);
        }
        panels.settle();
        Ok(panels)
    }
}

/// Runs of `rows` that are consecutive in the same matrix, each with the index of its first row in `rows`.
fn runs<'a>(
    rows: &'a [(&'a Matrix, usize)],
) -> impl Iterator<Item = (usize, &'a Matrix, std::ops::Range<usize>)> {
    let mut place = 0;
    rows.chunk_by(|a, b| std::ptr::eq(a.0, b.0) && a.1 + 1 == b.1).map(move |run| {
        let (matrix, first) = run[0];
        let at = place;
        place += run.len();
        (at, matrix, first..first + run.len())
    })
}

/// The values of `rows`, of plain matrices.
fn plain_values(rows: &[(&Matrix, usize)], inputs: usize) -> Result<Vec<f32>> {
    let mut values = zeroed::<f32>(rows.len() * inputs)?;
    let mut scratch = Vec::new();
    for (place, matrix, range) in runs(rows) {
        if let Matrix::Plain(weight) = matrix {
            let out = &mut values[place * inputs..][..range.len() * inputs];
            weight.rows_f32(range, out, &mut scratch)?;
        }
    }
    Ok(values)
}

fn pack_plain(
    kernels: &Kernels,
    dtype: DType,
    rows: &[(&Matrix, usize)],
    inputs: usize,
    panel: &mut [u32],
) -> Result<()> {
    let values = plain_values(rows, inputs)?;
    let (from, stride, _bits);
    match dtype {
        DType::F32 => (from, stride) = (values.as_ptr().cast::<u8>(), inputs * 4),
        DType::Bf16 => {
            let mut bits: Vec<u16> = zeroed(values.len() + 1)?;
            to_bf16(&values, &mut bits);
            (from, stride) = (bits.as_ptr().cast(), inputs * 2);
            _bits = bits;
        }
    }
    // SAFETY: `from` points to `values`, or to `bits`, which `_bits` keeps alive; both have `rows.len()` consecutive rows
    // of `inputs` elements. `bits` has one more element, so one is readable after its last row.
    unsafe { kernels.pack_columns(dtype, from, stride, rows.len(), inputs, panel) };
    Ok(())
}

/// Packs f16 in pairs, and after them the scale of each output.
fn pack_scaled(kernels: &Kernels, rows: &[(&Matrix, usize)], inputs: usize, panel: &mut [u32]) -> Result<()> {
    let values = plain_values(rows, inputs)?;
    let mut bits: Vec<u16> = zeroed(values.len() + 1)?;
    let (pairs, scales) = panel.split_at_mut(units(DType::Bf16, inputs) * kernels.width);
    for ((row, from), scale) in values.chunks_exact(inputs).enumerate().zip(scales) {
        *scale = scale_column(from, &mut bits[row * inputs..][..inputs]).to_bits();
    }
    // SAFETY: `bits` has `rows.len()` rows of `inputs` numbers of 16 bits, which are packed in pairs as those of bf16, and one
    // more.
    unsafe { kernels.pack_columns(DType::Bf16, bits.as_ptr().cast(), inputs * 2, rows.len(), inputs, pairs) };
    Ok(())
}

fn pack_quantized(
    layout: QuantLayout,
    plain: WeightFormat,
    rows: &[(&Matrix, usize)],
    inputs: usize,
    panel: &mut [u32],
) -> Result<()> {
    let panel = as_bytes(panel);
    let mut scratch = Vec::new();
    let mut values = Vec::new();
    for (place, matrix, range) in runs(rows) {
        let columns = place..place + range.len();
        match matrix {
            Matrix::Blocks(blocks) => {
                let size = blocks.row_bytes();
                let read = blocks.rows_read(range, &mut scratch)?;
                for (row, column) in columns.enumerate() {
                    let row = &read[row * size..][..size];
                    put_group(layout, column, inputs, panel, |index| blocks.format().group(row, index));
                }
            }
            Matrix::Plain(weight) => {
                // The last group of a row may be padded with zeros.
                let padded = inputs.next_multiple_of(GROUP);
                let mut row = zeroed::<f32>(padded)?;
                values =
                    if values.len() < range.len() * inputs { zeroed(range.len() * inputs)? } else { values };
                let values = &mut values[..range.len() * inputs];
                weight.rows_f32(range, values, &mut scratch)?;
                for (from, column) in values.chunks_exact(inputs).zip(columns) {
                    row[..inputs].copy_from_slice(from);
                    let groups = row.as_chunks::<GROUP>().0;
                    put_group(layout, column, inputs, panel, |index| match plain {
                        WeightFormat::Int4 => QuantGroup::four_bits(&groups[index]),
                        _ => QuantGroup::eight_bits(&groups[index]),
                    });
                }
            }
        }
    }
    Ok(())
}

/// Writes the groups of one row into column `column` of a panel.
fn put_group(
    layout: QuantLayout,
    column: usize,
    inputs: usize,
    panel: &mut [u8],
    group: impl Fn(usize) -> QuantGroup,
) {
    let bytes = group_bytes(layout);
    for index in 0..inputs.div_ceil(GROUP) {
        let group = group(index);
        let to = &mut panel[index * bytes..][..bytes];
        let mut number = |which: usize, value: f32| {
            let at = (which * PANEL + column) * 2;
            to[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        };
        number(0, group.scales[0]);
        if layout.halves {
            number(1, group.scales[1]);
        }
        if layout.minimum {
            let minima = &group.minima[..if layout.halves { 2 } else { 1 }];
            minima.iter().zip(minima.len()..).for_each(|(&minimum, which)| number(which, minimum));
        }
        for (i, quant) in group.quants.into_iter().enumerate() {
            let (at, high) = quant_offset(layout, column, i);
            to[at] |= if high { quant << 4 } else { quant };
        }
    }
}

fn as_bytes(units: &mut [u32]) -> &mut [u8] {
    // SAFETY: `units` has `size_of_val(units)` bytes. Every bit pattern is valid for both types, `u8` needs no alignment, and
    // the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast(), size_of_val(units)) }
}
