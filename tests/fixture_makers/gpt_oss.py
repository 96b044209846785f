"""A tiny GPT-OSS twice: its experts in four bits, as it is published, and as the plain numbers that these stand for.

The reference is that of the plain numbers, in float32.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from . import causal, families, files
from .causal import MESSAGES, POSITIONS
from .versions import VERSIONS
from .weights import random_weights

NAME, PACKED = "gpt_oss", "gpt_oss_mxfp4"
HIDDEN, WIDE, EXPERTS = 32, 64, 4
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
GROUP = 32
QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def config(vocabulary: int) -> dict[str, Any]:
    end = vocabulary - 3
    return {
        "model_type": "gpt_oss",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": POSITIONS,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "experts_per_token": 2,
        "swiglu_limit": 7.0,
        "initial_context_length": 16,
        "router_aux_loss_coef": 0.9,
        "rope_theta": 1000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 16,
            "truncate": False,
        },
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def packed(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes and scales of `[experts, rows, columns]`, and the numbers that they stand for."""
    groups = matrices.reshape(*matrices.shape[:2], -1, GROUP)
    exponents = torch.floor(torch.log2(groups.abs().amax(dim=-1, keepdim=True) / 6.0)) + 1
    scaled = groups / 2**exponents
    values = torch.tensor(VALUES)
    codes = (scaled.abs().unsqueeze(-1) - values).abs().argmin(dim=-1)
    found = torch.where(scaled < 0, -values[codes], values[codes]) * 2**exponents
    codes = codes + 8 * (scaled < 0).long()
    blocks = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
    scales = (exponents.squeeze(-1) + 127).to(torch.uint8)
    return blocks, scales, found.reshape(matrices.shape)


def write_weights(root: Path, seed: int) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(root / NAME))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = random_weights(shapes, seed, gain=2.0, embedding=0.3)
    plain, narrow = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            blocks, scales, found = packed(tensor.transpose(1, 2).contiguous())
            narrow |= {f"{name}_blocks": blocks.contiguous(), f"{name}_scales": scales.contiguous()}
            plain[name] = found.transpose(1, 2).contiguous().to(torch.bfloat16)
        else:
            plain[name] = narrow[name] = tensor.to(torch.bfloat16).contiguous()
    save_file(plain, root / NAME / "model.safetensors", metadata={"format": "pt"})
    save_file(narrow, root / PACKED / "model.safetensors", metadata={"format": "pt"})


def make(root: Path) -> None:
    for name in (NAME, PACKED):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
        vocabulary = causal.write_tokenizer(root / name, "llama", POSITIONS).get_vocab_size()
        more = {"quantization_config": QUANTIZATION} if name == PACKED else {}
        files.write_json(root / name / "config.json", {**config(vocabulary), **more})
    for seed in range(100, 200):
        write_weights(root, seed)
        try:
            cases, error = families.answers(root / NAME)
        except ValueError as unfit:
            print(f"{NAME}, seed {seed}: {unfit}", flush=True)
            continue
        break
    tokenizer = AutoTokenizer.from_pretrained(root / NAME)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    found = {
        "made_with": VERSIONS,
        "seed": seed,
        "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        "cases": cases,
        "float64_error": float(f"{error:.1e}"),
        "chat": {"messages": MESSAGES, "text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]},
    }
    for name in (NAME, PACKED):
        files.write_json(root / name / "reference.json", found)
        size = sum(file.stat().st_size for file in (root / name).rglob("*") if file.is_file())
        print(f"{name}: seed {seed}, {size / 1000:.0f} kB, float64 error {found['float64_error']}", flush=True)
