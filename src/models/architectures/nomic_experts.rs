//! The mixtures of experts of nomic-embed-text-v2-moe, whose perceptrons have no gate.
//!
//! Nussbaum and Duderstadt, "Training Sparse Mixture Of Experts Text Embedding Models", 2025.

use serde::Deserialize;

use super::experts::MOST_EXPERTS;
use super::family::ConfigFile;
use super::gpt2::transposed;
use super::tensors::{ExpertMatrices, ExpertTensors, PrefixedTensors, Tensors};
use crate::Result;
use crate::compute::{ExpertRouting, ExpertScores, Matrix};

/// What `config.json` says of experts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct NomicExpertConfig {
    num_experts: usize,
    moe_top_k: Option<usize>,
    moe_every_n_layers: usize,
    moe_normalize_expert_weights: bool,
    expert_choice_router: bool,
    num_shared_experts: usize,
    ffn_div: Option<f64>,
}

/// The experts of a model whose configuration was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NomicExperts {
    /// Experts of a layer.
    count: usize,
    /// Those that each row uses.
    used: usize,
    /// Of so many layers, the second one has experts.
    every: usize,
}

impl NomicExperts {
    /// What `file` says of the experts of a model of `layers`, if it has any.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) naming the key whose value is not computed.
    pub(super) fn read(file: &ConfigFile<'_>, layers: usize) -> Result<Option<Self>> {
        let config: NomicExpertConfig = file.parse()?;
        for (key, is_computed, supported) in [
            ("moe_normalize_expert_weights", !config.moe_normalize_expert_weights, "false"),
            ("expert_choice_router", !config.expert_choice_router, "false"),
            ("num_shared_experts", config.num_shared_experts == 0, "0"),
            ("ffn_div", config.ffn_div.is_none_or(|divisor| divisor == 1.0), "1"),
        ] {
            if !is_computed {
                return Err(file.refuse(key, supported));
            }
        }
        let every = config.moe_every_n_layers;
        if config.num_experts == 0 {
            // No layer is the second of one.
            return match every > 1 && layers > 1 {
                true => {
                    let reason =
                        format!("its moe_every_n_layers is {every}, and its num_experts is 0 or missing");
                    Err(file.unsupported(reason))
                }
                false => Ok(None),
            };
        }
        if every < 2 {
            return Err(file.unsupported(format!(
                "its num_experts is {}, and its moe_every_n_layers is {every}, which gives experts to no layer; supported is 2 \
                 or more",
                config.num_experts
            )));
        }
        let Some(used) = config.moe_top_k else {
            return Err(file.unsupported("it has num_experts and no moe_top_k"));
        };
        if config.num_experts > MOST_EXPERTS || !(1..=config.num_experts).contains(&used) {
            return Err(file.unsupported(format!(
                "its moe_top_k is {used}, of {} experts; supported is 1 to num_experts, and up to {MOST_EXPERTS} experts",
                config.num_experts
            )));
        }
        Ok(Some(Self { count: config.num_experts, used, every }))
    }

    /// Whether layer `index` has experts.
    pub(super) fn is_in(&self, index: usize) -> bool {
        index % self.every == 1
    }

    /// The tensors of the experts of `layer`, which is the beginning of their names, for states of `hidden` numbers and experts
    /// of `wide`. GGUF files have no bias: llama.cpp leaves it out.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub(super) fn tensors(
        &self,
        tensors: &PrefixedTensors<'_>,
        layer: &str,
        [wide, hidden]: [usize; 2],
    ) -> Result<ExpertTensors> {
        let count = self.count;
        let router = tensors.spelled(layer, &["mlp.router.layer", "ffn_gate_inp"]);
        let gguf = format!("{layer}.ffn_up_exps.weight");
        let (experts, bias) = if tensors.contains(&gguf) {
            let ups = tensors.stacked(&gguf, [count, wide, hidden])?;
            let downs = tensors.stacked(&format!("{layer}.ffn_down_exps.weight"), [count, hidden, wide])?;
            let of = |index| Ok(ungated(part(&ups, index, wide), part(&downs, index, hidden)));
            ((0..count).map(of).collect::<Result<_>>()?, None)
        } else {
            let name = |part: &str| format!("{layer}.mlp.experts.{part}");
            let [ups, downs] =
                ["mlp.w1", "mlp.w2"].map(|part| tensors.matrix(&name(part), [count * wide, hidden]));
            let (ups, downs) = (ups?, downs?);
            // A second matrix is stored as `[inputs, outputs]`.
            let of = |index| {
                let down = Matrix::Plain(transposed(&part(&downs, index, wide))?);
                Ok(ungated(part(&ups, index, wide), down))
            };
            let experts = (0..count).map(of).collect::<Result<_>>()?;
            (experts, Some(tensors.vector(&name("bias"), hidden)?))
        };
        Ok(ExpertTensors {
            router: tensors.maybe_biased(&router, [count, hidden], false)?,
            routing: ExpertRouting {
                used: self.used,
                scores: ExpertScores::Softmax,
                normalized: None,
                factor: 1.0,
            },
            choice_bias: None,
            weight_factors: None,
            experts,
            shared: None,
            bias,
            norms: None,
        })
    }
}

/// The rows of expert `index`, which has so many.
fn part(matrix: &Matrix, index: usize, rows: usize) -> Matrix {
    matrix.slice_rows(index * rows..(index + 1) * rows)
}

fn ungated(up: Matrix, down: Matrix) -> ExpertMatrices {
    ExpertMatrices { gate: None, up: (up, None), down: (down, None) }
}
