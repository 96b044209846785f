//! The backend: makes weights, and runs passes over parts of batches.

use std::sync::atomic::Ordering;

use super::device::{Cpu, Norm, Table};
use super::pass::CpuPass;
use super::plan::Plan;
use crate::compute::attention::heads::Heads;
use crate::compute::attention::kv_cache::{CacheShape, PagedKvCache};
use crate::compute::attention::relative::{RelativeLayers, RelativePanels, RelativeTable};
use crate::compute::backend::traits::{Backend, CachedSequence, ForwardFn, KvCache, Step, check_logits};
use crate::compute::batch::PackedBatch;
use crate::compute::delta_rule::{DeltaRule, DeltaRuleFactors};
use crate::compute::linear::layer::{Biased, Linear, Matrix};
use crate::compute::parallel::{Parallelism, Target};
use crate::compute::short_convolution::{ShortConvolution, ShortConvolutionFactors};
use crate::compute::threads::Threads;
use crate::compute::weight::Weight;
use crate::sync::Mutex;
use crate::{Error, Result};

impl Cpu {
    /// Runs `forward` on some sequences of `batch`. No other task accesses their rows of `out`.
    fn part(
        &self,
        batch: &PackedBatch<'_>,
        sequences: &[usize],
        parallelism: Parallelism<'_>,
        out: &Target<'_>,
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        let mut workspace = self.take_workspace();
        let mut ids = std::mem::take(&mut workspace.ids);
        let mut offsets = std::mem::take(&mut workspace.offsets);
        let mut second_starts = std::mem::take(&mut workspace.second_starts);
        let mut hidden = std::mem::take(&mut workspace.hidden);
        let mut rows = std::mem::take(&mut workspace.out);
        ids.clear();
        second_starts.clear();
        hidden.clear();
        offsets.clear();
        offsets.push(0);
        for &sequence in sequences {
            ids.extend_from_slice(&batch.ids[batch.range(sequence)]);
            offsets.push(ids.len() as u32);
            second_starts.extend(batch.second_starts.get(sequence));
            hidden.extend(batch.hidden.get(sequence));
        }
        rows.clear();
        rows.resize(sequences.len() * out.columns(), 0.0);
        let part =
            PackedBatch { ids: &ids, offsets: &offsets, second_starts: &second_starts, hidden: &hidden };
        let mut pass = CpuPass::new(self, part, &mut workspace, parallelism, Vec::new());
        pass.sequences = sequences;
        let result = forward(&mut pass, &mut rows);
        drop(pass);
        for (&sequence, row) in sequences.iter().zip(rows.chunks_exact(out.columns().max(1))) {
            // SAFETY: a plan puts each sequence into one part, and each part runs once, so no other task accesses this row.
            unsafe { out.row_f32(sequence) }.copy_from_slice(row);
        }
        (workspace.ids, workspace.offsets, workspace.out) = (ids, offsets, rows);
        (workspace.second_starts, workspace.hidden) = (second_starts, hidden);
        self.give_workspace(workspace);
        result
    }
}

impl KvCache for PagedKvCache {
    fn len(&self) -> usize {
        Self::len(self)
    }
    fn most_drafted(&self) -> usize {
        Self::most_drafted(self)
    }
    fn truncate(&mut self, len: usize) {
        Self::truncate(self, len);
    }
    fn cut(&self, len: usize) -> usize {
        Self::cut(self, len)
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
    type Relative = RelativePanels;
    type ShortConvolution = ShortConvolution;
    type DeltaRule = DeltaRule;
    type Cache = PagedKvCache;
    type Pass<'a> = CpuPass<'a>;

    fn table(&self, matrix: Matrix) -> Result<Table> {
        matrix.table(&self.bytes)
    }

    fn linear(&self, parts: &[Biased]) -> Result<Linear> {
        self.counted(self.packer.linear(parts)?)
    }

    fn gated(&self, gate: Biased, up: Biased) -> Result<Linear> {
        self.counted(self.packer.gated(gate, up)?)
    }

    fn exact_linear(&self, part: &Biased) -> Result<Linear> {
        self.counted(self.packer.exact(part)?)
    }

    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<Norm> {
        let numbers = scale.rows() * if shift.is_some() { 2 } else { 1 };
        self.bytes.fetch_add(4 * numbers as u64, Ordering::Relaxed);
        Ok(Norm { scale: scale.to_f32()?, shift: shift.map(Weight::to_f32).transpose()?, epsilon })
    }

    fn relative(
        &self,
        table: &RelativeTable,
        layers: &RelativeLayers,
        heads: Heads,
    ) -> Result<RelativePanels> {
        let panels = RelativePanels::new(self.kernel_set().kernels, self.dtype, heads, table, layers)?;
        self.bytes.fetch_add(panels.bytes(), Ordering::Relaxed);
        Ok(panels)
    }

    fn short_convolution(&self, factors: &ShortConvolutionFactors) -> Result<ShortConvolution> {
        let convolution = ShortConvolution::new(factors)?;
        self.bytes.fetch_add(convolution.bytes(), Ordering::Relaxed);
        Ok(convolution)
    }

    fn delta_rule(&self, factors: &DeltaRuleFactors) -> Result<DeltaRule> {
        let rule = DeltaRule::new(factors)?;
        self.bytes.fetch_add(rule.bytes(), Ordering::Relaxed);
        Ok(rule)
    }

    fn cache(&self, shape: CacheShape) -> PagedKvCache {
        PagedKvCache::new(self.kernel_set().kernels, shape, self.dtype)
    }

    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64 {
        PagedKvCache::bytes_for(self.kernel_set().kernels, shape, self.dtype, tokens)
    }

    fn run(
        &self,
        batch: &PackedBatch<'_>,
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        assert_eq!(out.len(), batch.sequences() * width, "one row of output for each sequence");
        let threads = Threads::global();
        let plan = Plan::new(batch, threads.count(), self.memory_bytes());
        let out = Target::over(out, width);
        let fault = Mutex::new(None::<Error>);
        let run = |part: &[usize], parallelism: Parallelism<'_>| {
            if let Err(error) = self.part(batch, part, parallelism, &out, forward) {
                fault.lock().get_or_insert(error);
            }
        };
        threads.run(plan.single.len(), &|index| run(&plan.single[index], Parallelism::One))?;
        // The part runs as a task of its own, and its parallel operations are nested tasks, so any panic is caught.
        for part in &plan.parallel {
            threads.run(1, &|_| run(part, Parallelism::All(&threads)))?;
        }
        fault.into_inner().map_or(Ok(()), Err)
    }

    fn run_cached(
        &self,
        steps: &mut [Step<'_, PagedKvCache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        check_logits(steps, width, out);
        let mut workspace = self.take_workspace();
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
        let part = PackedBatch { ids: &ids, offsets: &offsets, second_starts: &[], hidden: &[] };
        let sequences = steps.iter_mut().map(|step| CachedSequence {
            cached: step.cache.len(),
            prompt: step.prompt,
            length: step.length,
            logits: step.logits,
            cache: &mut *step.cache,
        });
        let mut pass =
            CpuPass::new(self, part, &mut workspace, Parallelism::All(&threads), sequences.collect());
        let result = forward(&mut pass, out);
        drop(pass);
        (workspace.ids, workspace.offsets) = (ids, offsets);
        self.give_workspace(workspace);
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
        self.packer.format.name()
    }

    fn phases_differ(&self) -> bool {
        self.unpacks()
    }
}
