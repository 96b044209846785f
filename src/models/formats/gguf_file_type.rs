//! The type of most weights of a GGUF file, by the names that llama.cpp and Ollama give it.

use std::collections::BTreeMap;

use super::gguf::{Gguf, GgufValue};

/// The numbers of `general.file_type`, and their names (llama.cpp's `llama_ftype`).
const FILE_TYPES: [(i128, &str); 36] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    // Of the newer converters, and of Ollama's.
    (38, "MXFP4"),
    (4, "MXFP4"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (39, "NVFP4"),
    (40, "Q1_0"),
];

/// The numbers of tensors' types, and their names (ggml's `ggml_type`).
const TENSOR_TYPES: [(u32, &str); 25] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl Gguf {
    /// What `general.file_type` says; without it, the type of most weights. `None` where neither has a name.
    pub(crate) fn file_type(&self) -> Option<&'static str> {
        let said = match self.get("general.file_type") {
            Some(GgufValue::Integer(number)) => {
                FILE_TYPES.iter().find(|(known, _)| known == number).map(|(_, name)| *name)
            }
            _ => None,
        };
        said.or_else(|| {
            let mut weights = BTreeMap::<u32, usize>::new();
            for (kind, count) in self.stored_types() {
                *weights.entry(kind).or_default() += count;
            }
            let (kind, _) = weights.into_iter().max_by_key(|(_, count)| *count)?;
            TENSOR_TYPES.iter().find(|(known, _)| *known == kind).map(|(_, name)| *name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::gguf::tests::{Writer, f32s};
    use super::*;

    fn file_type(writer: &Writer) -> Option<&'static str> {
        let (_folder, path) = writer.clone().write();
        Gguf::open(&path).unwrap().file_type()
    }

    #[test]
    fn files_say_their_type_or_their_tensors_do() {
        let blocks = Writer::default().tensor("norm", &[32], 0, &f32s(&[0.0; 32])).tensor(
            "blk.0.ffn_up.weight",
            &[2, 32],
            3,
            &[0; 40],
        );
        assert_eq!(file_type(&blocks), Some("Q4_1"));
        for (number, name) in
            [(15, "Q4_K_M"), (7, "Q8_0"), (1, "F16"), (32, "BF16"), (0, "F32"), (1024, "Q4_1")]
        {
            assert_eq!(
                file_type(&blocks.clone().number("general.file_type", number)),
                Some(name),
                "{number}"
            );
        }
        assert_eq!(file_type(&blocks.text("general.file_type", "15")), Some("Q4_1"));
        assert_eq!(file_type(&Writer::default()), None);
    }

    #[test]
    fn every_number_has_one_name() {
        for (index, (number, _)) in FILE_TYPES.iter().enumerate() {
            assert!(FILE_TYPES[..index].iter().all(|(other, _)| other != number), "{number}");
        }
        for (index, (number, _)) in TENSOR_TYPES.iter().enumerate() {
            assert!(TENSOR_TYPES[..index].iter().all(|(other, _)| other != number), "{number}");
        }
    }
}
