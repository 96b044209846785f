//! Products of some rows each with layers of their own, as one division of work: the experts of a mixture.
//!
//! A product alone would have few panels for many threads, and each would end with a join.

use std::ops::Range;

use super::{Epilogue, Gemm, GemmScratch, Operand};
use crate::Result;
use crate::compute::kernels::activation::Activation;
use crate::compute::linear::activations::{Forms, PlainRows};
use crate::compute::linear::layer::{KernelSet, Linear};
use crate::compute::linear::phases::RowPhases;
use crate::compute::parallel::{Parallelism, Target};
use crate::sync::Mutex;

/// A layer, and the rows that it multiplies.
#[derive(Debug)]
pub(crate) struct LayerRows<'a> {
    pub layer: &'a Linear,
    /// Of the operand and of the output.
    pub rows: Range<usize>,
}

/// Multiplies rows of `x` by the layers that have them, and stores the results in the same rows of `out`.
#[expect(clippy::too_many_arguments, reason = "two matrices, and how they are multiplied")]
pub(crate) fn multiply_grouped(
    layers: &[LayerRows<'_>],
    kernel_set: &KernelSet,
    parallelism: Parallelism<'_>,
    scratch: &mut GemmScratch,
    x: PlainRows<'_>,
    phases: &RowPhases,
    activation: Activation,
    out: &Target<'_>,
) -> Result<()> {
    assert!(phases.rows() >= x.rows, "phases of {} of {} rows", phases.rows(), x.rows);
    let mut forms = Forms::default();
    for LayerRows { layer, rows } in layers {
        assert!(x.columns == layer.inputs && rows.end <= x.rows, "operand of a linear layer");
        forms.scaled |= layer.forms.scaled;
        forms.quantized |= layer.forms.quantized;
        forms.halves |= layer.forms.halves;
        forms.eight_bits |= layer.forms.eight_bits;
    }
    let unpack = scratch.prepare(kernel_set, parallelism, x, phases, forms)?;
    let mut end = 0;
    let products: Vec<_> = layers
        .iter()
        .map(|LayerRows { layer, rows }| {
            let gemm = Gemm {
                layer,
                kernel_set,
                x: Operand { plain: x, other: &scratch.activations },
                phases,
                unpack,
                unpacked: &scratch.unpacked,
                epilogue: Epilogue::Store(activation),
                out,
                first: 0,
                fault: Mutex::new(None),
            };
            let (groups, panels) = layer.groups(kernel_set.kernels);
            let start = end;
            end += groups;
            (start..end, gemm, panels, rows.clone())
        })
        .collect();
    parallelism.split_rows(end, |groups| {
        let from = products.partition_point(|(own, ..)| own.end <= groups.start);
        for (own, gemm, panels, rows) in &products[from..] {
            let (first, last) = (groups.start.max(own.start), groups.end.min(own.end));
            if first >= last {
                break;
            }
            gemm.block(rows.clone(), panels(first - own.start..last - own.start));
        }
    })?;
    products.into_iter().find_map(|(_, gemm, ..)| gemm.fault.into_inner()).map_or(Ok(()), Err)
}
