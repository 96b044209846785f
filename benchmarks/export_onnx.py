"""Writes DIR/model.onnx (plain), DIR/fused.onnx (onnxruntime's optimizer) and DIR/int8.onnx (the plain one,
weights and activations quantized as sentence-transformers does for AVX-512 VNNI) of a BERT model directory.

    python benchmarks/export_onnx.py MODEL DIR

Inputs input_ids and attention_mask, int64 (batch, tokens); output: states, float32 (batch, tokens, hidden).
"""

import argparse
import warnings
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from transformers import AutoModel

NAMES = ["input_ids", "attention_mask"]


class States(torch.nn.Module):  # type: ignore[misc]
    """The encoder with positional inputs and one output."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states


def main(model: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    encoder = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(1000, 2000, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    plain = out / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The older exporter: the optimizer knows its patterns, and fuses all six attentions of MiniLM.
        torch.onnx.export(
            States(encoder).eval(),
            (ids, mask),
            str(plain),
            input_names=NAMES,
            output_names=["states"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*NAMES, "states"]},
            opset_version=17,
            dynamo=False,
        )
    heads, hidden = encoder.config.num_attention_heads, encoder.config.hidden_size
    fused = optimizer.optimize_model(str(plain), "bert", num_heads=heads, hidden_size=hidden, opt_level=1)
    fused.save_model_to_file(str(out / "fused.onnx"))
    # Quantized operations fuse as the session is made: from the plain graph that is faster.
    quantize_dynamic(plain, out / "int8.onnx", weight_type=QuantType.QInt8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    main(given.model, given.folder)
