//! Mixtures of experts: rows are sorted by their experts, and each expert multiplies its rows at once.

use std::ops::Range;

use super::device::Norm;
use super::pass::CpuPass;
use super::states::{States, misuse};
use crate::Result;
use crate::compute::experts::{ChosenExpert, ExpertLayers, Experts, SharedExpert, sigmoid};
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::linear::gemm::{Epilogue, LayerRows, multiply_grouped};
use crate::compute::linear::layer::Linear;
use crate::compute::linear::phases::RowPhases;
use crate::compute::matrix::StateMatrix;
use crate::sync::Mutex;

/// Rows of experts that are multiplied at once, if no expert has more: so many keep all threads at work, and the memory of
/// their products small.
const MOST_ROWS: usize = 2048;

/// Rows sorted by the experts that they use.
struct SortedRows {
    /// Experts of each row.
    used: usize,
    /// Of each row, its experts in their order.
    chosen: Vec<ChosenExpert>,
    /// The place of each of `chosen` among the rows sorted by experts.
    places: Vec<u32>,
    /// The row at each place.
    rows: Vec<u32>,
    /// The places of each expert.
    experts: Vec<Range<usize>>,
}

impl SortedRows {
    /// Sorts rows by `chosen`, which has `used` of `count` experts for each row. Rows of one expert keep their order.
    fn new(chosen: Vec<ChosenExpert>, used: usize, count: usize) -> Self {
        let mut next = vec![0; count + 1];
        chosen.iter().for_each(|chosen| next[chosen.index as usize + 1] += 1);
        for index in 0..count {
            next[index + 1] += next[index];
        }
        let experts = next.windows(2).map(|ends| ends[0]..ends[1]).collect();
        let mut rows = vec![0; chosen.len()];
        let place = |(number, chosen): (usize, &ChosenExpert)| {
            let next: &mut usize = &mut next[chosen.index as usize];
            rows[*next] = (number / used) as u32;
            *next += 1;
            (*next - 1) as u32
        };
        let places = chosen.iter().enumerate().map(place).collect();
        Self { used, chosen, places, rows, experts }
    }

    /// Consecutive experts that have about [`MOST_ROWS`] rows together, one after another.
    fn parts(&self) -> Vec<Range<usize>> {
        let mut parts: Vec<Range<usize>> = Vec::new();
        for (index, places) in self.experts.iter().enumerate().filter(|(_, places)| !places.is_empty()) {
            match parts.last_mut() {
                Some(part) if places.end - self.experts[part.start].start <= MOST_ROWS => {
                    part.end = index + 1;
                }
                _ => parts.push(index..index + 1),
            }
        }
        parts
    }
}

impl CpuPass<'_> {
    pub(super) fn add_expert_rows(
        &mut self,
        norm: Option<&Norm>,
        experts: &Experts<Linear, Norm>,
        activation: Activation,
        (down_norm, factor): (Option<&Norm>, f32),
        residual: &mut States,
    ) -> Result<()> {
        let wide = residual.operand(DType::F32)?;
        let of = if residual.gathered { 0..wide.rows() } else { self.window.clone() };
        if of.is_empty() {
            return Ok(());
        }
        let (format, norms) = (self.cpu.dtype, experts.norms.as_ref());
        let router_norm = norms.map_or(norm, |own| Some(&own.router));
        let exact = self.maybe_normed_as(wide, of.clone(), router_norm, DType::F32)?;
        let (rows, columns) = (exact.rows(), exact.columns());
        let narrow = match (norms, format) {
            (Some(own), _) => Some(self.normed_as(wide, of.clone(), &own.input, format)?),
            (None, DType::F32) => None,
            (None, DType::Bf16) => Some(self.copied(&exact, 0..rows)?),
        };
        // The shared expert reads what the block's norm makes, the others here what their own one does.
        let of_block = match norms {
            Some(_) => Some(self.maybe_normed_as(wide, of.clone(), norm, format)?),
            None => None,
        };
        let operand = narrow.as_ref().unwrap_or(&exact);
        let sorted = self.sorted(&exact, experts)?;
        let mut sum = self.workspace.matrix(rows, columns, DType::F32)?;
        if !experts.bias.is_empty() && experts.bias.len() != columns {
            return Err(misuse("a bias of experts is as long as a row"));
        }
        sum.for_each_row(self.parallelism, |_, row| match &experts.bias[..] {
            [] => row.fill(0.0),
            bias => row.copy_from_slice(bias),
        })?;
        for part in sorted.parts() {
            self.add_part(operand, experts, activation, &sorted, part, &mut sum)?;
        }
        let kernels = self.cpu.kernel_set().kernels;
        if let Some(own) = norms {
            sum.for_each_row(self.parallelism, |_, row| own.output.apply(kernels, row, None))?;
        }
        if let Some(shared) = &experts.shared {
            let (x, norm) = (of_block.as_ref().unwrap_or(operand), norms.map(|own| &own.shared_output));
            self.add_shared((x, &exact), shared, activation, norm, &mut sum)?;
        }
        let sums = sum.target();
        let target = residual.residual()?.target();
        self.parallelism.worth(rows * columns).split_rows(rows, |task| {
            for row in task {
                // SAFETY: `sum` and `residual` are different matrices, and each row belongs to one task.
                let (y, x) = unsafe { (sums.row_f32(row), target.row_f32(of.start + row)) };
                if let Some(norm) = down_norm {
                    norm.apply(kernels, y, None);
                }
                x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * *y);
            }
        })?;
        let used = [Some(exact), narrow, of_block, Some(sum)].into_iter().flatten();
        used.for_each(|matrix| self.workspace.give(matrix));
        Ok(())
    }

    /// The experts of each row of `exact`.
    fn sorted(&mut self, exact: &StateMatrix, experts: &Experts<Linear, Norm>) -> Result<SortedRows> {
        let (rows, count, used) = (exact.rows(), experts.experts.len(), experts.routing.used);
        if experts.router.outputs() != count || used == 0 || used > count {
            return Err(misuse("a router chooses some of its experts"));
        }
        let mut scores = self.workspace.matrix(rows, count, DType::F32)?;
        let store = Epilogue::Store(Activation::Identity);
        self.multiply(exact, &experts.router, store, &scores.target(), 0)?;
        let mut chosen = vec![ChosenExpert::default(); rows * used];
        let parallelism = self.parallelism.worth(rows * count);
        let share = rows.div_ceil(parallelism.threads()).max(1);
        let shares: Vec<_> = chosen.chunks_mut(share * used).map(Mutex::new).collect();
        parallelism.run(shares.len(), &|index| {
            let mut own = vec![0.0; count];
            for (row, chosen) in (index * share..).zip(shares[index].lock().chunks_exact_mut(used)) {
                scores.read(row, 0..count, &mut own);
                experts.choose(&mut own, chosen);
            }
        })?;
        drop(shares);
        self.workspace.give(scores);
        Ok(SortedRows::new(chosen, used, count))
    }

    /// Adds what some experts make of their rows of `x` to the sums of these rows.
    fn add_part(
        &mut self,
        x: &StateMatrix,
        experts: &Experts<Linear, Norm>,
        activation: Activation,
        sorted: &SortedRows,
        part: Range<usize>,
        sum: &mut StateMatrix,
    ) -> Result<()> {
        let places = sorted.experts[part.start].start..sorted.experts[part.end - 1].end;
        let gathered = self.copies(x, &sorted.rows[places.clone()])?;
        let phases = match self.batch_phases {
            Some(_) => self.phases.gathered(sorted.rows[places.clone()].iter().map(|&row| row as usize)),
            None => RowPhases::PREFILL,
        };
        let own = |index: usize| {
            let Range { start, end } = sorted.experts[index];
            start - places.start..end - places.start
        };
        let used = || part.clone().filter(|&index| !sorted.experts[index].is_empty());
        let layers = |of: fn(&ExpertLayers<Linear>) -> &Linear| -> Vec<LayerRows<'_>> {
            used().map(|index| LayerRows { layer: of(&experts.experts[index]), rows: own(index) }).collect()
        };
        let (up, down) = (layers(|layers| &layers.up), layers(|layers| &layers.down));
        let (format, rows) = (self.cpu.dtype, places.len());
        let hidden = self.products(&up, &gathered, &phases, activation, (rows, format))?;
        let y = self.products(&down, &hidden, &phases, Activation::Identity, (rows, DType::F32))?;
        // Places of a row follow one another in the order of its experts.
        sum.for_each_row(self.parallelism, |row, sum| {
            let numbers = row * sorted.used..(row + 1) * sorted.used;
            let own = sorted.chosen[numbers.clone()].iter().zip(&sorted.places[numbers]);
            for (chosen, &place) in own.filter(|(_, place)| places.contains(&(**place as usize))) {
                let place = place as usize - places.start;
                let from = y.values(place..place + 1);
                sum.iter_mut().zip(from).for_each(|(sum, y)| *sum += chosen.weight * y);
            }
        })?;
        [gathered, hidden, y].into_iter().for_each(|matrix| self.workspace.give(matrix));
        Ok(())
    }

    /// Adds what the shared expert makes of the rows of `x`, normalized if there is a norm. Its gate reads `exact`.
    fn add_shared(
        &mut self,
        (x, exact): (&StateMatrix, &StateMatrix),
        shared: &SharedExpert<Linear>,
        activation: Activation,
        norm: Option<&Norm>,
        sum: &mut StateMatrix,
    ) -> Result<()> {
        let store = Epilogue::Store(Activation::Identity);
        let hidden = self.product(x, &shared.layers.up, activation)?;
        let mut y = self.workspace.matrix(x.rows(), x.columns(), DType::F32)?;
        self.multiply(&hidden, &shared.layers.down, store, &y.target(), 0)?;
        if let Some(norm) = norm {
            let kernels = self.cpu.kernel_set().kernels;
            y.for_each_row(self.parallelism, |_, row| norm.apply(kernels, row, None))?;
        }
        let mut gates = self.workspace.matrix(x.rows(), 1, DType::F32)?;
        if let Some(gate) = &shared.gate {
            self.multiply(exact, gate, store, &gates.target(), 0)?;
        }
        sum.for_each_row(self.parallelism, |row, sum| {
            let weight = shared.gate.as_ref().map_or(1.0, |_| sigmoid(gates.values(row..row + 1)[0]));
            sum.iter_mut().zip(y.values(row..row + 1)).for_each(|(sum, y)| *sum += weight * y);
        })?;
        [hidden, y, gates].into_iter().for_each(|matrix| self.workspace.give(matrix));
        Ok(())
    }

    /// The products of rows of `x`, each with its layer, in a matrix of this many rows and this format.
    fn products(
        &mut self,
        layers: &[LayerRows<'_>],
        x: &StateMatrix,
        phases: &RowPhases,
        activation: Activation,
        (rows, format): (usize, DType),
    ) -> Result<StateMatrix> {
        let outputs = layers.first().map_or(0, |first| first.layer.outputs());
        let mut out = self.workspace.matrix(rows, outputs, format)?;
        let (kernel_set, scratch) = (self.cpu.kernel_set(), &mut self.workspace.gemm);
        let (parallelism, x) = (self.parallelism, x.plain(0..rows));
        multiply_grouped(layers, kernel_set, parallelism, scratch, x, phases, activation, &out.target())?;
        Ok(out)
    }

    /// Copies of these rows.
    fn copies(&mut self, x: &StateMatrix, rows: &[u32]) -> Result<StateMatrix> {
        let (columns, bytes) = (x.columns(), x.columns() * x.format().bytes());
        let mut out = self.workspace.matrix(rows.len(), columns, x.format())?;
        let target = out.target();
        self.parallelism.worth(rows.len() * columns).split_rows(rows.len(), |task| {
            for place in task {
                let to = target.part(place..place + 1, 0..columns);
                // SAFETY: `part` and `row_ptr` checked the rows, which have `bytes` bytes each. The matrices do not overlap,
                // and each row of `out` belongs to one task.
                unsafe { to.copy_from_nonoverlapping(x.row_ptr(rows[place] as usize), bytes) };
            }
        })?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_expert_and_keep_their_order() {
        let of = |index| ChosenExpert { index, weight: 1.0 };
        let sorted = SortedRows::new([0, 3, 1, 3, 0, 1].map(of).to_vec(), 2, 5);
        assert_eq!(sorted.rows, [0, 2, 1, 2, 0, 1]);
        assert_eq!(sorted.places, [0, 4, 2, 5, 1, 3]);
        assert_eq!(sorted.experts, [0..2, 2..4, 4..4, 4..6, 6..6]);
        assert!(sorted.parts().into_iter().eq(std::iter::once(0..4)));
    }

    #[test]
    fn parts_have_few_rows_or_one_expert() {
        let experts = [1000, 1048, 1, 0, 5000, 2048, 0].iter().enumerate();
        let chosen: Vec<_> = experts
            .flat_map(|(index, &rows)| {
                std::iter::repeat_n(ChosenExpert { index: index as u32, weight: 1.0 }, rows)
            })
            .collect();
        assert_eq!(SortedRows::new(chosen, 1, 7).parts(), [0..2, 2..3, 4..5, 5..6]);
        assert!(SortedRows::new(Vec::new(), 2, 3).parts().is_empty());
    }
}
