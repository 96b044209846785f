"""JinaBERT, which transformers does not have: its BERT with ALiBi added to the scores and a gated perceptron."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from . import files


class GatedLayer(torch.nn.Module):
    """The gate lies before the values, in one matrix."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate, values = (states @ self.weight.T).chunk(2, dim=-1)
        return torch.nn.functional.gelu(gate) * values


def slopes(heads: int) -> list[float]:
    """For a power of two, that many powers of one number; the others lie between those of twice as many."""
    whole = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    return first if whole == heads else first + slopes(2 * whole)[::2][: heads - whole]


def add_bias(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    states = args[0] if args else kwargs["hidden_states"]
    heads = _module.num_attention_heads
    at = torch.arange(states.shape[1], dtype=states.dtype)
    slope = torch.tensor(slopes(heads), dtype=states.dtype)[:, None, None]
    bias = -(at[None, :] - at[:, None]).abs() * slope
    mask = kwargs.get("attention_mask")
    return args, {**kwargs, "attention_mask": bias[None] if mask is None else mask + bias[None]}


def patch(model: SentenceTransformer, seed: int) -> None:
    """Makes a JinaBERT of a BERT."""
    bert = model[0].auto_model
    bert.embeddings.position_embeddings.weight.data.zero_()
    generator = torch.Generator().manual_seed(seed)
    for layer in bert.encoder.layer:
        rows, columns = layer.intermediate.dense.weight.shape
        layer.intermediate = GatedLayer(2.5 / columns**0.5 * torch.randn(2 * rows, columns, generator=generator))
        layer.attention.self.register_forward_pre_hook(add_bias, with_kwargs=True)


def publish(directory: Path, model: SentenceTransformer) -> None:
    """Writes the model as it was published: a `bert` with code of its own."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    tensors = load_file(directory / "model.safetensors")
    del tensors["embeddings.position_embeddings.weight"]
    for index, layer in enumerate(model[0].auto_model.encoder.layer):
        old, new = f"encoder.layer.{index}.", f"encoder.layer.{index}.mlp."
        for kind in ("weight", "bias"):
            del tensors[f"{old}intermediate.dense.{kind}"]
            tensors[f"{new}wo.{kind}"] = tensors.pop(f"{old}output.dense.{kind}")
            tensors[f"{new}layernorm.{kind}"] = tensors.pop(f"{old}output.LayerNorm.{kind}")
        tensors[f"{new}gated_layers.weight"] = layer.intermediate.weight.detach().float().contiguous()
    code = {"AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig"}
    code["AutoModel"] = "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"
    code["AutoModelForMaskedLM"] = "jinaai/jina-bert-implementation--modeling_bert.JinaBertForMaskedLM"
    settings = {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"}
    settings |= {"architectures": ["JinaBertForMaskedLM"], "auto_map": code, "attn_implementation": "torch"}
    (directory / "model.safetensors").unlink()
    files.write_json(directory / "config.json", {**config, **settings})
    files.save_single(directory, tensors)
