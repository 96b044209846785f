//! Products with quantized weights that are unpacked into bf16, a block of panels at a time.

use std::ops::Range;

use super::{AMX_BLOCK_BYTES, Block, Gemm, PanelBlock, Prefetch};
use crate::Result;
use crate::compute::isa::DType;
use crate::compute::kernels::units;
use crate::compute::linear::blocks::GROUP;
use crate::compute::linear::layer::{LinearPart, PartFormat};
use crate::compute::linear::phases::TokenPhase;
use crate::compute::linear::quant_gemm::PANEL;
use crate::compute::linear::quant_unpack::{PackedPanel, Unpack};
use crate::compute::memory::Buffer;

impl Gemm<'_> {
    /// Memory for a block of unpacked panels, if some of the rows need it.
    pub(super) fn take_unpacked(&self, rows: &Range<usize>) -> Result<Option<Buffer>> {
        let is_read = self.phases.any(rows.clone(), TokenPhase::Prefill);
        if self.unpack.is_none() || !self.layer.forms.quantized || !is_read {
            return Ok(None);
        }
        let parts = if self.layer.gated { 2 } else { 1 };
        let bytes = parts * self.unpacked_panels() * self.unpacked_bytes();
        let spare = self.unpacked.lock().pop().filter(|memory| memory.len() >= bytes);
        // Layers differ little in it.
        spare.map_or_else(|| Buffer::zeroed(bytes.max(2 * AMX_BLOCK_BYTES)), Ok).map(Some)
    }

    /// Bytes of an unpacked panel.
    fn unpacked_bytes(&self) -> usize {
        let inputs = self.layer.inputs.next_multiple_of(GROUP);
        units(DType::Bf16, inputs) * self.kernel_set.kernels.width * 4
    }

    /// Unpacked panels of a block.
    fn unpacked_panels(&self) -> usize {
        (AMX_BLOCK_BYTES / self.unpacked_bytes()).max(1)
    }

    /// Multiplies rows by some panels of a quantized part: those that are read by panels unpacked into `memory`, the others as
    /// integers.
    pub(super) fn unpacked_part(
        &self,
        unpack: Unpack,
        part: &LinearPart,
        rows: Range<usize>,
        panels: Range<usize>,
        memory: &mut Buffer,
    ) {
        // PackedBatch panels that one unpacked panel holds.
        let together = self.kernel_set.kernels.width / PANEL;
        let (most, bytes) = (self.unpacked_panels(), self.unpacked_bytes());
        // In a gated layer, the panels of the second part follow those of the first one.
        let (pair, places) = (self.pair(part), [0, if self.layer.gated { most * bytes } else { 0 }]);
        for first in panels.clone().step_by(most * together) {
            let packed = first..panels.end.min(first + most * together);
            let mut is_unpacked = false;
            for (rows, phase) in self.phases.runs(rows.clone()) {
                if phase == TokenPhase::Decode {
                    self.packed_part(part, rows, packed.clone());
                    continue;
                }
                if !is_unpacked {
                    let parts = if self.layer.gated { 2 } else { 1 };
                    for (part, place) in pair.into_iter().zip(places).take(parts) {
                        self.unpack(unpack, part, packed.clone(), &mut memory.as_mut_slice()[place / 4..]);
                    }
                    is_unpacked = true;
                }
                let block = Block {
                    panels: [0, 1].map(|index| PanelBlock {
                        form: PartFormat::Plain(DType::Bf16),
                        memory: &memory.as_slice()[places[index]..],
                        bytes,
                        ahead: Some(self.packed_ahead(pair[index], packed.end, together)),
                    }),
                    count: packed.len().div_ceil(together),
                    columns: part.outputs(packed.clone(), PANEL),
                };
                self.row_tiles(&block, rows);
            }
        }
    }

    /// The packed panels from `panel` on, `together` for each unpacked one: those of the next block.
    fn packed_ahead(&self, part: &LinearPart, panel: usize, together: usize) -> Prefetch {
        let bytes = part.form.panel_bytes(self.kernel_set.kernels, self.layer.inputs);
        let start = part.memory.as_slice::<u8>().as_ptr();
        Prefetch { from: start.wrapping_add(panel * bytes), bytes: together * bytes }
    }

    /// Unpacks panels of a quantized part into `memory`, as many side by side as an unpacked panel holds.
    fn unpack(&self, unpack: Unpack, part: &LinearPart, panels: Range<usize>, memory: &mut [u32]) {
        let PartFormat::Quantized(layout) = part.form else { return };
        let (kernels, groups) = (self.kernel_set.kernels, self.layer.inputs.div_ceil(GROUP));
        let (packed, unpacked) =
            (part.form.panel_bytes(kernels, self.layer.inputs), self.unpacked_bytes() / 4);
        let together = kernels.width / PANEL;
        for (index, panel) in panels.enumerate() {
            let from = part.panels_from(panel, 1, packed);
            let to = &mut memory[index / together * unpacked..][..unpacked];
            let panel = PackedPanel {
                panel: from.as_ptr(),
                groups,
                out: to[index % together * PANEL..].as_mut_ptr(),
                out_stride: kernels.width,
            };
            // SAFETY: `panels_from` returned the bytes of a panel of `groups` groups. `to` has `groups * GROUP / 2` rows of
            // `kernels.width` values, of which `PANEL` from `index % together * PANEL` on are in each: `together` times
            // `PANEL` is at most `kernels.width`.
            unsafe { unpack.run(&panel, layout) };
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
#[path = "gemm_unpacked_tests.rs"]
mod tests;
