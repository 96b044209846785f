"""Tiny sentence encoders: BERT and XLM-R in every file layout, with sentence-transformers' own answers."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

from . import files, vocabularies
from .texts import REFERENCE
from .versions import VERSIONS

POOLINGS = ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")


@dataclass(frozen=True)
class Encoder:
    """One fixture. `layout`: the files of sentence-transformers up to 5, since 6, or none ("plain")."""

    name: str
    seed: int
    hidden: int = 24
    layers: int = 2
    heads: int = 2
    intermediate: int = 48
    architecture: Literal["bert", "xlm-roberta"] = "bert"
    tokenizer: Literal["uncased", "cased", "unigram"] = "uncased"
    pooling: str = "mean"
    normalize: bool = True
    dense: int | None = None
    max_length: int | None = 24
    positions: int = 32
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    weights: Literal["safetensors", "sharded", "bin"] = "safetensors"
    dtype: torch.dtype = torch.float32
    layout: Literal["classic", "current", "plain"] = "classic"
    pooler: bool = False


PROMPTS = {"query": "query: ", "passage": "passage: "}
ENCODERS = (
    Encoder("bert_wordpiece", 1, hidden=32, heads=4, intermediate=64, prompts=PROMPTS),
    Encoder("bert_prompts", 2, layout="current", prompts=PROMPTS, default_prompt="query"),
    # 36 and 36 / 3 are not multiples of 16: what is left over at the edge of every kernel.
    Encoder(
        "bert_cls", 3, hidden=36, heads=3, intermediate=52, tokenizer="cased", pooling="cls", normalize=False
    ),
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
)


def config(spec: Encoder, vocabulary: int) -> dict[str, Any]:
    roberta = spec.architecture == "xlm-roberta"
    return {
        "architectures": ["XLMRobertaModel" if roberta else "BertModel"],
        "model_type": spec.architecture,
        "vocab_size": vocabulary,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.intermediate,
        "hidden_act": "gelu",
        # RoBERTa counts positions from pad_token_id + 1, so its table has two rows that no token reaches.
        "max_position_embeddings": spec.positions + (2 if roberta else 0),
        "position_embedding_type": "absolute",
        "type_vocab_size": 1 if roberta else 2,
        "layer_norm_eps": 1e-5 if roberta else 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 1 if spec.tokenizer == "unigram" else 0,
        "torch_dtype": str(spec.dtype).removeprefix("torch."),
    }


def random_weights(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Weights wide enough to reach GELU's tails and the softmax's peaks, which std 0.02 never does."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in sorted(shapes):
        noise = torch.randn(shapes[name], generator=generator)
        if name.endswith("LayerNorm.weight"):
            tensors[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            tensors[name] = 0.5 * noise
        elif "embeddings" in name:
            tensors[name] = noise
        else:
            tensors[name] = 2.5 / shapes[name][-1] ** 0.5 * noise
    return tensors


def write_tokenizer(spec: Encoder, directory: Path) -> Tokenizer:
    if spec.tokenizer == "unigram":
        result = vocabularies.unigram()
        specials = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>"}
        # The class that takes tokenizer.json as it is.
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        mask = "<mask>"
    else:
        result = vocabularies.wordpiece(lowercase=spec.tokenizer == "uncased")
        specials = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]"}
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": spec.tokenizer == "uncased"}
        mask = "[MASK]"
    tokens = {f"{kind}_token": token for kind, token in {**specials, "mask": mask}.items()}
    length = spec.max_length if spec.layout == "current" else spec.positions
    files.write_json(directory / "tokenizer_config.json", {**settings, "model_max_length": length, **tokens})
    files.write_json(directory / "special_tokens_map.json", tokens)
    if spec.weights == "bin":  # an old checkpoint: vocab.txt alone
        vocabulary = sorted(result.get_vocab().items(), key=lambda item: item[1])
        (directory / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), "utf-8")
    else:
        # Stored like this by many models, and to be overruled by the sentence-transformers length.
        result.enable_truncation(12)
        result.enable_padding(
            length=12, pad_id=result.token_to_id(tokens["pad_token"]), pad_token=tokens["pad_token"]
        )
        result.save(str(directory / "tokenizer.json"), pretty=False)
    return result


def write_weights(spec: Encoder, directory: Path) -> None:
    options = {} if spec.pooler else {"add_pooling_layer": False}
    empty = AutoModel.from_config(AutoConfig.from_pretrained(directory), **options)
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    tensors = {name: tensor.to(spec.dtype) for name, tensor in random_weights(shapes, spec.seed).items()}
    save = {"safetensors": files.save_single, "sharded": files.save_sharded, "bin": files.save_bin}
    save[spec.weights](directory, tensors)


def write_sentence_files(spec: Encoder, directory: Path) -> None:
    """modules.json and what it names, in the spelling of sentence-transformers up to 5 or since 6."""
    classic = spec.layout == "classic"
    module = {
        "Transformer": "base.modules.transformer.Transformer",
        "Pooling": "sentence_transformer.modules.pooling.Pooling",
        "Dense": "base.modules.dense.Dense",
        "Normalize": "base.modules.normalize.Normalize",
    }
    kinds = [
        "Transformer",
        "Pooling",
        *(["Dense"] if spec.dense else []),
        *(["Normalize"] if spec.normalize else []),
    ]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": "sentence_transformers." + (f"models.{kind}" if classic else module[kind]),
        }
        for index, kind in enumerate(kinds)
    ]
    files.write_json(directory / "modules.json", modules)
    if classic:
        flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
        pooling: dict[str, Any] = {"word_embedding_dimension": spec.hidden}
        pooling |= {f"pooling_mode_{flag}": mode == spec.pooling for mode, flag in flags.items()}
        sentence: dict[str, Any] = {"max_seq_length": spec.max_length, "do_lower_case": spec.lower_case}
    else:
        pooling = {"embedding_dimension": spec.hidden, "pooling_mode": spec.pooling, "include_prompt": True}
        sentence = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        sentence["modality_config"] = {"text": text}
    files.write_json(directory / "1_Pooling" / "config.json", pooling)
    files.write_json(directory / "sentence_bert_config.json", sentence)
    files.write_json(
        directory / "config_sentence_transformers.json",
        {"prompts": spec.prompts, "default_prompt_name": spec.default_prompt, "similarity_fn_name": "cosine"},
    )
    if spec.dense:
        folder = directory / "2_Dense"
        activation = "torch.nn.modules.activation.Tanh"
        settings = {"in_features": spec.hidden, "out_features": spec.dense, "bias": True}
        files.write_json(folder / "config.json", {**settings, "activation_function": activation})
        shapes = {
            "linear.weight": torch.Size((spec.dense, spec.hidden)),
            "linear.bias": torch.Size((spec.dense,)),
        }
        save_file(random_weights(shapes, spec.seed), folder / "model.safetensors", metadata={"format": "pt"})


def load(directory: Path) -> SentenceTransformer:
    """On the CPU, in float32 whatever the file holds, with the attention that is written out."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)


def token_ids(model: SentenceTransformer, text: str) -> list[int]:
    ids: list[int] = model.preprocess([text])["input_ids"][0].tolist()
    return ids


def cases(
    model: SentenceTransformer, texts: list[str], decimals: int | None = None, **prompt: str
) -> list[dict[str, Any]]:
    """Each text alone: its ids (with the prompt) and its vector."""
    prefix = prompt.get(
        "prompt", model.prompts.get(prompt.get("prompt_name") or model.default_prompt_name) or ""
    )
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
    exact = model.double().encode(
        [case["text"] for case in references], batch_size=1, show_progress_bar=False
    )
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


def make(spec: Encoder, root: Path) -> None:
    directory = root / spec.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    tokenizer = write_tokenizer(spec, directory)
    files.write_json(directory / "config.json", config(spec, tokenizer.get_vocab_size()))
    write_weights(spec, directory)
    if spec.layout != "plain":
        write_sentence_files(spec, directory)

    model = load(directory)
    reference: dict[str, Any] = {
        "made_with": VERSIONS,
        "dimensions": spec.dense or spec.hidden,
        "pooling": spec.pooling,
        "normalize": spec.normalize and spec.layout != "plain",
        "max_length": model.max_seq_length,
        "default_prompt_name": spec.default_prompt,
        "cases": cases(model, REFERENCE),
    }
    if spec.prompts:
        reference["prompted"] = [
            case
            for options in ({"prompt_name": "passage"}, {"prompt": "soru: "}, {"prompt": ""})
            for case in cases(model, REFERENCE[:6], **options)
        ]
    if spec.layout == "plain":
        reference["pooled"] = pooled(model, [REFERENCE[0], REFERENCE[5], "a"])
    reference["float64_error"] = float(f"{float64_error(model, reference['cases']):.1e}")
    files.write_json(directory / "reference.json", reference)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{spec.name}: {size / 1000:.0f} kB, float64 error {reference['float64_error']}", flush=True)
