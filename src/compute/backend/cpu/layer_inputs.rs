//! What layers make of the embeddings, and the norms and factors that go with it.

use half::bf16;

use super::device::{Norm, Table};
use super::pass::CpuPass;
use super::states::{States, misuse};
use crate::Result;
use crate::compute::attention::heads::Heads;
use crate::compute::attention::tiles::Attention;
use crate::compute::backend::rows::TableOf;
use crate::compute::backend::traits::TokenRows;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::kernels::rowwise::RopeRow;
use crate::compute::linear::gemm::Epilogue;
use crate::compute::linear::layer::Linear;
use crate::compute::narrow::to_bf16;
use crate::sync::Mutex;

/// Adds the row of token `id` to `out`.
fn add_row(tokens: TokenRows<'_, Table>, id: u32, out: &mut [f32], scratch: &mut [f32]) -> Result<()> {
    let TokenRows { table, each, at, factor } = tokens;
    let (id, known) = (id as usize, table.rows() / each);
    if id >= known {
        return Err(TableOf::Tokens.outside(id, known));
    }
    table.row_f32(id * each + at, scratch)?;
    out.iter_mut().zip(scratch).for_each(|(out, x)| *out += factor * *x);
    Ok(())
}

impl CpuPass<'_> {
    /// A copy of the states as the operand of products.
    pub(super) fn copied_states(&mut self, x: &States) -> Result<States> {
        let wide = x.operand(DType::F32)?;
        let copy = self.copied(wide, 0..wide.rows())?;
        Ok(States { gathered: x.gathered, ..self.operand(copy) })
    }

    /// The states, of which the rows that a layer works on are multiplied by `factor`.
    pub(super) fn scaled(&mut self, mut x: States, factor: f32) -> Result<States> {
        let gathered = x.gathered;
        let wide = x.residual()?;
        let rows = if gathered { 0..wide.rows() } else { self.window.clone() };
        let (first, values) = (rows.start, rows.len() * wide.columns());
        let target = wide.target();
        self.parallelism.worth(values).split_rows(rows.len(), |task| {
            for row in task {
                // SAFETY: `target` is the only borrow of the matrix, and each row belongs to one task.
                unsafe { target.row_f32(first + row) }.iter_mut().for_each(|x| *x *= factor);
            }
        })?;
        Ok(x)
    }

    /// Each row of `x` times what `linear` and `norm` make of its row of `embeddings`.
    pub(super) fn multiply_inputs(
        &mut self,
        mut x: States,
        embeddings: &States,
        (linear, norm): (&Linear, &Norm),
        tokens: Option<TokenRows<'_, Table>>,
    ) -> Result<States> {
        let from = embeddings.operand(self.cpu.dtype)?;
        let rows = if embeddings.gathered { 0..from.rows() } else { self.window.clone() };
        let (count, columns) = (rows.len(), linear.outputs());
        let products = x.operand_mut(self.cpu.dtype)?;
        let fits = tokens.is_none_or(|tokens| tokens.table.columns() == columns && tokens.at < tokens.each);
        if !fits || norm.scale.len() != columns || products.rows() != count || products.columns() != columns {
            return Err(misuse("inputs of all rows, as long as what they multiply"));
        }
        let mut inputs = self.workspace.matrix(count, columns, DType::F32)?;
        let own = inputs.target();
        let store = Epilogue::Store(Activation::Identity);
        self.multiply_part((from, rows), linear, store, &own, 0)?;
        let (kernels, target) = (self.cpu.kernel_set().kernels, products.target());
        let fault = Mutex::new(None);
        self.parallelism.worth(count * columns).split_rows(count, |rows| {
            let mut scratch = vec![0.0; if tokens.is_some() { columns } else { 0 }];
            for row in rows {
                // SAFETY: `own` and `target` are the only borrows of two matrices, and each row belongs to one task.
                let input = unsafe { own.row_f32(row) };
                norm.apply(kernels, input, None);
                let place = self.place_of(row, embeddings.gathered);
                if let Some((tokens, place)) = tokens.zip(place)
                    && let Err(error) = add_row(tokens, self.batch.ids[place], input, &mut scratch)
                {
                    *fault.lock() = Some(error);
                    return;
                }
                match target.format() {
                    DType::F32 => {
                        // SAFETY: `target` is the only borrow of its matrix, which is in f32, and each row belongs to one task.
                        let wide = unsafe { target.row_f32(row) };
                        wide.iter_mut().zip(input).for_each(|(x, input)| *x *= *input);
                    }
                    DType::Bf16 => {
                        // SAFETY: `target` is the only borrow of its matrix, which is in bf16, and each row belongs to one task.
                        let narrow = unsafe { target.row_bf16(row) };
                        let factors = narrow.iter().map(|&x| bf16::from_bits(x).to_f32());
                        input.iter_mut().zip(factors).for_each(|(input, x)| *input *= x);
                        to_bf16(input, narrow);
                    }
                }
            }
        })?;
        self.workspace.give(inputs);
        fault.into_inner().map_or(Ok(x), Err)
    }

    /// `qkv` with each head of its values normalized.
    pub(super) fn normed_values(&mut self, mut qkv: States, heads: Heads, norm: &Norm) -> Result<States> {
        let Heads { heads, kv_heads, width } = heads;
        Attention::check(qkv.operand(self.cpu.dtype)?, Heads { heads, kv_heads, width });
        if norm.shift.is_some() || norm.scale.len() != width {
            return Err(misuse("values are normalized by their root mean square, each head alone"));
        }
        let matrix = qkv.operand_mut(self.cpu.dtype)?;
        let (format, rows, first) = (matrix.format(), matrix.rows(), (heads + kv_heads) * width);
        let (kernels, values) = (self.cpu.kernel_set().kernels, rows * kv_heads * width);
        let target = matrix.target();
        self.parallelism.worth(values).split_rows(rows, |rows| {
            for row in rows {
                // Heads that are not rotated.
                let values = RopeRow {
                    row: target.part(row..row + 1, first..first + kv_heads * width),
                    format,
                    heads: kv_heads,
                    queries: 0,
                    width,
                    norms: Some((&norm.scale, &norm.scale, norm.epsilon)),
                    shifts: None,
                    angles: &[],
                    query_factor: 1.0,
                    interleaved: false,
                };
                // SAFETY: `part` returns the place of the values of `kv_heads` heads in `format`, which is aligned, and each row
                // belongs to one task.
                unsafe { kernels.apply_rope(&values) };
            }
        })?;
        Ok(qkv)
    }
}
