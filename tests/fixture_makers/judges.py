"""A tiny language model that judges pairs, as Qwen3-Reranker does, with the answers of `CrossEncoder`."""

import shutil
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM

from . import causal, files
from .scorers import PAIRS
from .texts import LONG
from .versions import VERSIONS
from .weights import random_weights

NAME, SEED, POSITIONS = "qwen3_reranker", 61, 420
INSTRUCTION = "Find the page that answers the question"
# It renders what the format of Qwen3-Reranker's card says.
TEMPLATE = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    '<Instruct>: {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    '| default("Given a web search query, retrieve relevant passages that answer the query") }}\n'
    '<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    '<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>\n'
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)


def make(root: Path) -> None:
    directory = root / NAME
    plain = directory.with_name(f"{NAME}.plain")
    for folder in (directory, plain):
        shutil.rmtree(folder, ignore_errors=True)
    plain.mkdir(parents=True)
    try:
        tokenizer = causal.write_tokenizer(plain, "qwen", POSITIONS)
        tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in ("yes", "no")])
        tokenizer.save(str(plain / "tokenizer.json"), pretty=False)
        settings = causal.config("qwen3", tokenizer.get_vocab_size(), torch.float32)
        end = tokenizer.token_to_id(causal.END)
        settings |= {"max_position_embeddings": POSITIONS, "bos_token_id": end, "eos_token_id": end}
        files.write_json(plain / "config.json", settings)
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(plain))
        shapes = {name: tensor.shape for name, tensor in empty.state_dict().items() if name != "lm_head.weight"}
        files.save_single(plain, random_weights(shapes, SEED, gain=2.0, embedding=0.5))
        transformer = Transformer(
            str(plain),
            transformer_task="text-generation",
            model_kwargs={"dtype": torch.float32, "attn_implementation": "eager"},
            processing_kwargs={"chat_template": {"add_generation_prompt": True}},
            modality_config={
                "text": {"method": "forward", "method_output_name": "logits"},
                "message": {"method": "forward", "method_output_name": "logits", "format": "flat"},
            },
            module_output_name="causal_logits",
        )
        transformer.processor.chat_template = TEMPLATE
        score = LogitScore(tokenizer.token_to_id("yes"), tokenizer.token_to_id("no"))
        model = CrossEncoder(modules=[transformer, score], device="cpu", prompts={"pages": INSTRUCTION})
        model.save(str(directory), create_model_card=False)
    finally:
        shutil.rmtree(plain, ignore_errors=True)
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = CrossEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    pairs = [*PAIRS, ("yes", "no"), (LONG[:200], "<|im_end|>"), ("a", LONG * 2), (LONG * 2, "a")]
    found = {
        "made_with": VERSIONS,
        "max_length": model.max_seq_length,
        "pairs": [case(model, pair) for pair in pairs],
        "prompted": [case(model, pair, "pages") for pair in pairs[1:4]],
    }
    files.write_json(directory / "reference.json", found)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{NAME}: {size / 1000:.0f} kB", flush=True)


def case(model: CrossEncoder, pair: tuple[str, str], prompt_name: str | None = None) -> dict[str, Any]:
    """A pair alone: its ids, the difference of two logits, and its score."""
    prompt = model.prompts[prompt_name] if prompt_name else None
    ids = model.preprocess([pair], prompt=prompt)["input_ids"][0]
    options = {"show_progress_bar": False, "prompt_name": prompt_name}
    logits = model.predict([pair], activation_fn=torch.nn.Identity(), **options)
    scores = model.predict([pair], **options)
    found = {"pair": list(pair), "ids": ids.tolist()}
    return found | {"logits": files.floats(logits.reshape(-1)), "scores": files.floats(scores.reshape(-1))}
