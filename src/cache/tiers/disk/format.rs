//! The files of a segment.
//!
//! ```text
//! ID.vec   header │ values, one after another
//! ID.key   header │ entries of 40 bytes: key 16 │ offset 8 │ length 4 │ seconds 4 │ CRC of key and value 4 │ CRC of the entry 4
//! ```
//! All little-endian. A value is written before its entry. An entry that is cut off or damaged is no entry; a value that
//! is cut off or damaged has another checksum than its entry says.

use super::super::key::TierKey;

/// Raised when the layout changes. Files of another version are left alone.
const VERSION: u32 = 1;
pub(super) const HEADER: usize = 16;
pub(super) const ENTRY: usize = 40;
/// No value is longer: a length beyond it is damage.
pub(super) const LONGEST_VALUE: u32 = 64 << 20;

/// The first bytes of both files.
pub(super) fn header() -> [u8; HEADER] {
    let mut header = *b"MM-cache\0\0\0\0\0\0\0\0";
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header
}

/// Where a value is, and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskEntry {
    pub(super) key: TierKey,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// Seconds since 1970 at which it was stored.
    pub(super) stored: u32,
    /// Of the key and the value.
    pub(super) checksum: u32,
}

impl DiskEntry {
    pub(super) fn new(key: TierKey, offset: u64, value: &[u8], stored: u32) -> Option<Self> {
        let length = u32::try_from(value.len()).ok().filter(|length| *length <= LONGEST_VALUE)?;
        Some(Self { key, offset, length, stored, checksum: checksum(key, value) })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(self.key.0);
        out.extend(self.offset.to_le_bytes());
        out.extend(self.length.to_le_bytes());
        out.extend(self.stored.to_le_bytes());
        out.extend(self.checksum.to_le_bytes());
        let own = crc32fast::hash(&out[start..]);
        out.extend(own.to_le_bytes());
    }

    /// The entry that `bytes` are; `None` when they are damaged.
    pub(super) fn read(bytes: &[u8; ENTRY]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if number(36) != crc32fast::hash(&bytes[..36]) {
            return None;
        }
        let (mut key, mut offset) = ([0; 16], [0; 8]);
        key.copy_from_slice(&bytes[..16]);
        offset.copy_from_slice(&bytes[16..24]);
        let entry = Self {
            key: TierKey(key),
            offset: u64::from_le_bytes(offset),
            length: number(24),
            stored: number(28),
            checksum: number(32),
        };
        (entry.length <= LONGEST_VALUE).then_some(entry)
    }

    /// The last entry of an export of `count` results. None of them has its key and no value.
    pub(super) fn end(count: u64) -> Self {
        let key = TierKey([0; 16]);
        Self { key, offset: count, length: 0, stored: 0, checksum: checksum(key, &[]) }
    }

    /// Whether `value` is what was stored.
    pub(super) fn matches(&self, value: &[u8]) -> bool {
        value.len() == self.length as usize && checksum(self.key, value) == self.checksum
    }
}

fn checksum(key: TierKey, value: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&key.0);
    sum.update(value);
    sum.finalize()
}
