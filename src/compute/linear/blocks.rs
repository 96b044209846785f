//! The block formats of GGUF files: small integers (quants), and scales that a group of them shares.
//!
//! The layouts are those of ggml (`ggml-common.h`): a block has 32 or 256 weights of one row; numbers are little-endian.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use half::f16;

use super::grid_blocks::{self, LowGroup};
use crate::compute::file::{Bytes, WeightFile};
pub(crate) use crate::compute::kernels::quantize::GROUP;
use crate::compute::memory::zeroed;
use crate::{Error, Result};

/// The format of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ggml's")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq1S,
    Iq1M,
    Tq1_0,
    Tq2_0,
}

/// The weights that the codes of the IQ4 formats stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The weights that the codes of MXFP4 stand for, doubled: floating-point numbers of four bits (OCP Microscaling
/// Formats, E2M1).
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A group of 32 weights in a common form for all formats: weight `i` is `scales[i / 16] * quants[i] + minima[i / 16]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QuantGroup {
    pub quants: [u8; GROUP],
    pub scales: [f32; 2],
    pub minima: [f32; 2],
}

/// The common form of a format: the width of its quants, and how they represent zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuantLayout {
    /// 4 or 8.
    pub bits: usize,
    /// Whether each group has a minimum; otherwise the quant [`zero`] stands for weight 0.
    pub minimum: bool,
    /// Whether each half of a group has a separate scale, and a separate minimum.
    pub halves: bool,
}

/// The quant of weight 0 in `bits` bits, for groups without a minimum: the middle of the range.
pub(crate) const fn zero(bits: usize) -> u8 {
    1 << (bits - 1)
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 22] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq2S,
        Self::Iq3Xxs,
        Self::Iq3S,
        Self::Iq1S,
        Self::Iq1M,
        Self::Tq1_0,
        Self::Tq2_0,
    ];

    /// The format with ggml's type number `number`.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.facts().0 == number)
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    /// Weights in a block.
    pub fn elements(self) -> usize {
        self.facts().2
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.facts().3
    }

    fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q5_1 => (7, "Q5_1", 32, 24),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q2K => (10, "Q2_K", 256, 84),
            Self::Q3K => (11, "Q3_K", 256, 110),
            Self::Q4K => (12, "Q4_K", 256, 144),
            Self::Q5K => (13, "Q5_K", 256, 176),
            Self::Q6K => (14, "Q6_K", 256, 210),
            Self::Iq4Nl => (20, "IQ4_NL", 32, 18),
            Self::Iq4Xs => (23, "IQ4_XS", 256, 136),
            Self::Mxfp4 => (39, "MXFP4", 32, 17),
            Self::Iq2Xxs => (16, "IQ2_XXS", 256, 66),
            Self::Iq2Xs => (17, "IQ2_XS", 256, 74),
            Self::Iq2S => (22, "IQ2_S", 256, 82),
            Self::Iq3Xxs => (18, "IQ3_XXS", 256, 98),
            Self::Iq3S => (21, "IQ3_S", 256, 110),
            Self::Iq1S => (19, "IQ1_S", 256, 50),
            Self::Iq1M => (29, "IQ1_M", 256, 56),
            Self::Tq1_0 => (34, "TQ1_0", 256, 54),
            Self::Tq2_0 => (35, "TQ2_0", 256, 66),
        }
    }

    pub(crate) fn layout(self) -> QuantLayout {
        let (bits, minimum) = match self {
            Self::Q4_0 | Self::Q3K | Self::Tq1_0 | Self::Tq2_0 => (4, false),
            Self::Q4_1 | Self::Q4K | Self::Q2K => (4, true),
            Self::Q5_1 | Self::Q5K => (8, true),
            Self::Q5_0 | Self::Q6K | Self::Q8_0 | Self::Iq4Nl | Self::Iq4Xs | Self::Mxfp4 => (8, false),
            Self::Iq2Xxs | Self::Iq2Xs | Self::Iq2S | Self::Iq3Xxs | Self::Iq3S => (8, false),
            Self::Iq1S | Self::Iq1M => (8, false),
        };
        let halves =
            matches!(self, Self::Q2K | Self::Q3K | Self::Q6K | Self::Iq2Xs | Self::Iq2S | Self::Iq1M);
        QuantLayout { bits, minimum, halves }
    }

    /// Group `index` of a row of blocks.
    pub(crate) fn group(self, row: &[u8], index: usize) -> QuantGroup {
        let groups = self.elements() / GROUP;
        let block = &row[index / groups * self.bytes()..][..self.bytes()];
        let part = index % groups;
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let nibbles = |bytes: &[u8], high: usize| -> [u8; GROUP] {
            std::array::from_fn(|i| bytes[i % 16] >> (4 * (i / 16)) & 15 | ((high >> i & 1) as u8) << 4)
        };
        let fifth =
            |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]) as usize;
        let plain = |quants, scale, minimum| QuantGroup { quants, scales: [scale; 2], minima: [minimum; 2] };
        // Codes of four bits that stand for the numbers of a table, in eight bits around 128.
        let looked_up = |table: &[i8; 16], codes: &[u8], scale| {
            plain(nibbles(codes, 0).map(|code| table[code as usize].cast_unsigned() ^ 0x80), scale, 0.0)
        };
        match self {
            Self::Q4_0 => plain(nibbles(&block[2..], 0), half(0), -8.0 * half(0)),
            Self::Q4_1 => plain(nibbles(&block[4..], 0), half(0), half(2)),
            // The zero of Q5_0 is 16, and that of the common form is 128.
            Self::Q5_0 => {
                plain(nibbles(&block[6..], fifth(2)).map(|quant| quant + 112), half(0), -128.0 * half(0))
            }
            Self::Q5_1 => plain(nibbles(&block[8..], fifth(4)), half(0), half(2)),
            Self::Q8_0 => {
                let quants = std::array::from_fn(|i| block[2 + i].wrapping_add(128));
                plain(quants, half(0), -128.0 * half(0))
            }
            Self::Q2K => {
                let pair = |half_of: usize| block[part * 2 + half_of];
                QuantGroup {
                    quants: two_bits(&block[16..80], part),
                    scales: [0, 1].map(|half_of| half(80) * f32::from(pair(half_of) & 15)),
                    minima: [0, 1].map(|half_of| -half(82) * f32::from(pair(half_of) >> 4)),
                }
            }
            Self::Q3K => {
                let low = two_bits(&block[32..96], part);
                // The zero of Q3_K is 4, and that of the common form is 8.
                let quants = std::array::from_fn(|i| low[i] + 4 + 4 * (block[i] >> part & 1));
                // The lower four bits of sixteen scales, then the upper two.
                let scale = |index: usize| {
                    let low = block[96 + index % 8] >> (4 * (index / 8)) & 15;
                    let high = block[104 + index % 4] >> (2 * (index / 4)) & 3;
                    half(108) * (f32::from(low | high << 4) - 32.0)
                };
                QuantGroup { quants, scales: [scale(part * 2), scale(part * 2 + 1)], minima: [0.0; 2] }
            }
            Self::Iq4Nl => looked_up(&IQ4, &block[2..18], half(0)),
            Self::Iq4Xs => {
                let low = block[4 + part / 2] >> (4 * (part % 2)) & 15;
                let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * part) & 3;
                let scale = half(0) * (f32::from(u16::from(low) | high << 4) - 32.0);
                looked_up(&IQ4, &block[8 + part * 16..][..16], scale)
            }
            Self::Mxfp4 => looked_up(&E2M1, &block[1..17], (f32::from(block[0]) - 128.0).exp2()),
            Self::Q4K | Self::Q5K => {
                let (scale, minimum) = six_bits(&block[4..16], part);
                let low = &block[self.bytes() - 128 + part / 2 * 32..][..32];
                let quants = std::array::from_fn(|i| {
                    let fifth = if self == Self::Q5K { block[16 + i] >> part & 1 } else { 0 };
                    low[i] >> (4 * (part % 2)) & 15 | fifth << 4
                });
                plain(quants, half(0) * f32::from(scale), -half(2) * f32::from(minimum))
            }
            Self::Q6K => {
                // Two runs of 128 weights. The low bits of a run's four groups share 64 bytes, and the high bits 32.
                let (run, quarter) = (part / 4, part % 4);
                let low = &block[run * 64 + quarter % 2 * 32..][..32];
                let high = &block[128 + run * 32..][..32];
                let quants = std::array::from_fn(|i| {
                    // The zero of Q6_K is 32, and that of the common form is 128.
                    (low[i] >> (4 * (quarter / 2)) & 15 | (high[i] >> (2 * quarter) & 3) << 4) + 96
                });
                let scale =
                    |half_of: usize| f32::from(block[192 + part * 2 + half_of].cast_signed()) * half(208);
                QuantGroup { quants, scales: [scale(0), scale(1)], minima: [0.0; 2] }
            }
            Self::Iq2Xxs => self.low_bits(grid_blocks::iq2_xxs(block, part)),
            Self::Iq2Xs => self.low_bits(grid_blocks::iq2_xs(block, part)),
            Self::Iq2S => self.low_bits(grid_blocks::iq2_s(block, part)),
            Self::Iq3Xxs => self.low_bits(grid_blocks::iq3_xxs(block, part)),
            Self::Iq3S => self.low_bits(grid_blocks::iq3_s(block, part)),
            Self::Iq1S => self.low_bits(grid_blocks::iq1_s(block, part)),
            Self::Iq1M => self.low_bits(grid_blocks::iq1_m(block, part)),
            Self::Tq1_0 => self.low_bits(grid_blocks::tq1_0(block, part)),
            Self::Tq2_0 => self.low_bits(grid_blocks::tq2_0(block, part)),
        }
    }

    /// The group of a format of one to three bits.
    fn low_bits(self, LowGroup { quants, scales }: LowGroup) -> QuantGroup {
        let zero = f32::from(zero(self.layout().bits));
        QuantGroup { quants, scales, minima: scales.map(|scale| -zero * scale) }
    }
}

/// The quants of group `index` of 256. Four groups share 32 bytes, two bits each.
fn two_bits(packed: &[u8], index: usize) -> [u8; GROUP] {
    std::array::from_fn(|i| packed[index / 4 * 32 + i] >> (2 * (index % 4)) & 3)
}

/// Scale and minimum of group `index`. ggml packs eight pairs of six-bit numbers into twelve bytes.
fn six_bits(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        let both = packed[index + 4];
        (both & 15 | packed[index - 4] >> 6 << 4, both >> 4 | packed[index] >> 6 << 4)
    }
}

impl QuantGroup {
    /// Weight `i`.
    pub(crate) fn weight(&self, layout: QuantLayout, i: usize) -> f32 {
        let (scale, quant) = (self.scales[i / 16], f32::from(self.quants[i]));
        if layout.minimum {
            scale * quant + self.minima[i / 16]
        } else {
            scale * (quant - f32::from(zero(layout.bits)))
        }
    }

    /// Quantizes values to 8 bits symmetrically, as Q8_0.
    pub(crate) fn eight_bits(values: &[f32; GROUP]) -> Self {
        let largest = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = f16::from_f32(largest / 127.0).to_f32();
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        // Adding 1.5 · 2^23 rounds to a whole number, which the lowest bits of the sum contain.
        let whole = |x: f32| (x.clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as u8;
        let quants = values.map(|x| whole(x * inverse).wrapping_add(zero(8)));
        Self { quants, scales: [scale; 2], minima: [-f32::from(zero(8)) * scale; 2] }
    }

    /// Quantizes values to 4 bits between their minimum and maximum, as Q4_1.
    pub(crate) fn four_bits(values: &[f32; GROUP]) -> Self {
        let least = values.iter().copied().fold(f32::INFINITY, f32::min);
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (scale, minimum) = (f16::from_f32((most - least) / 15.0).to_f32(), f16::from_f32(least).to_f32());
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let quants = values.map(|x| ((x - minimum) * inverse).round().clamp(0.0, 15.0) as u8);
        Self { quants, scales: [scale; 2], minima: [minimum; 2] }
    }
}

/// A matrix of blocks, in a file or in memory.
#[derive(Debug, Clone)]
pub struct BlockTensor {
    bytes: Bytes,
    format: BlockFormat,
    rows: usize,
    columns: usize,
}

impl BlockTensor {
    /// Where it lies in a file, if it does.
    #[cfg(feature = "cuda")]
    pub(super) fn place(&self) -> Option<(std::sync::Weak<WeightFile>, Range<usize>)> {
        self.bytes.place()
    }

    /// The matrix `[rows, columns]` at `range` of `file`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if a row does not consist of whole blocks, or the range lies outside the file or has another
    /// size.
    pub fn new(
        file: Arc<WeightFile>,
        range: Range<usize>,
        format: BlockFormat,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let bytes =
            (columns / format.elements()).checked_mul(format.bytes()).and_then(|row| row.checked_mul(rows));
        let fits = columns.is_multiple_of(format.elements())
            && range.start <= range.end
            && range.end <= file.len()
            && bytes == Some(range.len());
        if !fits {
            return Err(Error::InvalidFile {
                path: file.path().to_path_buf(),
                reason: format!(
                    "a {} tensor of shape [{rows}, {columns}] cannot lie at bytes {range:?}; fetch the file again",
                    format.name()
                ),
            });
        }
        Ok(Self { bytes: Bytes::File(file, range), format, rows, columns })
    }

    /// The matrix `[rows, columns]` of blocks in memory.
    ///
    /// # Errors
    /// [`Error::Input`] if a row does not consist of whole blocks, or there are more or fewer.
    pub fn owned(bytes: Vec<u8>, format: BlockFormat, rows: usize, columns: usize) -> Result<Self> {
        let own = Self { bytes: Bytes::Memory(bytes.into()), format, rows, columns };
        let size = own.row_bytes().checked_mul(rows);
        let found = if let Bytes::Memory(bytes) = &own.bytes { bytes.len() } else { 0 };
        if columns.is_multiple_of(format.elements()) && size == Some(found) {
            return Ok(own);
        }
        Err(Error::Input(format!(
            "{found} bytes do not make a {} tensor of shape [{rows}, {columns}]",
            format.name()
        )))
    }

    /// Rows: outputs of a linear layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a linear layer.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The format of its blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The same matrix as an embedding table: [`Bytes::table`].
    pub(crate) fn table(&self, memory: &Arc<AtomicU64>) -> Result<Self> {
        Ok(Self { bytes: self.bytes.table(memory)?, ..self.clone() })
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// If it has fewer.
    #[must_use]
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        let size = self.row_bytes();
        let bytes = self.bytes.slice(rows.start * size..rows.end * size);
        Self { bytes, format: self.format, rows: rows.len(), columns: self.columns }
    }

    /// The same weights in rows of `columns`; `None` where these are no whole blocks, or no part of a row.
    pub(crate) fn with_columns(&self, columns: usize) -> Option<Self> {
        let fits = columns > 0
            && self.columns.is_multiple_of(columns)
            && columns.is_multiple_of(self.format.elements());
        let rows = self.rows * (self.columns / columns.max(1));
        fits.then(|| Self { rows, columns, ..self.clone() })
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.columns / self.format.elements() * self.format.bytes()
    }

    /// The blocks of some rows. Those of a file are read into `scratch`.
    pub(crate) fn rows_read<'a>(&'a self, rows: Range<usize>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let size = self.row_bytes();
        self.bytes.read(rows.start * size..rows.end * size, scratch)
    }

    /// All weights, row-major.
    ///
    /// # Errors
    /// Errors of reading its file, and [`Error::OutOfMemory`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = zeroed(self.rows * self.columns)?;
        let mut scratch = Vec::new();
        for (row, out) in out.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.decode(self.rows_read(row..row + 1, &mut scratch)?, out);
        }
        Ok(out)
    }

    /// The weights of row `row` into `out`, whose length is [`Self::columns`].
    ///
    /// # Errors
    /// Errors of reading its file.
    ///
    /// # Panics
    /// If `row` or the length of `out` is wrong.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), self.columns, "row length");
        let mut scratch = Vec::new();
        self.decode(self.rows_read(row..row + 1, &mut scratch)?, out);
        Ok(())
    }

    fn decode(&self, row: &[u8], out: &mut [f32]) {
        let layout = self.format.layout();
        for (index, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let group = self.format.group(row, index);
            *out = std::array::from_fn(|i| group.weight(layout, i));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn rows_are_divided_where_blocks_end() {
        for format in BlockFormat::ALL {
            let (tensor, weights) = reference(format);
            let halves = tensor.with_columns(256).unwrap();
            assert_eq!((halves.rows(), halves.columns()), (2 * ROWS, 256));
            assert_eq!(halves.to_f32().unwrap(), weights, "{}", format.name());
            let mut row = [0.0; 256];
            halves.row_f32(2, &mut row).unwrap();
            assert_eq!(row, weights[512..768], "{}", format.name());
            for columns in [0, 16, 1024, 192] {
                assert!(tensor.with_columns(columns).is_none(), "{} {columns}", format.name());
            }
        }
    }

    pub(crate) const ROWS: usize = 2;
    pub(crate) const COLUMNS: usize = 512;

    /// Blocks of a format in a file, and the weights that the `gguf` package reads in them.
    pub(crate) fn reference(format: BlockFormat) -> (BlockTensor, Vec<f32>) {
        let name = format!("tests/fixtures/gguf_blocks/{}.bin", format.name());
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let all = std::fs::read(&path).unwrap();
        let size = COLUMNS / format.elements() * format.bytes() * ROWS;
        let file = WeightFile::open(&path).unwrap();
        let tensor = BlockTensor::new(file, 0..size, format, ROWS, COLUMNS).unwrap();
        (tensor, all[size..].as_chunks().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect())
    }

    #[test]
    fn every_format_reads_as_the_gguf_package_reads_it() {
        for format in BlockFormat::ALL {
            let (tensor, expected) = reference(format);
            let ours = tensor.to_f32().unwrap();
            assert_eq!(ours.len(), expected.len());
            for (index, (ours, theirs)) in ours.iter().zip(&expected).enumerate() {
                let error = (ours - theirs).abs();
                assert!(error <= theirs.abs() * 1e-6 + 1e-6, "{} {index}: {ours} {theirs}", format.name());
            }
            assert_eq!(BlockFormat::from_ggml(format.facts().0), Some(format));
        }
        assert_eq!(BlockFormat::from_ggml(40), None);
    }

    #[test]
    fn rounding_stays_within_half_a_step() {
        let values: [f32; GROUP] = std::array::from_fn(|i| (i as f32 * 0.9).sin() * 3.0 + 0.5);
        let eight = QuantGroup::eight_bits(&values);
        let four = QuantGroup::four_bits(&values);
        for (i, value) in values.into_iter().enumerate() {
            let error = (eight.weight(BlockFormat::Q8_0.layout(), i) - value).abs();
            assert!(error <= eight.scales[0] * 0.51, "{error}");
            let error = (four.weight(BlockFormat::Q4_1.layout(), i) - value).abs();
            assert!(error <= four.scales[0] * 0.55, "{error}");
        }
        assert_eq!(QuantGroup::eight_bits(&[0.0; GROUP]).weight(BlockFormat::Q8_0.layout(), 3), 0.0);
        assert_eq!(QuantGroup::four_bits(&[2.0; GROUP]).weight(BlockFormat::Q4_1.layout(), 3), 2.0);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blocks");
        std::fs::write(&path, [0; 40]).unwrap();
        let file = WeightFile::open(&path).unwrap();
        let tensor =
            |range, rows, columns| BlockTensor::new(file.clone(), range, BlockFormat::Q4_1, rows, columns);
        assert!(tensor(0..40, 2, 32).is_ok());
        for (range, rows, columns) in [(0..40, 1, 32), (0..60, 3, 32), (0..40, 2, 33), (0..0, usize::MAX, 64)]
        {
            assert!(tensor(range, rows, columns).is_err());
        }
    }
}
