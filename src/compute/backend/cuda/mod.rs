//! The backend on NVIDIA's cards: cuBLASLt multiplies, and the kernels beside this file do the rest.
//!
//! The tokens of a batch lie one after the other without padding. Each operation of a pass is one or two kernels, queued on
//! the pass's own stream. Two passes at a time keep the card at work while one of them copies.
//!
//! With bfloat16, the factors of products and the states between layers are bfloat16; sums, norms, scores, and what blocks
//! of norm-first models add to are float32.

mod card;
mod gemm;
mod launch;
mod memory;
mod pass;
mod tensors;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use candle_core::Device;
use half::bf16;
use half::slice::HalfFloatSliceExt as _;

pub(crate) use self::card::release;
use self::card::{CudaCard, LaneLease, Plain};
use self::memory::DeviceMemory;
pub use self::pass::CudaPass;
pub use self::tensors::{CudaCache, CudaLinear, CudaNorm, CudaStates, CudaTable};
use self::tensors::{cache_bytes, size};
use super::candle::device::CandleDevice;
use super::parts::{BatchParts, retried};
use super::traits::{Backend, CachedSequence, ForwardFn, Step, check_logits};
use crate::compute::attention::heads::DistanceBias;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::attention::rope::Rotary;
use crate::compute::file::WeightFile;
use crate::compute::isa::DType;
use crate::compute::linear::layer::{Biased, Matrix};
use crate::compute::weight::{Packed, Stored, Weight};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Bytes of the widest states of a part of a batch.
const PART_BYTES: usize = 64 << 20;

/// Tokens of a part at least: fewer do not fill a card.
const FEWEST_TOKENS: usize = 2048;

/// And at most.
const MOST_TOKENS: usize = 32 << 10;

/// Values of a weight that are converted and copied at a time.
const CHUNK: usize = 1 << 20;

/// Layers with more outputs for each input make logits: of few rows.
const WIDEST: usize = 16;

/// The backend on one card.
pub struct Cuda {
    on: CandleDevice,
    card: Arc<CudaCard>,
    /// Of matrices and tables.
    format: DType,
    bytes: AtomicU64,
    /// Columns of the widest states.
    widest: AtomicUsize,
    angles: Mutex<Vec<AngleTable>>,
    biases: Mutex<Vec<(Arc<DistanceBias>, Arc<DeviceMemory>)>>,
    /// Tables that lie in files: the matrix that makes logits is often one of them.
    tables: Mutex<Vec<(MatrixPlace, Arc<DeviceMemory>)>>,
}

/// Where a matrix lies in a file.
type MatrixPlace = (Weak<WeightFile>, Range<usize>);

/// The angles of positions from 0 on; of long texts with their own frequencies, after those of short ones.
struct AngleTable {
    rotary: Rotary,
    positions: usize,
    memory: Arc<DeviceMemory>,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("on", &self.on).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Cuda {
    /// Runs on `device`.
    ///
    /// # Errors
    /// [`Error::Config`] for a card that is too old, [`Error::Internal`] for a device of another kind, errors of the driver.
    pub fn new(device: CandleDevice) -> Result<Self> {
        let Device::Cuda(cuda) = &device.device else {
            let reason = format!("{} is no card of NVIDIA", device.name);
            return Err(Error::Internal { place: "cuda".into(), reason });
        };
        let card = CudaCard::of(cuda.cuda_stream().context()).map_err(|error| device.described(error))?;
        Ok(Self {
            card,
            format: if device.bf16 { DType::Bf16 } else { DType::F32 },
            on: device,
            bytes: AtomicU64::new(0),
            widest: AtomicUsize::new(1),
            angles: Mutex::default(),
            biases: Mutex::default(),
            tables: Mutex::default(),
        })
    }

    /// Memory that outlives passes.
    fn lasting(&self, bytes: usize) -> Result<DeviceMemory> {
        self.card.bind()?;
        let memory = DeviceMemory::new(&self.card.home, bytes)?;
        // Then every stream may use it.
        self.card.home.synchronize().map_err(card::failed)?;
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(memory)
    }

    fn kept<T: Plain>(&self, values: &[T]) -> Result<DeviceMemory> {
        let memory = self.lasting(size_of_val(values))?;
        let mut lane = self.card.lane()?;
        lane.upload_to(&memory, 0, values)?;
        lane.wait()?;
        Ok(memory)
    }

    fn vector(&self, weight: &Weight) -> Result<DeviceMemory> {
        self.kept(&weight.to_f32()?)
    }

    /// The table that is this matrix.
    fn table_of(&self, matrix: &Matrix) -> Option<Arc<DeviceMemory>> {
        let (file, range) = matrix.place()?;
        let tables = self.tables.lock();
        let same = |place: &MatrixPlace| Weak::ptr_eq(&place.0, &file) && place.1 == range;
        tables.iter().find(|(place, _)| same(place)).map(|(_, memory)| Arc::clone(memory))
    }

    /// The matrices, one below the other, in the format of this backend.
    fn matrices(&self, parts: &[&Matrix]) -> Result<DeviceMemory> {
        let values: usize = parts.iter().map(|matrix| matrix.rows() * matrix.columns()).sum();
        let memory = self.lasting(values * size(self.format))?;
        let mut lane = self.card.lane()?;
        let mut offset = 0;
        for matrix in parts {
            self.copy_matrix(&mut lane, matrix, &memory, offset)?;
            offset += matrix.rows() * matrix.columns() * size(self.format);
        }
        lane.wait()?;
        Ok(memory)
    }

    fn copy_matrix(
        &self,
        lane: &mut LaneLease,
        matrix: &Matrix,
        memory: &DeviceMemory,
        mut offset: usize,
    ) -> Result<()> {
        let columns = matrix.columns();
        let rows_at_once = (CHUNK / columns.max(1)).max(1);
        let stored_as = if self.format == DType::F32 { Stored::F32 } else { Stored::Bf16 };
        let mut bytes = Vec::new();
        let mut values = Vec::new();
        let mut halves = Vec::new();
        for first in (0..matrix.rows()).step_by(rows_at_once) {
            let rows = first..(first + rows_at_once).min(matrix.rows());
            let count = rows.len() * columns;
            match matrix {
                Matrix::Plain(weight) if weight.stored() == stored_as => {
                    let size = columns * size(self.format);
                    let read = weight.bytes().read(rows.start * size..rows.end * size, &mut bytes)?;
                    lane.upload_to(memory, offset, read)?;
                }
                _ => {
                    values.resize(count, 0.0);
                    let each = values.chunks_exact_mut(columns.max(1));
                    rows.zip(each).try_for_each(|(row, out)| matrix.row_f32(row, out))?;
                    if self.format == DType::F32 {
                        lane.upload_to(memory, offset, &values)?;
                    } else {
                        halves.resize(count, bf16::ZERO);
                        halves.convert_from_f32_slice(&values);
                        lane.upload_to(memory, offset, &halves)?;
                    }
                }
            }
            offset += count * size(self.format);
        }
        Ok(())
    }

    /// The angles of all positions of `rows` (position, length of the text), and how many positions the table has.
    fn angles(&self, rotary: &Rotary, rows: &[(usize, usize)]) -> Result<(Arc<DeviceMemory>, usize)> {
        let needed = rows.iter().map(|row| row.0 + 1).max().unwrap_or(1);
        let mut tables = self.angles.lock();
        if let Some(table) = tables.iter().find(|table| table.rotary == *rotary && table.positions >= needed)
        {
            return Ok((Arc::clone(&table.memory), table.positions));
        }
        let positions = needed.next_power_of_two().max(512);
        let each = 2 * rotary.frequencies.len();
        let lengths = rotary.long.as_ref().map(|long| long.from + 1);
        let mut values = vec![0.0; each * positions * (1 + usize::from(lengths.is_some()))];
        let places = [Some(0), lengths].into_iter().flatten();
        let places = places.flat_map(|length| (0..positions).map(move |position| (position, length)));
        for ((position, length), out) in places.zip(values.chunks_exact_mut(each.max(1))) {
            rotary.angles(position, length, out);
        }
        let memory = Arc::new(self.kept(&values)?);
        tables.retain(|table| table.rotary != *rotary);
        tables.push(AngleTable { rotary: rotary.clone(), positions, memory: Arc::clone(&memory) });
        Ok((memory, positions))
    }

    /// The numbers of `bias` on the card.
    fn bias(&self, bias: &Arc<DistanceBias>) -> Result<Arc<DeviceMemory>> {
        let mut known = self.biases.lock();
        if let Some((_, memory)) = known.iter().find(|(known, _)| Arc::ptr_eq(known, bias)) {
            return Ok(Arc::clone(memory));
        }
        let memory = Arc::new(self.kept(bias.values())?);
        known.push((Arc::clone(bias), Arc::clone(&memory)));
        Ok(memory)
    }

    /// Tokens of a part of a batch.
    fn part_tokens(&self) -> usize {
        let row = self.widest.load(Ordering::Relaxed) * size(self.format);
        (PART_BYTES / row).clamp(FEWEST_TOKENS, MOST_TOKENS)
    }

    fn pass<'a>(&'a self, ids: Cow<'a, [u32]>, rows: Vec<Range<usize>>) -> Result<CudaPass<'a>> {
        Ok(CudaPass {
            backend: self,
            lane: self.card.lane()?,
            ids,
            rows,
            hidden: Vec::new(),
            second_types: Vec::new(),
            first: 0,
            cached: None,
            delivered: false,
            layout: None,
            ropes: RefCell::default(),
        })
    }

    /// Runs `forward` on some steps. Where the card's memory does not suffice, their halves are tried.
    fn run_steps(
        &self,
        steps: &mut [Step<'_, CudaCache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        let mut can_begin_again = true;
        // A cache's tokens count once a pass has ended, so that one which failed can begin again.
        let done = retried(&self.on, || {
            let mut end = 0;
            let rows = steps.iter().map(|step| {
                end += step.tokens.len();
                end - step.tokens.len()..end
            });
            let rows = rows.collect();
            let ids = steps.iter().flat_map(|step| step.tokens).copied().collect();
            let cached = steps.iter_mut().map(|step| CachedSequence {
                cached: step.cache.len,
                length: step.length,
                needs_logits: step.needs_logits,
                cache: &mut *step.cache,
            });
            let cached = cached.collect();
            let made = self.pass(Cow::Owned(ids), rows);
            let done = made.and_then(|mut pass| {
                pass.cached = Some(cached);
                let done = forward(&mut pass, out).and_then(|()| pass.lane.wait());
                can_begin_again = !pass.delivered;
                done
            });
            (done, can_begin_again)
        });
        match done {
            Err(Error::DeviceMemory { .. }) if can_begin_again && steps.len() > 1 => {
                let (first, second) = steps.split_at_mut(steps.len() / 2);
                let logits = first.iter().filter(|step| step.needs_logits).count();
                let (first_out, second_out) = out.split_at_mut(logits * width);
                self.run_steps(first, width, first_out, forward)?;
                self.run_steps(second, width, second_out, forward)
            }
            Ok(()) => {
                steps.iter_mut().for_each(|step| step.cache.len += step.tokens.len());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Backend for Cuda {
    type Table = CudaTable;
    type Linear = CudaLinear;
    type Norm = CudaNorm;
    type Cache = CudaCache;
    type Pass<'a> = CudaPass<'a>;

    fn table(&self, matrix: Matrix) -> Result<CudaTable> {
        let memory = Arc::new(self.matrices(&[&matrix])?);
        if let Some(place) = matrix.place() {
            self.tables.lock().push((place, Arc::clone(&memory)));
        }
        Ok(CudaTable { memory, rows: matrix.rows(), width: matrix.columns() })
    }

    fn linear(&self, parts: &[Biased]) -> Result<CudaLinear> {
        let matrices: Vec<&Matrix> = parts.iter().map(|part| &part.0).collect();
        let inputs = matrices.first().map_or(0, |matrix| matrix.columns());
        let outputs = matrices.iter().map(|matrix| matrix.rows()).sum();
        if matrices.iter().any(|matrix| matrix.columns() != inputs) {
            let reason = "matrices of one layer have different widths".into();
            return Err(Error::Internal { place: "cuda".into(), reason });
        }
        let bias = if parts.iter().any(|part| part.1.is_some()) {
            let mut bias = Vec::with_capacity(outputs);
            for (matrix, part) in parts {
                match part {
                    Some(part) => bias.extend(part.to_f32()?),
                    None => bias.resize(bias.len() + matrix.rows(), 0.0),
                }
            }
            let halves: Vec<bf16> = bias.iter().map(|&value| bf16::from_f32(value)).collect();
            Some([self.kept(&bias)?, self.kept(&halves)?])
        } else {
            None
        };
        if outputs <= WIDEST * inputs {
            self.widest.fetch_max(outputs.max(inputs), Ordering::Relaxed);
        }
        let known = match matrices[..] {
            [matrix] => self.table_of(matrix),
            _ => None,
        };
        let matrix = match known {
            Some(known) => known,
            None => Arc::new(self.matrices(&matrices)?),
        };
        Ok(CudaLinear { matrix, bias, inputs, outputs, gated: false })
    }

    fn gated(&self, gate: Biased, up: Biased) -> Result<CudaLinear> {
        Ok(CudaLinear { gated: true, ..self.linear(&[gate, up])? })
    }

    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<CudaNorm> {
        let length = scale.shape().iter().product();
        let shift = shift.map(|shift| self.vector(shift)).transpose()?;
        Ok(CudaNorm { scale: self.vector(scale)?, shift, epsilon, length })
    }

    fn cache(&self, shape: CacheShape) -> CudaCache {
        let card = Arc::clone(&self.card);
        CudaCache { card, format: self.format, shape, len: 0, capacity: 0, memory: None }
    }

    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64 {
        cache_bytes(shape, self.format, tokens)
    }

    fn run(
        &self,
        batch: &Packed<'_>,
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        let parts = BatchParts { on: &self.on, batch, width, most_tokens: self.part_tokens() };
        parts.run(out, &mut |part, out| {
            let start = batch.offsets[part.start] as usize;
            let ids = &batch.ids[start..batch.offsets[part.end] as usize];
            let rows = part.clone().map(|number| batch.range(number));
            let rows = rows.map(|range| range.start - start..range.end - start).collect();
            let mut pass = match self.pass(Cow::Borrowed(ids), rows) {
                Ok(pass) => pass,
                Err(error) => return (Err(error), true),
            };
            let hidden = |number| batch.hidden.get(number).map_or(0, |&hidden| hidden as usize);
            let second = |number| batch.second_type(number).saturating_sub(batch.offsets[number] as usize);
            pass.hidden = part.clone().map(hidden).collect();
            pass.second_types = part.clone().map(second).collect();
            pass.first = part.start;
            let done = forward(&mut pass, out);
            (done, !pass.delivered)
        })
    }

    fn run_cached(
        &self,
        steps: &mut [Step<'_, CudaCache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        check_logits(steps, width, out);
        let (mut steps, mut out) = (steps, out);
        while !steps.is_empty() {
            let mut tokens = 0;
            let fits = |step: &&Step<'_, CudaCache>| {
                tokens += step.tokens.len();
                tokens <= self.part_tokens()
            };
            let count = steps.iter().take_while(fits).count().max(1);
            let (now, later) = steps.split_at_mut(count);
            let logits = now.iter().filter(|step| step.needs_logits).count();
            let (rows, others) = out.split_at_mut(logits * width);
            self.run_steps(now, width, rows, forward)?;
            (steps, out) = (later, others);
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn device_bytes(&self) -> u64 {
        self.memory_bytes()
    }

    fn dtype(&self) -> &'static str {
        match self.format {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
        }
    }
}

#[cfg(test)]
mod tests;
