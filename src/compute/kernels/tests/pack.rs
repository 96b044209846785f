//! Packing of rows into panels.

use super::*;

#[test]
fn values_become_panel_rows() {
    for kernels in all() {
        for (rows, columns) in [(0, 3), (1, 1), (2, kernels.width), (7, 5), (8, kernels.width - 1)] {
            let source = random(rows * columns, 14);
            for format in FORMATS {
                let (bytes, values) = operand(format, &source);
                let mut panel = Guarded::new(&vec![u32::MAX; units(format, rows) * kernels.width]);
                // SAFETY: `bytes` has `rows` rows of `columns` elements in `format`.
                unsafe {
                    kernels.pack_rows(
                        format,
                        bytes.as_ptr(),
                        columns * format.bytes(),
                        rows,
                        columns,
                        &mut panel,
                    );
                }
                let read = |row: usize, column: usize| match format {
                    DType::F32 => f64::from(f32::from_bits(panel[row * kernels.width + column])),
                    DType::Bf16 => {
                        let unit = panel[row / 2 * kernels.width + column];
                        f64::from(bf16::from_bits((unit >> (16 * (row % 2))) as u16).to_f32())
                    }
                };
                let whole = units(format, rows) * 4 / format.bytes();
                for (row, column) in
                    (0..whole).flat_map(|row| (0..kernels.width).map(move |column| (row, column)))
                {
                    let inside = row < rows && column < columns;
                    let expected = if inside { values[row * columns + column] } else { 0.0 };
                    assert_eq!(read(row, column), expected, "{kernels:?} {format:?} {rows}x{columns}");
                }
            }
        }
    }
}
