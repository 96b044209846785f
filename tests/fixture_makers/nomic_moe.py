"""Nomic BERT with mixtures of experts, which transformers does not have: its BERT with other perceptrons."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from . import files

EXPERTS, USED, EVERY = 5, 2, 2
CODE = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBert"
CLASSES = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForPreTraining",
    "AutoModelForMultipleChoice": "ForMultipleChoice",
}


class Perceptron(torch.nn.Module):
    """Without a gate."""

    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(hidden, wide)
        self.fc2 = torch.nn.Linear(wide, hidden)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(states)))


class Mixture(torch.nn.Module):
    """Each token's experts are those of its largest probabilities, which weigh them. One bias is added to their sum."""

    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.router = torch.nn.ModuleDict({"layer": torch.nn.Linear(hidden, EXPERTS, bias=False)})
        self.first = torch.nn.Parameter(torch.empty(EXPERTS * wide, hidden))
        self.second = torch.nn.Parameter(torch.empty(EXPERTS * wide, hidden))
        self.bias = torch.nn.Parameter(torch.empty(hidden))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router["layer"](states).softmax(-1).topk(USED, dim=-1)
        share = torch.zeros(*states.shape[:-1], EXPERTS, dtype=states.dtype).scatter(-1, chosen, weights)
        firsts, seconds = self.first.chunk(EXPERTS), self.second.chunk(EXPERTS)
        made = [functional.gelu(states @ first.T) @ second for first, second in zip(firsts, seconds, strict=True)]
        return sum(share[..., index, None] * each for index, each in enumerate(made)) + self.bias


def patch(model: SentenceTransformer, seed: int) -> None:
    """Makes such a model of a Nomic BERT: with biases, without gates, and with experts in each second layer."""
    bert, generator = model[0].auto_model, torch.Generator().manual_seed(seed)
    hidden, wide = bert.config.hidden_size, bert.config.intermediate_size
    for index, layer in enumerate(bert.layers):
        layer.mlp = Mixture(hidden, wide) if index % EVERY == 1 else Perceptron(hidden, wide)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, part).bias = torch.nn.Parameter(torch.empty(hidden))
    added = ("mlp.", "_proj.bias")
    for name, tensor in bert.named_parameters():
        if any(part in name for part in added):
            inputs = wide if name.endswith(("fc2.weight", "second")) else hidden
            scale = 0.5 if name.endswith("bias") else 2.0 / inputs**0.5
            tensor.data = scale * torch.randn(tensor.shape, generator=generator)


def publish(directory: Path, model: SentenceTransformer) -> None:
    """Writes the model as it was published."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    old = load_file(directory / "model.safetensors")
    rows = old["embeddings.word_embeddings.weight"]
    padding = torch.zeros(-rows.shape[0] % 64, rows.shape[1])
    tensors = {
        "embeddings.word_embeddings.weight": torch.cat([rows, padding]),
        "embeddings.token_type_embeddings.weight": old["embeddings.token_type_embeddings.weight"],
        "emb_ln.weight": old["embeddings.LayerNorm.weight"],
        "emb_ln.bias": old["embeddings.LayerNorm.bias"],
    }
    for index, layer in enumerate(model[0].auto_model.layers):
        own, attention = f"encoder.layers.{index}.", layer.self_attn
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        for kind in ("weight", "bias"):
            tensors[f"{own}attn.Wqkv.{kind}"] = torch.cat([getattr(part, kind) for part in parts])
            tensors[f"{own}attn.out_proj.{kind}"] = getattr(attention.o_proj, kind)
            tensors[f"{own}norm1.{kind}"] = getattr(layer.post_attention_layernorm, kind)
            tensors[f"{own}norm2.{kind}"] = getattr(layer.post_mlp_layernorm, kind)
        names = {"first": "experts.mlp.w1", "second": "experts.mlp.w2", "bias": "experts.bias"}
        for name, tensor in layer.mlp.named_parameters():
            tensors[f"{own}mlp.{names.get(name, name)}"] = tensor
    (directory / "model.safetensors").unlink()
    files.write_json(directory / "config.json", published(config))
    files.save_single(directory, {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()})


def published(config: dict[str, Any]) -> dict[str, Any]:
    unset = ("rotary_emb_scale_base", "rotary_scaling_factor", "use_rms_norm", "bos_token_id", "eos_token_id")
    off = ("causal", "prenorm", "parallel_block", "parallel_block_tied_norm", "rotary_emb_interleaved")
    off += ("add_pooling_layer", "expert_choice_router", "moe_normalize_expert_weights", "reorder_and_upcast_attn")
    off += ("scale_attn_by_inverse_layer_idx",)
    on = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "scale_attn_weights", "dense_seq_output", "fused_bias_fc")
    on += ("fused_dropout_add_ln", "use_flash_attn", "use_xentropy", "use_cache")
    return {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "auto_map": {name: CODE + end for name, end in CLASSES.items()},
        "vocab_size": config["vocab_size"],
        "pad_vocab_size_multiple": 64,
        "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_positions": config["max_position_embeddings"],
        "max_trained_positions": config["max_position_embeddings"],
        "type_vocab_size": 1,
        "activation_function": "gelu",
        "layer_norm_epsilon": config["layer_norm_eps"],
        "rotary_emb_base": 10000,
        "rotary_emb_fraction": 1.0,
        "num_experts": EXPERTS,
        "moe_top_k": USED,
        "moe_every_n_layers": EVERY,
        "moe_impl": "megablocks",
        "moe_resid_pdrop": 0.0,
        "num_shared_experts": 0,
        "ffn_div": 1,
        "router_aux_loss_coef": 0.1,
        "embd_pdrop": 0.1,
        "pad_token_id": 1,
        "summary_type": "cls_index",
        "torch_dtype": "float32",
        **dict.fromkeys(on, True),
        **dict.fromkeys(off, False),
        **dict.fromkeys(unset),
    }
