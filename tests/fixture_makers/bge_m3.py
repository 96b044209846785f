"""A tiny bge-m3: three results of one pass, by the formula of FlagEmbedding over the states of transformers."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from . import encoder_files, files
from .encoder_files import Encoder
from .texts import REFERENCE
from .versions import VERSIONS
from .weights import random_weights

SPEC = Encoder("bge_m3", 81, architecture="xlm-roberta", tokenizer="unigram", hidden=24, pooling="cls", positions=40)
README = """# bge_m3

A tiny XLM-R of random weights with the two layers that BAAI/bge-m3 has besides: `sparse_linear.pt` (one weight for each
token) and `colbert_linear.pt` (one vector for each token but the first). `tests/make_fixtures.py bge_m3` makes it.

`reference.json` holds what FlagEmbedding's `BGEM3FlagModel` computes (its `modeling.py` and `encoder_only/m3.py`),
written out over the states of transformers:

- dense: the state of the first token, divided by its length;
- sparse: `relu(sparse_linear(state))`, the greatest of each token id, without `<s>`, `</s>`, `<pad>` and `<unk>`;
- multi: `colbert_linear(state)` of all tokens but the first, each divided by its length.
"""


def linear(outputs: int, seed: int) -> torch.nn.Linear:
    layer = torch.nn.Linear(SPEC.hidden, outputs)
    layer.load_state_dict(random_weights({name: value.shape for name, value in layer.state_dict().items()}, seed))
    return layer


def make(root: Path) -> None:
    directory = root / SPEC.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    encoder_files.write(SPEC, directory)
    sparse, multi = linear(1, SPEC.seed + 1), linear(12, SPEC.seed + 2)
    torch.save(sparse.state_dict(), directory / "sparse_linear.pt")
    torch.save(multi.state_dict(), directory / "colbert_linear.pt")
    (directory / "README.md").write_text(README, "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(directory, model_max_length=SPEC.max_length)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}

    def case(text: str) -> dict[str, Any]:
        features = tokenizer(text, truncation=True, max_length=SPEC.max_length, return_tensors="pt")
        ids = features["input_ids"][0].tolist()
        with torch.no_grad():
            states = model(**features).last_hidden_state[0]
            weights = torch.relu(sparse(states))[:, 0].tolist()
            vectors = torch.nn.functional.normalize(multi(states[1:]), dim=-1)
        best: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=True):
            if weight > best.get(token, 0) and token not in unused:
                best[token] = weight
        indices = sorted(best)
        return {
            "text": text,
            "dense": files.floats(torch.nn.functional.normalize(states[0], dim=0)),
            "indices": indices,
            "values": files.floats([best[index] for index in indices]),
            "multi": [files.floats(row) for row in vectors],
        }

    found = {"made_with": VERSIONS, "texts": [case(text) for text in REFERENCE[::4]]}
    files.write_json(directory / "reference.json", found)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{SPEC.name}: {size / 1000:.0f} kB", flush=True)
