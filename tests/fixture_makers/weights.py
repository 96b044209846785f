"""Seeded weights."""

import re

import torch

EMBEDDING = re.compile(r"embeddings|embed_tokens|wte|wpe|embed_in")


def random_weights(
    shapes: dict[str, torch.Size], seed: int, gain: float = 2.5, embedding: float = 1.0
) -> dict[str, torch.Tensor]:
    """Name → float32 tensor, in the order of the names.

    A linear layer multiplies the deviation of its input by `gain`: 2.5 reaches the tails of GELU and the
    peaks of the softmax, where the usual 0.02 would hide an approximation. `embedding` is the deviation of
    the tables.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in sorted(shapes):
        noise = torch.randn(shapes[name], generator=generator)
        if name.endswith("weight") and noise.ndim == 1:  # a norm
            tensors[name] = 1 + 0.2 * noise
        elif name.endswith("layer_scalar"):  # a factor of the states after a layer of Gemma 4
            tensors[name] = 0.7 + 0.2 * noise
        elif name.endswith("bias"):
            tensors[name] = 0.5 * noise
        elif EMBEDDING.search(name):
            tensors[name] = embedding * noise
        else:
            shape = shapes[name]
            # GPT-2 stores [in, out]; a convolution has [out, in, taps].
            inputs = shape[0] if ".c_" in name else shape[1:].numel()
            # The matrices of several experts.
            inputs = shape[2] if ".experts." in name else inputs
            # ConvBERT makes its scores of a product, of what one layer and what two layers have made.
            scores = "conv_kernel_layer" in name
            tensors[name] = gain / inputs**0.5 * noise / (gain**3 if scores else 1)
    return tensors
