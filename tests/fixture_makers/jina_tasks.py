"""A tiny jina-embeddings-v3 as it was published: its adapters, one for each task, lie in the model's own tensors.

Its code is not run. The numbers of a task follow the formula of its paper and of its configuration: each weight is
``original + lora_alpha / lora_rank * B @ A``, and ``A @ B`` for embeddings, in transformers' own model of the same
network.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

from . import files
from .texts import REFERENCE
from .versions import VERSIONS
from .weights import random_weights

NAME, SEED = "jina_v3_tasks", 35
SOURCE = "jina_v3"
RANK, ALPHA = 4, 3
TASKS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}
CODE = "jinaai/xlm-roberta-flash-implementation--"
CONFIG = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "auto_map": {
        "AutoConfig": f"{CODE}configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": f"{CODE}modeling_lora.XLMRobertaLoRA",
        "AutoModelForMaskedLM": f"{CODE}modeling_xlm_roberta.XLMRobertaForMaskedLM",
        "AutoModelForPreTraining": f"{CODE}modeling_xlm_roberta.XLMRobertaForPreTraining",
    },
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "emb_pooler": "mean",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-05,
    "load_trained_adapters": True,
    "lora_adaptations": list(TASKS),
    "lora_alpha": ALPHA,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": RANK,
    "matryoshka_dimensions": [8, 16, 24],
    "max_position_embeddings": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "output_past": True,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0,
    "task_instructions": TASKS,
    "torch_dtype": "float32",
    "truncate_dim": None,
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "vocab_size": 275,
}
MODULES = [
    {"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer", "kwargs": ["task"]},
    {"idx": 1, "name": "pooler", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "normalizer", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
LAYER = {
    "mixer.out_proj": "self_attn.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm1": "post_attention_layernorm",
    "norm2": "post_mlp_layernorm",
}


def published(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' tensors under the names of the model's own code."""
    found = {}
    for end in ("weight", "bias"):
        found[f"emb_ln.{end}"] = native[f"embeddings.LayerNorm.{end}"]
        for layer in range(2):
            own, other = f"encoder.layers.{layer}", f"layers.{layer}"
            parts = [native[f"{other}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{own}.mixer.Wqkv.{end}"] = torch.cat(parts)
            found |= {f"{own}.{name}.{end}": native[f"{other}.{there}.{end}"] for name, there in LAYER.items()}
    for table in ("word", "token_type"):
        found[f"embeddings.{table}_embeddings.weight"] = native[f"embeddings.{table}_embeddings.weight"]
    return found


def native(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The other way round."""
    found = {}
    for name, tensor in tensors.items():
        name = name.replace("emb_ln", "embeddings.LayerNorm").replace("encoder.", "")
        for own, there in LAYER.items():
            name = name.replace(own, there)
        if "mixer.Wqkv" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("mixer.Wqkv", f"self_attn.{part}_proj")] = piece
        else:
            found[name] = tensor
    return found


def make(root: Path) -> None:
    directory = root / NAME
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(root / SOURCE, directory, ignore=shutil.ignore_patterns("reference.json", "model.safetensors"))
    files.write_json(directory / "config.json", CONFIG)
    files.write_json(directory / "modules.json", MODULES)
    files.write_json(
        directory / "config_sentence_transformers.json",
        {"prompts": TASKS, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {key: CONFIG[key] for key in (*keys, "max_position_embeddings", "type_vocab_size", "layer_norm_eps")}
    config = JinaEmbeddingsV3Config(**sizes, hidden_act="gelu", attn_implementation="eager")
    model = JinaEmbeddingsV3Model(config, add_pooling_layer=False).eval()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(random_weights(shapes, SEED))
    # Copies: the tensors of tasks are loaded into the same model.
    base = {name: tensor.clone() for name, tensor in published(dict(model.state_dict())).items()}
    pooler = torch.Generator().manual_seed(SEED)
    base |= {"pooler.dense.weight": torch.randn(24, 24, generator=pooler), "pooler.dense.bias": torch.zeros(24)}
    stored, tasks = with_adapters(base)
    files.save_single(directory, {f"roberta.{name}": tensor.contiguous() for name, tensor in stored.items()})
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def cases(tensors: dict[str, torch.Tensor], prefix: str) -> list[dict[str, Any]]:
        kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
        model.load_state_dict(native(kept), strict=True)
        found = []
        for text in REFERENCE[:6]:
            inputs = tokenizer(prefix + text, return_tensors="pt", truncation=True, max_length=24)
            vector = model(**inputs).last_hidden_state[0].mean(0)
            vector = torch.nn.functional.normalize(vector, dim=0)
            found.append({"text": text, "ids": inputs["input_ids"][0].tolist(), "embedding": files.floats(vector)})
        return found

    with torch.no_grad():
        found = {name: cases(tensors, TASKS[name]) for name, tensors in tasks.items()}
        plain = cases(base, "")
    reference = {
        "made_with": VERSIONS,
        "dimensions": 24,
        "pooling": "mean",
        "normalize": True,
        "max_length": 24,
        "default_prompt_name": None,
        "cases": plain,
    }
    files.write_json(directory / "reference.json", reference | {f"task {name}": rows for name, rows in found.items()})


def with_adapters(
    base: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """The tensors of the file, and those of each task."""
    generator = torch.Generator().manual_seed(SEED + 1)
    stored = {}
    tasks = {name: dict(base) for name in TASKS}
    for name, weight in sorted(base.items()):
        module, _, end = name.rpartition(".")
        if end == "bias" or "norm" in name or "emb_ln" in name:
            stored[name] = weight
            continue
        rows, columns = weight.shape
        embeds = module.endswith("_embeddings")
        shapes = [(rows, RANK), (RANK, columns)] if embeds else [(RANK, columns), (rows, RANK)]
        a, b = (0.3 * torch.randn(len(TASKS), *shape, generator=generator) for shape in shapes)
        own = f"{module}.parametrizations.weight"
        stored |= {f"{own}.original": weight, f"{own}.0.lora_A": a, f"{own}.0.lora_B": b}
        for index, task in enumerate(TASKS):
            product = a[index] @ b[index] if embeds else b[index] @ a[index]
            tasks[task][name] = weight + ALPHA / RANK * product
    return stored, tasks
