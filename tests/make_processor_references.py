"""Writes tests/fixtures/generation/processors.json: logits before and after transformers' logits processors.

Run with PyTorch and transformers 5: python tests/make_processor_references.py
"""

import functools
import json
import math
import random
from pathlib import Path

import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

# Which of several equal logits top-p drops first depends, by default, on the machine that sorts.
torch.sort = functools.partial(torch.sort, stable=True)

VOCABULARY = 97
END = 2
TARGET = Path(__file__).parent / "fixtures" / "generation" / "processors.json"

SETTINGS = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 12},
    {"do_sample": True, "temperature": 0.6},
    {"do_sample": True, "temperature": 1.7},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_k": 10},
    {"do_sample": True, "top_k": 500},
    {"do_sample": True, "top_p": 0.85},
    {"do_sample": True, "top_p": 0.05},
    {"do_sample": True, "top_p": 0.5, "top_k": 20},
    {"do_sample": True, "min_p": 0.1},
    {"do_sample": True, "min_p": 1.0},
    {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.85,
        "top_k": 40,
        "no_repeat_ngram_size": 3,
        "repetition_penalty": 1.3,
    },
    {
        "do_sample": True,
        "temperature": 1.4,
        "top_p": 0.95,
        "top_k": 30,
        "min_p": 0.05,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.1,
        "min_new_tokens": 5,
    },
]


def processors(settings: dict, prompt: int):
    """transformers' own list, in transformers' own order."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1))
    config = GenerationConfig(**{"do_sample": False, "top_k": 0, **settings}, eos_token_id=END, pad_token_id=END)
    model._prepare_special_tokens(config, device="cpu")
    return model._get_logits_processor(generation_config=config, input_ids_seq_length=prompt, device="cpu")


def rounded(values: torch.Tensor) -> list:
    return [None if math.isinf(value) else value for value in values.tolist()]


def main() -> None:
    generator = torch.Generator().manual_seed(7)
    shuffle = random.Random(7)
    cases = []
    for settings in SETTINGS:
        for ties in (False, True):
            logits = torch.randn(VOCABULARY, generator=generator) * 3
            if ties:
                logits = torch.round(logits)
            length = shuffle.randint(5, 40)
            history = [shuffle.randrange(12) for _ in range(length)]
            prompt = shuffle.randint(1, length)
            ids = torch.tensor([history])
            processed = processors(settings, prompt)(ids, logits[None].clone())[0]
            cases.append(
                {
                    "name": f"{settings}, {'ties' if ties else 'no ties'}",
                    "params": settings,
                    "history": history,
                    "prompt": prompt,
                    "logits": rounded(logits),
                    "processed": rounded(processed),
                }
            )
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
