"""Adapters of PEFT over the models of other fixtures, with what PEFT computes of each, not merged, in float32."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from . import files
from .causal import CLEAR, NEW_TOKENS, PROMPTS
from .texts import REFERENCE
from .versions import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = "adapters"
TEXTS = REFERENCE[:5]
PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0])]


@dataclass(frozen=True)
class Adapter:
    """One fixture. `base` is the fixture that it changes, `options` those of `LoraConfig`."""

    name: str
    seed: int
    base: str
    task: str
    options: dict[str, Any]
    labels: int = 0
    whole_embeddings: bool = False


def _bert(name: str, seed: int, **options: Any) -> Adapter:
    return Adapter(name, seed, "bert_plain", "FEATURE_EXTRACTION", {"r": 4, "lora_alpha": 8, **options})


def _scores(name: str, seed: int, base: str, labels: int, **options: Any) -> Adapter:
    return Adapter(name, seed, base, "SEQ_CLS", {"r": 3, "lora_alpha": 3, **options}, labels)


def _writes(name: str, seed: int, base: str, whole: bool = False, **options: Any) -> Adapter:
    options = {"r": 4, "lora_alpha": 2, **options}
    return Adapter(name, seed, base, "CAUSAL_LM", options, whole_embeddings=whole)


ADAPTERS = (
    # Those of the pooler are not used for vectors.
    _bert(
        "bert_patterns",
        71,
        target_modules=["query", "value", "dense"],
        rank_pattern={"layer.0.attention.self.query": 2, "value": 6},
        alpha_pattern={"layer.1.output.dense": 12},
    ),
    _bert("bert_rslora", 72, target_modules=["key", "word_embeddings"], use_rslora=True, lora_alpha=3),
    _bert("bert_dora", 73, target_modules=["query", "intermediate.dense", "word_embeddings"], use_dora=True),
    _bert("bert_biases", 74, target_modules=["query", "output.dense"], lora_bias=True, bias="all"),
    _bert("bert_saved", 75, target_modules=["value"], modules_to_save=["token_type_embeddings"]),
    _scores("bert_classes", 76, "bert_plain", 3, target_modules=["query", "key"], modules_to_save=["pooler"]),
    _scores("bert_rerank", 77, "rerank_bert", 1, target_modules=["query", "dense"], bias="lora_only"),
    _scores("qwen3_score", 78, "qwen3", 2, target_modules=["q_proj", "down_proj"]),
    _writes("qwen3_layers", 79, "qwen3", target_modules="all-linear"),
    _writes("qwen3_tied", 80, "qwen3", whole=True, target_modules=["v_proj", "embed_tokens", "lm_head"]),
    _writes("qwen3_words", 81, "qwen3", target_modules=["k_proj", "embed_tokens"]),
    _writes("qwen3_saved", 82, "qwen3", target_modules=["o_proj"], modules_to_save=["embed_tokens"]),
    _writes("llama_head", 83, "llama", target_modules=["up_proj", "lm_head"]),
    _writes("gpt2_lora", 84, "gpt2", target_modules=["c_attn", "c_proj", "c_fc", "wte"]),
    _writes("gpt2_dora", 85, "gpt2", target_modules=["c_attn", "c_fc"], use_dora=True),
    # Heads with a bias, which PEFT saves, trained or not; and one with two names.
    _writes("phi_head", 86, "phi", whole=True, target_modules=["q_proj", "lm_head"], bias="lora_only"),
    _writes("gptj_head", 87, "gptj", whole=True, target_modules=["v_proj", "lm_head"]),
    _writes("gpt_neox_head", 88, "gpt_neox", target_modules=["query_key_value", "lm_head"]),
)


def base_of(spec: Adapter, root: Path) -> Any:
    """The model of the base's files, as PEFT's users load it."""
    folder, options = root / spec.base, {"dtype": torch.float32, "attn_implementation": "eager"}
    if spec.task == "FEATURE_EXTRACTION":
        return AutoModel.from_pretrained(folder, **options).eval()
    if spec.task == "CAUSAL_LM":
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    torch.manual_seed(spec.seed)  # for the head, which is saved
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=spec.labels, **options)
    model.config.pad_token_id = model.config.pad_token_id or 0
    return model.eval()


def train(model: Any, seed: int) -> None:
    """Gives every parameter that would have been trained other numbers."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + 0.2 * noise


def make(spec: Adapter, root: Path) -> None:
    directory = root / FOLDER / spec.name
    shutil.rmtree(directory, ignore_errors=True)
    config = peft.LoraConfig(task_type=spec.task, **spec.options)
    model = base_of(spec, root)
    torch.manual_seed(spec.seed)
    model = peft.get_peft_model(model, config)
    train(model, spec.seed)
    whole = True if spec.whole_embeddings else "auto" if spec.options.get("modules_to_save") else False
    model.save_pretrained(directory, save_embedding_layers=whole)
    (directory / "README.md").unlink()
    path = directory / "adapter_config.json"
    saved = json.loads(path.read_text()) | {"base_model_name_or_path": f"org/{spec.base}"}
    saved["target_modules"] = sorted(saved["target_modules"])
    saved["modules_to_save"] = sorted(saved["modules_to_save"]) if saved["modules_to_save"] else None
    files.write_json(path, dict(sorted(saved.items())))
    model = peft.PeftModel.from_pretrained(base_of(spec, root), str(directory)).eval()
    tokenizer = AutoTokenizer.from_pretrained(root / spec.base)
    tasks: dict[str, Callable[[Any, Any], list[dict[str, Any]]]] = {
        "FEATURE_EXTRACTION": _vectors,
        "SEQ_CLS": _logits,
        "CAUSAL_LM": _answers,
    }
    with torch.no_grad():
        cases = tasks[spec.task](model, tokenizer)
    files.write_json(
        directory / "reference.json",
        {"made_with": {**VERSIONS, "peft": peft.__version__}, "base": spec.base, "cases": cases},
    )


def _vectors(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    found = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        states = model(**inputs).last_hidden_state[0]
        found.append({"text": text, "ids": inputs["input_ids"][0].tolist(), "embedding": files.floats(states.mean(0))})
    return found


def _logits(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    found = []
    for pair in PAIRS:
        inputs = tokenizer(*pair, return_tensors="pt", truncation=True, max_length=32)
        types = inputs["token_type_ids"][0].tolist() if "token_type_ids" in inputs else []
        second = types.index(1) if 1 in types else 0
        logits = files.floats(model(**inputs).logits[0])
        found.append({"pair": pair, "ids": inputs["input_ids"][0].tolist(), "second": second, "logits": logits})
    return found


def _answers(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    found = []
    for prompt in PROMPTS[:2]:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([ids])).logits[0, -1]
        greedy: list[int] = []
        while len(greedy) < NEW_TOKENS // 2:
            first, second = torch.topk(model(torch.tensor([ids + greedy])).logits[0, -1], 2).values.tolist()
            if first - second < CLEAR:
                break
            greedy.append(int(model(torch.tensor([ids + greedy])).logits[0, -1].argmax()))
        found.append({"prompt": prompt, "ids": ids, "logits": files.floats(logits), "greedy": greedy})
    return found
