//! From stored matrices to panels: see [`super::linear`] and [`super::dot`] for what lies where.

use half::{bf16, f16};

use super::blocks::{GROUP, Group, Layout};
use super::dot::{PANEL, code_place, group_bytes};
use super::linear::{Form, Hold, Matrix};
use crate::Result;
use crate::compute::kernels::Kernels;
use crate::compute::memory::Buffer;
use crate::compute::{DType, Threads};
use crate::sync::Mutex;

/// The panels of `matrices` side by side.
pub(super) fn pack(
    kernels: &Kernels,
    form: Form,
    hold: Hold,
    matrices: &[&Matrix],
    inputs: usize,
) -> Result<Buffer> {
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
            } else if layout.minimum {
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
