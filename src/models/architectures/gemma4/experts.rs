//! The experts next to the perceptron of a layer: both read the states after attention, each through a norm of its own, and the
//! sum of what they make, each normalized, is normalized once more.

use crate::Result;
use crate::compute::{ExpertNorms, ExpertRouting, ExpertScores, Matrix, Weight};
use crate::models::architectures::experts::{finite_numbers, fused_experts, stacked_experts};
use crate::models::architectures::tensors::{
    ExpertMatrices, ExpertTensors, NormTensors, SharedTensors, Tensors,
};

/// The sizes of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertShape {
    /// Experts of a layer.
    pub count: usize,
    /// Of them, those that a token uses.
    pub used: usize,
    /// Columns between the matrices of an expert.
    pub intermediate: usize,
}

impl ExpertShape {
    /// The tensors of the experts of one layer, whose names `name` completes, for states of `hidden` numbers and norms with
    /// `epsilon`. `perceptron` has the gate, first and second matrix of the layer's perceptron.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; [`Error::Unsupported`](crate::Error::Unsupported) for a factor of an
    /// expert that is not finite.
    pub(super) fn tensors(
        self,
        tensors: &dyn Tensors,
        name: &dyn Fn(&str) -> String,
        (hidden, epsilon): (usize, f32),
        perceptron: [Matrix; 3],
    ) -> Result<ExpertTensors> {
        let norm = |scale| NormTensors { scale, shift: None, epsilon };
        let own_norm = |part: &str| tensors.vector(&name(&format!("{part}.weight")), hidden).map(norm);
        // The router's states are normalized, multiplied by its scale, and divided by the root of their length.
        let scale = tensors.vector(&name("router.scale"), hidden)?.to_f32()?;
        let root = (hidden as f32).sqrt().recip();
        let scale: Vec<f32> = scale.iter().map(|x| x * root).collect();
        let factors = name("router.per_expert_scale");
        let [both, gates, ups, downs] = ["gate_up_proj", "gate_proj", "up_proj", "down_proj"]
            .map(|part| name(&format!("experts.{part}")));
        let shape = [self.intermediate, hidden];
        // The gates are apart in some GGUF files.
        let experts = match tensors.contains(&gates) {
            true => stacked_experts(tensors, &[gates, ups, downs], self.count, shape)?,
            false => fused_experts(tensors, &[both, downs], self.count, shape)?,
        };
        Ok(ExpertTensors {
            router: (tensors.matrix(&name("router.proj.weight"), [self.count, hidden])?, None),
            routing: ExpertRouting {
                used: self.used,
                scores: ExpertScores::Softmax,
                normalized: Some(0.0),
                factor: 1.0,
            },
            choice_bias: None,
            weight_factors: Some(finite_numbers(tensors, &factors, self.count, "a factor")?),
            experts: experts
                .into_iter()
                .map(|matrices| ExpertMatrices::gated(matrices.map(|matrix| (matrix, None))))
                .collect(),
            shared: Some(Box::new(SharedTensors { matrices: perceptron, gate: None })),
            norms: Some(Box::new(ExpertNorms {
                router: norm(Weight::from_f32(&scale, &[hidden])?),
                input: own_norm("pre_feedforward_layernorm_2")?,
                output: own_norm("post_feedforward_layernorm_2")?,
                shared_output: own_norm("post_feedforward_layernorm_1")?,
            })),
            bias: None,
        })
    }
}
