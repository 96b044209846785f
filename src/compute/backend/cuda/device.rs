//! A card as a backend: weights, and the angles and biases that passes share.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use candle_core::Device;
use half::bf16;
use half::slice::HalfFloatSliceExt as _;

use super::card::{CudaCard, LaneLease};
use super::failure::failed;
use super::memory::{DeviceMemory, Plain};
use super::tensors::size;
use crate::compute::attention::heads::DistanceBias;
use crate::compute::attention::rope::Rotary;
use crate::compute::backend::candle::device::CandleDevice;
use crate::compute::file::WeightFile;
use crate::compute::isa::DType;
use crate::compute::linear::layer::Matrix;
use crate::compute::weight::{Stored, Weight};
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

/// The backend on one card.
pub struct Cuda {
    pub(super) on: CandleDevice,
    pub(super) card: Arc<CudaCard>,
    /// Of matrices and tables.
    pub(super) format: DType,
    pub(super) bytes: AtomicU64,
    /// Columns of the widest states.
    pub(super) widest: AtomicUsize,
    angles: Mutex<Vec<AngleTable>>,
    biases: Mutex<Vec<(Arc<DistanceBias>, Arc<DeviceMemory>)>>,
    /// Tables that lie in files: the matrix that makes logits is often one of them.
    pub(super) tables: Mutex<Vec<(MatrixPlace, Arc<DeviceMemory>)>>,
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
            return Err(Error::internal("cuda", reason));
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
    pub(super) fn lasting(&self, bytes: usize) -> Result<DeviceMemory> {
        self.card.bind()?;
        let memory = DeviceMemory::new(&self.card.home, bytes)?;
        // Then every stream may use it.
        self.card.home.synchronize().map_err(failed)?;
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(memory)
    }

    pub(super) fn kept<T: Plain>(&self, values: &[T]) -> Result<DeviceMemory> {
        let memory = self.lasting(size_of_val(values))?;
        let mut lane = self.card.lane()?;
        lane.upload_to(&memory, 0, values)?;
        lane.wait()?;
        Ok(memory)
    }

    pub(super) fn vector(&self, weight: &Weight) -> Result<DeviceMemory> {
        self.kept(&weight.to_f32()?)
    }

    /// The table that is this matrix.
    pub(super) fn table_of(&self, matrix: &Matrix) -> Option<Arc<DeviceMemory>> {
        let (file, range) = matrix.place()?;
        let tables = self.tables.lock();
        let same = |place: &MatrixPlace| Weak::ptr_eq(&place.0, &file) && place.1 == range;
        tables.iter().find(|(place, _)| same(place)).map(|(_, memory)| Arc::clone(memory))
    }

    /// The matrices, one below the other, in the format of this backend.
    pub(super) fn matrices(&self, parts: &[&Matrix]) -> Result<DeviceMemory> {
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
    pub(super) fn angles(
        &self,
        rotary: &Rotary,
        rows: &[(usize, usize)],
    ) -> Result<(Arc<DeviceMemory>, usize)> {
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
    pub(super) fn bias(&self, bias: &Arc<DistanceBias>) -> Result<Arc<DeviceMemory>> {
        let mut known = self.biases.lock();
        if let Some((_, memory)) = known.iter().find(|(known, _)| Arc::ptr_eq(known, bias)) {
            return Ok(Arc::clone(memory));
        }
        let memory = Arc::new(self.kept(bias.values())?);
        known.push((Arc::clone(bias), Arc::clone(&memory)));
        Ok(memory)
    }

    /// Tokens of a part of a batch.
    pub(super) fn part_tokens(&self) -> usize {
        let row = self.widest.load(Ordering::Relaxed) * size(self.format);
        (PART_BYTES / row).clamp(FEWEST_TOKENS, MOST_TOKENS)
    }
}
