"""The files of a sentence encoder, in every layout that hubs hold."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModel, T5EncoderModel

from . import causal, encoder_configs, files, vocabularies
from .weights import random_weights

DECODERS = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True)
class Encoder:
    """One fixture. `layout`: the files of sentence-transformers up to 5, since 6, or none ("plain")."""

    name: str
    seed: int
    hidden: int = 24
    layers: int = 2
    heads: int = 2
    intermediate: int = 48
    # Those of `encoder_configs.CONFIGS` too.
    architecture: str = "bert"
    tokenizer: Literal["uncased", "cased", "unigram", "qwen", "mpnet", "bytes", "deberta", "t5"] = "uncased"
    pooling: str = "mean"
    normalize: bool = True
    dense: int | None = None
    # A second layer, both without a bias and without a function.
    dense_to: int | None = None
    max_length: int | None = 24
    positions: int = 32
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    weights: Literal["safetensors", "sharded", "bin"] = "safetensors"
    dtype: torch.dtype = torch.float32
    layout: Literal["classic", "current", "plain"] = "classic"
    pooler: bool = False
    causal: bool = True
    # Spelled as the first files of the family are, some with code of their own.
    published: bool = False


def config(spec: Encoder, vocabulary: int) -> dict[str, Any]:
    """config.json."""
    if spec.architecture in encoder_configs.CONFIGS:
        return encoder_configs.config(spec.architecture, {**vars(spec), "vocabulary": vocabulary}, spec.dtype)
    roberta = spec.architecture == "xlm-roberta"
    if spec.architecture in DECODERS:
        settings = causal.config(spec.architecture, vocabulary, spec.dtype)
        return settings if spec.causal else {**settings, "is_causal": False}
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


def write_tokenizer(spec: Encoder, directory: Path) -> Tokenizer:
    if spec.tokenizer == "qwen":
        return causal.write_tokenizer(directory, "qwen", spec.positions, ends=True)
    if spec.tokenizer in ("unigram", "t5"):
        result = vocabularies.unigram()
        if spec.tokenizer == "t5":
            end = ("</s>", result.token_to_id("</s>"))
            result.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
        specials = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>"}
        # The class that takes tokenizer.json as it is.
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        mask = "<mask>"
    elif spec.tokenizer == "mpnet":
        result = vocabularies.wordpiece(lowercase=True, mpnet=True)
        specials = {"bos": "<s>", "eos": "</s>", "unk": "[UNK]", "sep": "</s>", "pad": "<pad>", "cls": "<s>"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        mask = "<mask>"
    elif spec.tokenizer == "deberta":
        result = vocabularies.deberta()
        specials = {"bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        mask = "[MASK]"
    elif spec.tokenizer == "bytes":  # ModernBERT
        result = vocabularies.byte_level("gpt2", list(vocabularies.WORDPIECE_SPECIALS))
        result.post_processor = vocabularies.template(result, "[CLS]", "[SEP]")
        specials = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        mask = "[MASK]"
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
        result.enable_padding(length=12, pad_id=result.token_to_id(tokens["pad_token"]), pad_token=tokens["pad_token"])
        result.save(str(directory / "tokenizer.json"), pretty=False)
    return result


def write_weights(spec: Encoder, directory: Path) -> None:
    bare = (*DECODERS, "modernbert", "modernbert_silu", "distilbert", "electra", "eurobert", "mistral", "gemma")
    without = spec.architecture in bare or spec.architecture.startswith(
        ("convbert", "deberta", "t5", "lfm2", "embedding")
    )
    options = {} if spec.pooler or without else {"add_pooling_layer": False}
    kind = T5EncoderModel if spec.architecture.startswith("t5") else AutoModel
    settings = AutoConfig.from_pretrained(directory)
    empty = kind._from_config(settings) if kind is T5EncoderModel else kind.from_config(settings, **options)
    # Files have the table of words once.
    shapes = {
        name: tensor.shape for name, tensor in empty.state_dict().items() if name != "encoder.embed_tokens.weight"
    }
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
        *["Dense" for dense in (spec.dense, spec.dense_to) if dense],
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
    sizes = [size for size in (spec.hidden, spec.dense, spec.dense_to) if size]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        folder = directory / f"{index + 2}_Dense"
        bias = spec.dense_to is None
        function = "activation.Tanh" if bias else "linear.Identity"
        settings = {"in_features": inputs, "out_features": outputs, "bias": bias}
        files.write_json(folder / "config.json", {**settings, "activation_function": f"torch.nn.modules.{function}"})
        shapes = {"linear.weight": torch.Size((outputs, inputs))}
        shapes |= {"linear.bias": torch.Size((outputs,))} if bias else {}
        tensors = random_weights(shapes, spec.seed + index)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write(spec: Encoder, directory: Path) -> None:
    """Everything but the reference, into a directory that exists and is empty."""
    tokenizer = write_tokenizer(spec, directory)
    files.write_json(directory / "config.json", config(spec, tokenizer.get_vocab_size()))
    write_weights(spec, directory)
    if spec.layout != "plain":
        write_sentence_files(spec, directory)
