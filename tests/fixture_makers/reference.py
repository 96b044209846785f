"""What sentence-transformers says of a model directory: ids and vectors, one text at a time."""

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from . import files

Prompt = dict[str, str]  # "prompt" or "prompt_name", as `encode` takes them
POOLINGS = ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")


def load(directory: Path) -> SentenceTransformer:
    """On the CPU, in float32 whatever the file holds, with the attention that is written out."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)


def token_ids(model: SentenceTransformer, text: str) -> list[int]:
    ids: list[int] = model.preprocess([text])["input_ids"][0].tolist()
    return ids


def cases(
    model: SentenceTransformer, texts: list[str], prompt: Prompt | None = None, decimals: int | None = None
) -> list[dict[str, Any]]:
    """Each text alone: its ids (with the prompt) and its vector."""
    prompt = prompt or {}
    named = model.prompts.get(prompt.get("prompt_name") or model.default_prompt_name)
    prefix = prompt.get("prompt", named or "")
    return [
        {
            **prompt,
            "text": text,
            "ids": token_ids(model, prefix + text),
            "embedding": files.floats(model.encode([text], show_progress_bar=False, **prompt)[0], decimals),
        }
        for text in texts
    ]


def float64_error(model: SentenceTransformer, references: list[dict[str, Any]]) -> float:
    """Largest difference of the references to the same model in float64: what float32 itself costs."""
    exact = model.double().encode([case["text"] for case in references], batch_size=1, show_progress_bar=False)
    found = torch.tensor([case["embedding"] for case in references], dtype=torch.float64)
    return float((torch.as_tensor(exact) - found).abs().max())


def pooled(model: SentenceTransformer, texts: list[str]) -> list[dict[str, Any]]:
    """The token states of each text and every pooling of them."""
    result = []
    for text in texts:
        with torch.no_grad():
            features = model[0](model.preprocess([text]))
            states = features["token_embeddings"]
            inputs = {"token_embeddings": states, "attention_mask": features["attention_mask"]}
            vectors = {
                mode: files.floats(Pooling(states.shape[-1], mode)(dict(inputs))["sentence_embedding"][0])
                for mode in POOLINGS
            }
        result.append({"text": text, "states": [files.floats(row) for row in states[0]], "poolings": vectors})
    return result
