"""Tiny sentence encoders of every family, with sentence-transformers' own answers."""

import shutil
from pathlib import Path
from typing import Any

import torch

from . import causal, encoder_configs, encoder_files, files, jina_bert, lfm2, nomic_moe, reference
from .encoder_files import Encoder
from .texts import REFERENCE
from .versions import VERSIONS

PROMPTS = {"query": "query: ", "passage": "passage: "}
ENCODERS = (
    Encoder("bert_wordpiece", 1, hidden=32, heads=4, intermediate=64, prompts=PROMPTS),
    Encoder("bert_prompts", 2, layout="current", prompts=PROMPTS, default_prompt="query"),
    # 36 and 36 / 3 are not multiples of 16: what is left over at the edge of every kernel.
    Encoder("bert_cls", 3, hidden=36, heads=3, intermediate=52, tokenizer="cased", pooling="cls", normalize=False),
    Encoder("bert_max", 4, tokenizer="cased", pooling="max", lower_case=True),
    Encoder("bert_bin", 5, tokenizer="cased", weights="bin", pooler=True),
    Encoder("bert_sharded", 6, weights="sharded", layout="current", pooling="lasttoken", pooler=True),
    Encoder("bert_dense", 7, dense=20),
    Encoder("bert_plain", 8, layout="plain", max_length=None),
    Encoder("bert_fp16", 9, dtype=torch.float16),
    Encoder("bert_bf16", 10, dtype=torch.bfloat16),
    # The shape of the multilingual MiniLM and E5 models: BERT with XLM-R's tokenizer.
    Encoder("bert_unigram", 11, tokenizer="unigram", prompts=PROMPTS),
    Encoder("xlmr", 12, architecture="xlm-roberta", tokenizer="unigram", hidden=32, heads=4, intermediate=64),
    # Qwen3-Embedding: a causal model, the last token's state, bfloat16, instructions as prompts.
    Encoder(
        "qwen3_embedding",
        13,
        architecture="qwen3",
        tokenizer="qwen",
        hidden=causal.HIDDEN,
        pooling="lasttoken",
        positions=causal.POSITIONS,
        dtype=torch.bfloat16,
        prompts={"query": "Instruct: find the answer\nQuery:", "document": ""},
    ),
    # Decoders that were trained to attend in both directions, and one of another family that was not.
    *(
        Encoder(
            name,
            seed,
            architecture=architecture,
            tokenizer="qwen",
            hidden=causal.HIDDEN,
            pooling=pooling,
            positions=causal.POSITIONS,
            causal=name == "llama_embedding",
        )
        for name, seed, architecture, pooling in (
            ("qwen3_bidirectional", 14, "qwen3", "mean"),
            ("qwen2_bidirectional", 15, "qwen2", "mean"),
            ("llama_bidirectional", 16, "llama", "mean"),
            ("llama_embedding", 17, "llama", "lasttoken"),
        )
    ),
    Encoder("gte", 31, architecture="gte", tokenizer="unigram", hidden=32, heads=4, pooling="cls"),
    Encoder("gte_new", 32, architecture="gte", tokenizer="unigram", pooling="cls", published=True),
    Encoder("nomic", 33, architecture="nomic_bert", hidden=32, heads=4),
    Encoder("nomic_2048", 34, architecture="nomic_bert", published=True),
    Encoder(
        "nomic_moe", 70, architecture="nomic_bert_moe", tokenizer="unigram", layers=4, intermediate=28, published=True
    ),
    Encoder("jina_v3", 35, architecture="jina_embeddings_v3", tokenizer="unigram"),
    Encoder("jina_v2", 36, hidden=36, heads=6, published=True),
    Encoder("modernbert", 37, architecture="modernbert", tokenizer="bytes", layers=4, pooling="cls", published=True),
    Encoder("modernbert_silu", 38, architecture="modernbert_silu", tokenizer="bytes", layers=4),
    Encoder("mpnet", 39, architecture="mpnet", tokenizer="mpnet", hidden=32, heads=4),
    Encoder("distilbert", 40, architecture="distilbert", tokenizer="cased", dense=20, normalize=False),
    Encoder("electra", 41, architecture="electra", hidden=36, heads=3, pooling="cls"),
    Encoder("albert", 42, architecture="albert", tokenizer="unigram", layers=4),
    Encoder("eurobert", 43, architecture="eurobert", tokenizer="bytes", hidden=32, heads=4),
    Encoder("mistral_embedding", 44, architecture="mistral", tokenizer="bytes", heads=4, pooling="lasttoken"),
    Encoder("gemma_embedding", 45, architecture="gemma", tokenizer="bytes", heads=4, layers=4, dense=40, dense_to=20),
    Encoder("lfm2_embedding", 46, architecture="lfm2", tokenizer="bytes", heads=4, layers=4, pooling="lasttoken"),
    Encoder(
        "lfm2_bidirectional",
        47,
        architecture="lfm2_bidirectional",
        tokenizer="bytes",
        hidden=32,
        heads=4,
        layers=3,
        pooling="cls",
        published=True,
    ),
    Encoder("deberta_v3", 61, architecture="deberta_v3", tokenizer="deberta", heads=3),
    Encoder("deberta_v2", 62, architecture="deberta_v2", tokenizer="deberta", heads=4, pooling="cls"),
    Encoder("convbert", 66, architecture="convbert", tokenizer="cased", hidden=40, heads=4),
    Encoder(
        "convbert_grouped", 67, architecture="convbert_grouped", hidden=36, heads=3, intermediate=52, pooling="cls"
    ),
    Encoder(
        "embedding_gemma2",
        68,
        architecture="embedding_gemma2_text",
        tokenizer="bytes",
        hidden=32,
        layers=3,
        heads=4,
        intermediate=32,
        layout="current",
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
        published=True,
    ),
    Encoder(
        "embedding_gemma2_text",
        69,
        architecture="embedding_gemma2_text_partial",
        tokenizer="bytes",
        hidden=28,
        layers=3,
        heads=2,
        pooling="cls",
        normalize=False,
    ),
    Encoder("t5", 64, architecture="t5", tokenizer="t5", dense=40, dense_to=20),
    Encoder("mt5", 65, architecture="t5_gated", tokenizer="t5", heads=3),
    Encoder("deberta_c2p", 63, architecture="deberta_c2p", tokenizer="deberta", normalize=False),
)


def make(spec: Encoder, root: Path) -> None:
    directory = root / spec.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    encoder_files.write(spec, directory)
    model = reference.load(directory)
    jina = spec.published and spec.architecture == "bert"
    if jina:
        jina_bert.patch(model, spec.seed)
    if spec.architecture == "lfm2_bidirectional":
        lfm2.patch(model)
    if spec.architecture == "nomic_bert_moe":
        nomic_moe.patch(model, spec.seed)
    found: dict[str, Any] = {
        "made_with": VERSIONS,
        "dimensions": spec.dense_to or spec.dense or spec.hidden,
        "pooling": spec.pooling,
        "normalize": spec.normalize and spec.layout != "plain",
        "max_length": model.max_seq_length,
        "default_prompt_name": spec.default_prompt,
        "cases": reference.cases(model, REFERENCE),
    }
    if spec.prompts:
        prompts: list[reference.Prompt] = [{"prompt_name": name} for name in spec.prompts]
        prompts += [{"prompt": "soru: "}, {"prompt": ""}]
        found["prompted"] = [case for prompt in prompts for case in reference.cases(model, REFERENCE[:6], prompt)]
    if spec.layout == "plain":
        found["pooled"] = reference.pooled(model, [REFERENCE[0], REFERENCE[5], "a"])
    found["float64_error"] = float(f"{reference.float64_error(model, found['cases']):.1e}")
    files.write_json(directory / "reference.json", found)
    if jina:
        jina_bert.publish(directory, model)
    elif spec.architecture == "nomic_bert_moe":
        nomic_moe.publish(directory, model)
    elif spec.published:
        encoder_configs.publish(directory)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{spec.name}: {size / 1000:.0f} kB, float64 error {found['float64_error']}", flush=True)
