//! The CPU backend: packed weights and fused kernels, on packed batches without padding.
//!
//! A batch is cut into parts of whole sequences. Each thread takes a part through all layers in a workspace of its
//! own, so threads meet only at the end. When there are too few sequences for that, all threads divide each
//! operation instead ([`Parallelism`]).

mod attend;
mod pass;
mod plan;
#[cfg(test)]
mod tests;
mod workspace;

use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;

use self::pass::Sequence;
pub use self::pass::{CpuPass, States};
use self::plan::Plan;
use self::workspace::Workspace;
use super::{Backend, Forward, KvCache, Step};
use crate::compute::attention::{CacheShape, PagedKvCache};
use crate::compute::kernels::Kernels;
use crate::compute::linear::{KernelSet, Linear, Matrix, Packer, WeightFormat};
use crate::compute::parallel::{Parallelism, Target};
use crate::compute::{DType, Isa, Packed, Threads, Weight};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Workspaces larger than this are not kept: a single very long text would hold them for ever.
const LARGEST_WORKSPACE: usize = 64 << 20;

/// The CPU, with one instruction set and one form of weights.
#[derive(Debug)]
pub struct Cpu {
    packer: Packer,
    /// Of activations.
    dtype: DType,
    workspaces: Mutex<Vec<Workspace>>,
    bytes: AtomicU64,
}

/// An embedding table, left in its file and in its file's number format: only rows in use are ever touched.
pub type Table = Matrix;

/// A normalisation of rows.
#[derive(Debug)]
pub struct Norm {
    scale: Vec<f32>,
    /// Without it, an RMS normalisation; with it, a layer normalisation.
    shift: Option<Vec<f32>>,
    epsilon: f32,
}

impl Norm {
    /// Normalises `row` in place; `narrow` becomes the same in bf16.
    fn apply(&self, kernels: &Kernels, row: &mut [f32], narrow: Option<&mut [u16]>) {
        if let Some(shift) = &self.shift {
            return kernels.norm(row, &self.scale, shift, self.epsilon, narrow);
        }
        kernels.rms_in_place(row, &self.scale, self.epsilon);
        if let Some(narrow) = narrow {
            narrow.iter_mut().zip(row).for_each(|(narrow, x)| *narrow = bf16::from_f32(*x).to_bits());
        }
    }
}

impl Cpu {
    /// The kernels of `isa` for weights that are held as `hold` says, or in a [`DType`]. An instruction set that this
    /// CPU lacks becomes [`Isa::Portable`].
    pub fn new(isa: Isa, hold: impl Into<WeightFormat>) -> Self {
        let hold = hold.into();
        Self {
            packer: Packer::new(isa, hold),
            dtype: hold.activations(isa),
            workspaces: Mutex::new(Vec::new()),
            bytes: AtomicU64::new(0),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.machine().kernels.isa()
    }

    fn machine(&self) -> &KernelSet {
        &self.packer.machine
    }

    fn counted(&self, linear: Linear) -> Result<Linear> {
        self.bytes.fetch_add(linear.bytes(), Ordering::Relaxed);
        Ok(linear)
    }

    /// Runs `forward` on some sequences of `batch`, whose rows of `out` are this task's own.
    fn part(
        &self,
        batch: &Packed<'_>,
        sequences: &[usize],
        team: Parallelism<'_>,
        out: &Target<'_>,
        forward: &Forward<'_, Self>,
    ) -> Result<()> {
        let taken = self.workspaces.lock().pop();
        let mut workspace = taken.unwrap_or_default();
        let mut ids = std::mem::take(&mut workspace.ids);
        let mut offsets = std::mem::take(&mut workspace.offsets);
        let mut rows = std::mem::take(&mut workspace.out);
        ids.clear();
        offsets.clear();
        offsets.push(0);
        for &sequence in sequences {
            ids.extend_from_slice(&batch.ids[batch.range(sequence)]);
            offsets.push(ids.len() as u32);
        }
        rows.clear();
        rows.resize(sequences.len() * out.columns(), 0.0);
        let part = Packed { ids: &ids, offsets: &offsets };
        let mut pass = CpuPass::new(self, part, &mut workspace, team, Vec::new());
        let result = forward(&mut pass, &mut rows);
        drop(pass);
        for (&sequence, row) in sequences.iter().zip(rows.chunks_exact(out.columns().max(1))) {
            // SAFETY: each sequence is in one part.
            unsafe { out.row_f32(sequence) }.copy_from_slice(row);
        }
        (workspace.ids, workspace.offsets, workspace.out) = (ids, offsets, rows);
        if workspace.bytes() <= LARGEST_WORKSPACE {
            self.workspaces.lock().push(workspace);
        }
        result
    }
}

impl KvCache for PagedKvCache {
    fn len(&self) -> usize {
        Self::len(self)
    }
    fn truncate(&mut self, len: usize) {
        Self::truncate(self, len);
    }
    fn reserve(&mut self, capacity: usize) -> Result<()> {
        Self::reserve(self, capacity)
    }
    fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
        Self::fork(self, len, capacity)
    }
    fn shrink(&mut self) -> Result<()> {
        Self::shrink(self)
    }
    fn bytes(&self) -> u64 {
        Self::bytes(self)
    }
}

impl Backend for Cpu {
    type Table = Table;
    type Linear = Linear;
    type Norm = Norm;
    type Cache = PagedKvCache;
    type Pass<'a> = CpuPass<'a>;

    fn table(&self, matrix: Matrix) -> Result<Table> {
        let table = matrix.table()?;
        self.bytes.fetch_add(table.owned_bytes() as u64, Ordering::Relaxed);
        Ok(table)
    }

    fn linear(&self, parts: &[(Matrix, Option<Weight>)]) -> Result<Linear> {
        self.counted(self.packer.linear(parts)?)
    }

    fn gated(&self, gate: (Matrix, Option<Weight>), up: (Matrix, Option<Weight>)) -> Result<Linear> {
        self.counted(self.packer.gated(gate, up)?)
    }

    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<Norm> {
        let numbers = scale.rows() * if shift.is_some() { 2 } else { 1 };
        self.bytes.fetch_add(4 * numbers as u64, Ordering::Relaxed);
        Ok(Norm { scale: scale.to_f32()?, shift: shift.map(Weight::to_f32).transpose()?, epsilon })
    }

    fn cache(&self, shape: CacheShape) -> PagedKvCache {
        PagedKvCache::new(self.machine().kernels, shape, self.dtype)
    }

    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64 {
        PagedKvCache::bytes_for(self.machine().kernels, shape, self.dtype, tokens)
    }

    fn run(
        &self,
        batch: &Packed<'_>,
        width: usize,
        out: &mut [f32],
        forward: &Forward<'_, Self>,
    ) -> Result<()> {
        assert_eq!(out.len(), batch.sequences() * width, "one row of output for each sequence");
        let threads = Threads::global();
        let plan = Plan::new(batch, threads.count(), self.memory_bytes());
        let out = Target::over(out, width);
        let fault = Mutex::new(None::<Error>);
        let run = |part: &[usize], team: Parallelism<'_>| {
            if let Err(error) = self.part(batch, part, team, &out, forward) {
                fault.lock().get_or_insert(error);
            }
        };
        threads.run(plan.apart.len(), &|index| run(&plan.apart[index], Parallelism::One))?;
        // One task is this thread's own, and what it shares out are tasks within it: a panic anywhere is caught.
        for part in &plan.together {
            threads.run(1, &|_| run(part, Parallelism::All(&threads)))?;
        }
        fault.into_inner().map_or(Ok(()), Err)
    }

    fn run_cached(
        &self,
        steps: &mut [Step<'_, PagedKvCache>],
        width: usize,
        out: &mut [f32],
        forward: &Forward<'_, Self>,
    ) -> Result<()> {
        let wanted = steps.iter().filter(|step| step.needs_logits).count();
        assert_eq!(out.len(), wanted * width, "one row of output for each step that needs logits");
        let taken = self.workspaces.lock().pop();
        let mut workspace = taken.unwrap_or_default();
        let mut ids = std::mem::take(&mut workspace.ids);
        let mut offsets = std::mem::take(&mut workspace.offsets);
        ids.clear();
        offsets.clear();
        offsets.push(0);
        for step in &mut *steps {
            step.cache.reserve(step.cache.len() + step.tokens.len())?;
            ids.extend_from_slice(step.tokens);
            offsets.push(ids.len() as u32);
        }
        let threads = Threads::global();
        let part = Packed { ids: &ids, offsets: &offsets };
        let sequences = steps.iter_mut().map(|step| Sequence {
            held: step.cache.len(),
            needs_logits: step.needs_logits,
            cache: &mut *step.cache,
        });
        let mut pass =
            CpuPass::new(self, part, &mut workspace, Parallelism::All(&threads), sequences.collect());
        let result = forward(&mut pass, out);
        drop(pass);
        (workspace.ids, workspace.offsets) = (ids, offsets);
        if workspace.bytes() <= LARGEST_WORKSPACE {
            self.workspaces.lock().push(workspace);
        }
        result?;
        for step in steps {
            step.cache.extend_to(step.cache.len() + step.tokens.len());
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn dtype(&self) -> &'static str {
        self.packer.hold.name()
    }
}
