//! MXFP4 as safetensors files hold it: the codes of a matrix in one tensor, two in a byte, and the scales of their groups of
//! 32 in another one. Blocks of GGUF files have a scale and then its codes, in another order.
//!
//! Open Compute Project, "OCP Microscaling Formats (MX) Specification", 2023.

/// Weights of a group.
pub(crate) const GROUP: usize = 32;

/// Bytes of the codes of a group.
pub(crate) const CODES: usize = GROUP / 2;

/// Bytes of a group in a GGUF file.
pub(crate) const BLOCK: usize = CODES + 1;

/// The largest scale whose products are finite: 2^15. The codes are doubled weights.
const LARGEST: u8 = 127 + 15;

/// Writes the groups of a row as a GGUF file has them into `out`.
///
/// # Errors
/// A scale that is no number or too large.
///
/// # Panics
/// If the lengths are not those of as many groups.
pub(crate) fn write_blocks(codes: &[u8], scales: &[u8], out: &mut [u8]) -> Result<(), String> {
    assert!(codes.len() == scales.len() * CODES && out.len() == scales.len() * BLOCK, "groups of MXFP4");
    for ((codes, &scale), block) in
        codes.as_chunks::<CODES>().0.iter().zip(scales).zip(out.as_chunks_mut::<BLOCK>().0)
    {
        if scale > LARGEST {
            return Err(format!(
                "a scale of its MXFP4 weights has the exponent {scale}; supported is 0 to {LARGEST}: the file is damaged"
            ));
        }
        block[0] = scale;
        // Weight 2i is in the lower half of byte i; in a block, weight i is.
        let code = |index: usize| codes[index / 2] >> (4 * (index % 2)) & 15;
        for (index, byte) in block[1..].iter_mut().enumerate() {
            *byte = code(index) | code(index + CODES) << 4;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::linear::{BlockFormat, BlockTensor};

    /// The weights that the codes stand for.
    const VALUES: [f32; 16] =
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

    #[test]
    fn blocks_have_the_weights_of_codes_and_scales() {
        let scales = [127, 120, 130, 1, 142];
        let codes: Vec<u8> = (0..scales.len() * CODES).map(|i| (i * 37 + i / 16 * 11) as u8).collect();
        let mut blocks = vec![0; scales.len() * BLOCK];
        write_blocks(&codes, &scales, &mut blocks).unwrap();
        let found = BlockTensor::owned(blocks, BlockFormat::Mxfp4, 1, scales.len() * GROUP).unwrap().to_f32();
        for (index, found) in found.unwrap().into_iter().enumerate() {
            let code = codes[index / 2] >> (4 * (index % 2)) & 15;
            let scale = (f32::from(scales[index / GROUP]) - 127.0).exp2();
            assert_eq!(found, VALUES[usize::from(code)] * scale, "{index}");
        }
    }

    #[test]
    fn scales_without_finite_products_are_refused() {
        for scale in [143, 255] {
            let error = write_blocks(&[0; CODES], &[scale], &mut [0; BLOCK]).unwrap_err();
            assert!(error.contains(&format!("exponent {scale}")), "{error}");
        }
    }
}
