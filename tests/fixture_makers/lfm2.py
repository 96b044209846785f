"""LFM2's encoder, which transformers does not have: its decoder, in which every token sees those after it too."""

from typing import Any

import torch
from sentence_transformers import SentenceTransformer


class CenteredConvolution(torch.nn.Module):
    """Each row with as many before it as after it; of an even number, one more before it."""

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        assert hidden_states.shape[0] == 1, "texts alone have no padding"
        before, after, states = self.causal.in_proj(hidden_states).transpose(1, 2).chunk(3, dim=1)
        gated, weight, bias = before * states, self.causal.conv.weight, self.causal.conv.bias
        length, size = gated.shape[2], weight.shape[2]
        padded = torch.nn.functional.pad(gated, (size // 2, size - 1 - size // 2))
        mixed = sum(weight[:, 0, tap, None] * padded[:, :, tap : tap + length] for tap in range(size))
        mixed = mixed if bias is None else mixed + bias[:, None]
        return self.causal.out_proj((after * mixed).transpose(1, 2))


def see_all(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Without a mask, and not causal."""
    return args, {**kwargs, "attention_mask": None}


def patch(model: SentenceTransformer) -> None:
    """Makes the encoder of a decoder."""
    for layer in model[0].auto_model.layers:
        if hasattr(layer, "conv"):
            layer.conv = CenteredConvolution(layer.conv)
        else:
            layer.self_attn.is_causal = False
            layer.self_attn.register_forward_pre_hook(see_all, with_kwargs=True)
