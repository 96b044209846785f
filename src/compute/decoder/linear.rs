//! Linear layers of a decoder: one to a few hundred rows times weights of any stored format.
//!
//! Decoding one token is bound by reading the weights once, so they are held as narrow as they come, packed into
//! panels that one thread streams from end to end. Plain numbers use the tiles of the encoder; coded ones
//! ([`super::blocks`]) are multiplied as integers by activations rounded to eight bits, as llama.cpp does.

use std::ops::Range;
use std::sync::Arc;

use crate::sync::Mutex;
use half::{bf16, f16};

use super::activations::{Activations, Forms};
use super::blocks::{BlockTensor, GROUP, Group, Layout};
use super::dot::{Dot, PANEL, Product, code_place, group_bytes};
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, LARGEST_TILE, units};
use crate::compute::memory::Buffer;
use crate::compute::{DType, Isa, Threads, Weight};
use crate::{Error, Result};

/// Tasks for each thread: enough that a thread which starts late leaves work to the others.
const TASKS_PER_THREAD: usize = 4;

/// Rows that pass a panel before the next one is read: their activations stay in the second-level cache.
const ROWS_AT_ONCE: usize = 256;

/// How weights that are stored as plain numbers are held. Blocks stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// f32, exact.
    F32,
    /// bf16: half the memory; activations are rounded to bf16 as well.
    Bf16,
    /// Eight bits, a scale for each 32 weights (as Q8_0).
    Int8,
    /// Four bits, scale and minimum for each 32 weights (as Q4_1).
    Int4,
}

impl Hold {
    /// "float32", "bfloat16", "int8", "int4".
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// A stored matrix `[outputs, inputs]`.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// Plain numbers.
    Plain(Weight),
    /// Coded ones.
    Blocks(BlockTensor),
}

impl Matrix {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.rows(),
            Self::Blocks(blocks) => blocks.rows(),
        }
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.columns(),
            Self::Blocks(blocks) => blocks.columns(),
        }
    }
}

/// The CPU as decoders use it.
#[derive(Debug)]
pub struct Machine {
    pub(crate) kernels: &'static Kernels,
    pub(crate) dot: Dot,
}

impl Machine {
    /// The kernels of `isa`.
    pub fn new(isa: Isa) -> Self {
        Self { kernels: Kernels::of(isa), dot: Dot::of(isa) }
    }
}

/// `x Wᵀ + b`, for matrices side by side.
#[derive(Debug)]
pub struct Linear {
    parts: Vec<Part>,
    bias: Vec<f32>,
    inputs: usize,
    outputs: usize,
    forms: Forms,
}

/// Matrices of one form.
#[derive(Debug)]
struct Part {
    form: Form,
    memory: Arc<Buffer>,
    /// Bytes of `memory`.
    range: Range<usize>,
    /// Columns of the output.
    columns: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain(DType),
    Coded(Layout),
}

impl Form {
    fn of(matrix: &Matrix, hold: Hold) -> Self {
        match (matrix, hold) {
            (Matrix::Blocks(blocks), _) => Self::Coded(blocks.format().layout()),
            (_, Hold::F32) => Self::Plain(DType::F32),
            (_, Hold::Bf16) => Self::Plain(DType::Bf16),
            (_, Hold::Int8) => Self::Coded(Layout { bits: 8, zero: Some(128), halves: false }),
            (_, Hold::Int4) => Self::Coded(Layout { bits: 4, zero: None, halves: false }),
        }
    }

    /// Outputs of a panel.
    fn width(self, kernels: &Kernels) -> usize {
        match self {
            Self::Plain(_) => kernels.width,
            Self::Coded(_) => PANEL,
        }
    }

    /// Bytes of a panel, in whole cache lines.
    fn panel_bytes(self, kernels: &Kernels, inputs: usize) -> usize {
        match self {
            Self::Plain(dtype) => units(dtype, inputs) * kernels.width * 4,
            Self::Coded(layout) => (inputs.div_ceil(GROUP) * group_bytes(layout)).next_multiple_of(64),
        }
    }
}

impl Part {
    fn panel(&self, index: usize, bytes: usize) -> &[u8] {
        &self.memory.as_slice::<u8>()[self.range.clone()][index * bytes..][..bytes]
    }
}

impl Linear {
    /// Packs `matrices` with their biases; their outputs lie side by side.
    ///
    /// # Errors
    /// [`Error::Internal`] when they do not fit together, [`Error::Io`] without memory.
    pub fn new(machine: &Machine, hold: Hold, matrices: &[(Matrix, Option<Weight>)]) -> Result<Self> {
        let inputs = matrices.first().map_or(0, |(matrix, _)| matrix.columns());
        let mut bias = Vec::new();
        let mut outputs = 0;
        for (matrix, shift) in matrices {
            let fits = matrix.columns() == inputs
                && shift.as_ref().is_none_or(|shift| shift.shape() == [matrix.rows()]);
            if !fits || inputs == 0 {
                return Err(Error::Internal {
                    place: "linear".into(),
                    reason: format!("a matrix of {} x {inputs} does not fit", matrix.rows()),
                });
            }
            outputs += matrix.rows();
            if let Some(shift) = shift {
                bias.resize(outputs - matrix.rows(), 0.0);
                bias.extend(shift.to_f32());
            }
        }
        if !bias.is_empty() {
            bias.resize(outputs, 0.0);
        }
        let mut parts = Vec::new();
        let mut start = 0;
        for same in matrices.chunk_by(|a, b| Form::of(&a.0, hold) == Form::of(&b.0, hold)) {
            let form = Form::of(&same[0].0, hold);
            let matrices: Vec<&Matrix> = same.iter().map(|(matrix, _)| matrix).collect();
            let rows: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
            let panels = pack(machine.kernels, form, hold, &matrices, inputs)?;
            let range = 0..panels.len();
            parts.push(Part { form, memory: Arc::new(panels), range, columns: start..start + rows });
            start += rows;
        }
        let forms = Forms {
            narrow: parts.iter().any(|part| part.form == Form::Plain(DType::Bf16)),
            codes: parts.iter().any(|part| matches!(part.form, Form::Coded(_))),
        };
        Ok(Self { parts, bias, inputs, outputs, forms })
    }

    /// Moves the weights of `layers` into one mapping, in their order. Small mappings lie in small pages, and reading
    /// a whole model through those spends a third of the time on address translation.
    ///
    /// # Errors
    /// [`Error::Io`] without memory.
    pub fn gather(layers: &mut [&mut Self]) -> Result<()> {
        let sizes =
            layers.iter().flat_map(|layer| &layer.parts).map(|part| part.range.len().next_multiple_of(64));
        let mut memory = Buffer::zeroed(sizes.sum())?;
        let mut start = 0;
        let mut ranges = Vec::new();
        for part in layers.iter_mut().flat_map(|layer| &mut layer.parts) {
            let from = &part.memory.as_slice::<u8>()[part.range.clone()];
            memory.as_mut_slice::<u8>()[start..start + from.len()].copy_from_slice(from);
            ranges.push(start..start + from.len());
            start += from.len().next_multiple_of(64);
            // Its own memory leaves at once, so that a model is never held twice.
            part.memory = Arc::new(Buffer::zeroed(0)?);
        }
        let memory = Arc::new(memory);
        for (part, range) in layers.iter_mut().flat_map(|layer| &mut layer.parts).zip(ranges) {
            part.memory = memory.clone();
            part.range = range;
        }
        Ok(())
    }

    /// Length of an input row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Length of an output row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.range.len() as u64).sum::<u64>() + 4 * self.bias.len() as u64
    }

    /// `out = x Wᵀ + b`, or `out += x Wᵀ + b`, for rows of `x`. `scratch` keeps its memory between calls.
    pub(crate) fn apply(
        &self,
        machine: &Machine,
        threads: &Threads,
        scratch: &mut Activations,
        x: &[f32],
        out: &mut [f32],
        accumulate: bool,
    ) -> Result<()> {
        let rows = x.len() / self.inputs;
        assert!(
            x.len() == rows * self.inputs && out.len() == rows * self.outputs,
            "shapes of a linear layer"
        );
        scratch.prepare(x, self.inputs, self.forms, threads)?;
        let kernels = machine.kernels;
        let panels: Vec<usize> =
            self.parts.iter().map(|part| part.columns.len().div_ceil(part.form.width(kernels))).collect();
        let total: usize = panels.iter().sum();
        let tasks = total.min(threads.count() * TASKS_PER_THREAD);
        let work = Work { layer: self, machine, x, prepared: scratch, out: out.as_mut_ptr(), accumulate };
        threads.run(tasks, &|task| {
            let mut product = [0.0f32; LARGEST_TILE];
            let share = total * task / tasks..total * (task + 1) / tasks;
            for first_row in (0..rows).step_by(ROWS_AT_ONCE) {
                let rows = first_row..rows.min(first_row + ROWS_AT_ONCE);
                let mut first = 0;
                for (part, &count) in self.parts.iter().zip(&panels) {
                    for panel in share.start.max(first)..share.end.min(first + count) {
                        // SAFETY: panels are divided among the tasks, so their columns of `out` are this task's.
                        unsafe { work.panel(part, panel - first, rows.clone(), &mut product) };
                    }
                    first += count;
                }
            }
        })
    }

    fn finish(&self, values: &[f32], column: usize, accumulate: bool, out: &mut [f32]) {
        if self.bias.is_empty() {
            let pairs = out.iter_mut().zip(values);
            pairs.for_each(|(out, value)| *out = if accumulate { *out + value } else { *value });
        } else {
            let pairs = out.iter_mut().zip(values).zip(&self.bias[column..]);
            pairs.for_each(|((out, value), bias)| *out = value + bias + if accumulate { *out } else { 0.0 });
        }
    }

    /// Output row `row` of the matrix itself, without the bias: an embedding that shares its memory with the head.
    pub(crate) fn row(&self, machine: &Machine, row: usize, out: &mut [f32]) {
        let kernels = machine.kernels;
        let Some(part) = self.parts.iter().find(|part| part.columns.contains(&row)) else {
            return out.fill(0.0);
        };
        let row = row - part.columns.start;
        let width = part.form.width(kernels);
        let bytes = part.form.panel_bytes(kernels, self.inputs);
        let panel = part.panel(row / width, bytes);
        let column = row % width;
        match part.form {
            Form::Plain(dtype) => {
                let number = |at: usize| u16::from_le_bytes([panel[at], panel[at + 1]]);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = match dtype {
                        DType::F32 => {
                            let at = (i * width + column) * 4;
                            f32::from_bits(u32::from(number(at)) | u32::from(number(at + 2)) << 16)
                        }
                        DType::Bf16 => {
                            bf16::from_bits(number((i / 2 * width + column) * 4 + i % 2 * 2)).to_f32()
                        }
                    };
                }
            }
            Form::Coded(layout) => {
                let bytes = group_bytes(layout);
                for (i, out) in out.iter_mut().enumerate() {
                    let (group, i) = (&panel[i / GROUP * bytes..][..bytes], i % GROUP);
                    let number = |which: usize| {
                        let at = (which * PANEL + column) * 2;
                        f16::from_le_bytes([group[at], group[at + 1]]).to_f32()
                    };
                    let (at, high) = code_place(layout, column, i);
                    let byte = group[at];
                    let code = match (layout.bits, high) {
                        (4, true) => byte >> 4,
                        (4, false) => byte & 15,
                        _ => byte,
                    };
                    let scale = number(if layout.halves { i / 16 } else { 0 });
                    *out = match layout.zero {
                        Some(zero) => scale * (f32::from(code) - f32::from(zero)),
                        None => scale * f32::from(code) + number(1),
                    };
                }
            }
        }
    }
}

/// One product of a layer, divided among tasks by panels.
struct Work<'a> {
    layer: &'a Linear,
    machine: &'a Machine,
    x: &'a [f32],
    prepared: &'a Activations,
    out: *mut f32,
    accumulate: bool,
}

// SAFETY: tasks write disjoint columns of an exclusively borrowed slice.
unsafe impl Sync for Work<'_> {}

impl Work<'_> {
    /// One panel times some rows.
    ///
    /// # Safety
    /// No other task writes the panel's columns of the output.
    unsafe fn panel(&self, part: &Part, index: usize, rows: Range<usize>, product: &mut [f32; LARGEST_TILE]) {
        let (kernels, inputs) = (self.machine.kernels, self.layer.inputs);
        let width = part.form.width(kernels);
        let bytes = part.form.panel_bytes(kernels, inputs);
        let panel = part.panel(index, bytes).as_ptr();
        let start = part.columns.start + index * width;
        let columns = start..part.columns.end.min(start + width);
        let tallest = match part.form {
            Form::Plain(_) => kernels.rows,
            Form::Coded(_) => LARGEST_TILE / PANEL,
        };
        for first in rows.clone().step_by(tallest) {
            let count = tallest.min(rows.end - first);
            match part.form {
                Form::Plain(dtype) => {
                    let (a, a_stride) = match dtype {
                        DType::F32 => (self.x[first * inputs..].as_ptr().cast(), inputs * 4),
                        DType::Bf16 => {
                            let stride = inputs.next_multiple_of(2);
                            (self.prepared.narrow[first * stride..].as_ptr().cast(), stride * 2)
                        }
                    };
                    let (panel, k) = (panel.cast(), units(dtype, inputs));
                    let c = product.as_mut_ptr();
                    let tile =
                        Tile { a, a_stride, panel, k, c, c_stride: width, rows: count, accumulate: false };
                    // SAFETY: `count` rows of activations exist, the panel was bounds-checked and is whole.
                    unsafe { kernels.tile(dtype, &tile) };
                }
                Form::Coded(layout) => {
                    let groups = inputs.div_ceil(GROUP);
                    let terms = Product {
                        panel,
                        groups,
                        x: self.prepared.codes[first * groups * GROUP..].as_ptr(),
                        x_scales: self.prepared.scales[first * groups..].as_ptr(),
                        x_sums: self.prepared.sums[first * groups * 2..].as_ptr(),
                        x_totals: self.prepared.totals[first * groups..].as_ptr(),
                        rows: count,
                        out: product.as_mut_ptr(),
                    };
                    // SAFETY: as above, with a scale and sums for each group of each row.
                    unsafe { self.machine.dot.run(&terms, layout) };
                }
            }
            for (row, values) in product.chunks_exact(width).take(count).enumerate() {
                // SAFETY: rows and columns lie inside the output (`apply` checked), and are this task's.
                let out = unsafe {
                    let start = self.out.add((first + row) * self.layer.outputs + columns.start);
                    std::slice::from_raw_parts_mut(start, columns.len())
                };
                self.layer.finish(values, columns.start, self.accumulate, out);
            }
        }
    }
}

fn pack(kernels: &Kernels, form: Form, hold: Hold, matrices: &[&Matrix], inputs: usize) -> Result<Buffer> {
    let rows: Vec<(&Matrix, usize)> =
        matrices.iter().flat_map(|matrix| (0..matrix.rows()).map(move |row| (*matrix, row))).collect();
    let width = form.width(kernels);
    let bytes = form.panel_bytes(kernels, inputs);
    let mut panels = Buffer::zeroed(rows.len().div_ceil(width) * bytes)?;
    let tasks: Vec<_> = panels.as_mut_slice::<u32>().chunks_mut(bytes / 4).map(Mutex::new).collect();
    Threads::global().run(tasks.len(), &|panel| {
        let rows = &rows[panel * width..rows.len().min((panel + 1) * width)];
        let mut panel = tasks[panel].lock();
        match form {
            Form::Plain(dtype) => pack_plain(kernels, dtype, rows, inputs, &mut panel),
            Form::Coded(layout) => pack_codes(layout, hold, rows, inputs, &mut panel),
        }
    })?;
    drop(tasks);
    Ok(panels)
}

fn pack_plain(kernels: &Kernels, dtype: DType, rows: &[(&Matrix, usize)], inputs: usize, panel: &mut [u32]) {
    let mut values = vec![0.0f32; rows.len() * inputs];
    for ((matrix, row), out) in rows.iter().zip(values.chunks_mut(inputs)) {
        if let Matrix::Plain(weight) = matrix {
            weight.row_f32(*row, out);
        }
    }
    let (from, stride, _narrow);
    match dtype {
        DType::F32 => (from, stride) = (values.as_ptr().cast::<u8>(), inputs * 4),
        DType::Bf16 => {
            let mut narrow: Vec<u16> = values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
            narrow.push(0);
            (from, stride) = (narrow.as_ptr().cast(), inputs * 2);
            _narrow = narrow;
        }
    }
    // SAFETY: the rows lie one after another; those of bf16 have one element more for an odd number of inputs.
    unsafe { kernels.pack_columns(dtype, from, stride, rows.len(), inputs, panel) };
}

fn pack_codes(layout: Layout, hold: Hold, rows: &[(&Matrix, usize)], inputs: usize, panel: &mut [u32]) {
    let bytes = group_bytes(layout);
    let panel = as_bytes(panel);
    let mut values = vec![0.0f32; inputs.next_multiple_of(GROUP)];
    for (column, (matrix, row)) in rows.iter().enumerate() {
        if let Matrix::Plain(weight) = matrix {
            weight.row_f32(*row, &mut values[..inputs]);
        }
        for index in 0..inputs.div_ceil(GROUP) {
            let group = match matrix {
                Matrix::Blocks(blocks) => blocks.format().group(blocks.row(*row), index),
                Matrix::Plain(_) => {
                    let values = &values.as_chunks::<GROUP>().0[index];
                    if hold == Hold::Int4 { Group::four_bits(values) } else { Group::eight_bits(values) }
                }
            };
            let to = &mut panel[index * bytes..][..bytes];
            let mut number = |which: usize, value: f32| {
                let at = (which * PANEL + column) * 2;
                to[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
            };
            number(0, group.scales[0]);
            if layout.halves {
                number(1, group.scales[1]);
            } else if layout.zero.is_none() {
                number(1, group.minimum);
            }
            for (i, code) in group.codes.into_iter().enumerate() {
                let (at, high) = code_place(layout, column, i);
                to[at] |= if high { code << 4 } else { code };
            }
        }
    }
}

fn as_bytes(units: &mut [u32]) -> &mut [u8] {
    // SAFETY: any four bytes are a u32, bytes need no alignment, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast(), size_of_val(units)) }
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
