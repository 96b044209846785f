//! Numbers of bytes as people read them.

/// Bytes in the largest unit that they reach: "512 B", "1.5 KiB", "16 MiB", "90.2 MiB", "1.25 GiB". The units are powers
/// of 1024, as their names say. Python's `size_text` writes the same.
pub(crate) fn size_text(bytes: u64) -> String {
    let (shift, unit, digits) = match bytes {
        0..=1023 => return format!("{bytes} B"),
        _ if bytes < 1 << 20 => (10, "KiB", 1),
        _ if bytes < 1 << 30 => (20, "MiB", 1),
        _ => (30, "GiB", 2),
    };
    let whole = bytes.trailing_zeros() >= shift;
    let digits = if whole { 0 } else { digits };
    format!("{:.digits$} {unit}", bytes as f64 / (1_u64 << shift) as f64)
}

#[cfg(test)]
mod tests {
    use super::size_text;

    #[test]
    fn sizes_are_written_with_powers_of_1024() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (16 << 20, "16 MiB"),
            (94_580_000, "90.2 MiB"),
            (1 << 30, "1 GiB"),
            (1_342_177_280, "1.25 GiB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
    }
}
