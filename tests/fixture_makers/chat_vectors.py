"""Vectors of texts that go through chat templates, as sentence-transformers computes them: the small files of each
folder, as it saves them over a tiny model that is there already, and its results."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jinja2 import TemplateError
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling

from . import files
from .texts import ENGLISH, TURKISH
from .versions import VERSIONS

NAME = "chat_vectors"
BASE, SPARSE = "qwen3_embedding", "splade_bert"
END = "<|endoftext|>"
POSITIONS = 320  # rotary positions allow any number
INSTRUCTION = "Kısa yanıt ver."
PROMPTS = {"query": "Find the answer.", "document": ""}
TEXTS = ["Merhaba", "  a b. \n", TURKISH[0], ENGLISH[2], "the <|im_end|> of it", "ğ" * 300]
OPTIONS = {"dtype": torch.float32, "attn_implementation": "eager"}
KEPT = ("model.safetensors", "tokenizer.json", "reference.json", "README.md")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
    "    {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}\n"
    "    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n"
    '    {%- set first_user_prefix = "" -%}\n    {%- set loop_messages = messages -%}\n{%- endif -%}\n'
    "{%- for message in loop_messages -%}\n"
    "    {{ '<start_of_turn>' + message['role'] + '\n' + (first_user_prefix if loop.first else \"\") }}\n"
    "    {%- for item in message['content'] -%}\n        {%- if item['type'] == 'image' -%}\n"
    "            {{ '<start_of_image>' }}\n        {%- elif item['type'] == 'text' -%}\n"
    "            {{ item['text'] | trim }}\n        {%- endif -%}\n    {%- endfor -%}\n"
    "    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n"
    "    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for message in rest %}"
    "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
QWEN_VL = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nRepresent the user\\'s input.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% for content in message.content %}"
    "{% if content.type == 'image' %}{{ '<|image_pad|>' }}{% elif 'text' in content %}{{ content.text }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Its end has tokens that an end of a text can be part of.
PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}.\n{% endfor %}{{ ending | default('now') }}"
)
TASKS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{{ '<|im_start|><|im_start|>' if task == 'query' else '<|im_end|>' }}"
)


@dataclass(frozen=True)
class Form:
    """One folder. `arguments` are those of the template, `saved` keys of files that are changed after saving."""

    name: str
    template: str
    format: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    pooling: str = "lasttoken"
    length: int | None = 96
    include_prompt: bool = True
    tokenizer: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)


GENERATES = {"add_generation_prompt": True}
FORMS = (
    Form("chatml", CHATML, arguments=GENERATES),
    Form("chatml, flat, mean, short", CHATML, "flat", pooling="mean", length=24, include_prompt=False),
    Form("llama 3", LLAMA, "auto", {"date_string": "1 Ocak 2026"}, length=160),
    Form("gemma 3", GEMMA, arguments=GENERATES, length=72),
    Form("gemma 2", GEMMA2, pooling="mean", length=56),
    Form("mistral", MISTRAL),
    Form("qwen3-vl-embedding", QWEN_VL, "structured", GENERATES),
    Form("list in the prompt", PLAIN, "structured", {"ending": ["x", 1.5, None]}, pooling="cls"),
    Form("plain, whole end", PLAIN, length=40),
    Form("plain, cut end", PLAIN, arguments={"restore_suffix": False, "ending": None}, length=40),
    Form("left", CHATML, length=40, tokenizer={"truncation_side": "left", "padding_side": "right"}),
    Form("lower case", CHATML, saved={"sentence_bert_config.json": {"do_lower_case": True}}),
)
# Without modules.json: the template and its place, and what config.json has in addition.
LISTED = [{"name": "default", "template": QWEN_VL}, {"name": "tool_use", "template": "no"}]
BARE: dict[str, tuple[Any, dict[str, Any]]] = {
    "bare": (CHATML, {"architectures": ["Qwen3ForCausalLM"]}),
    "bare, both directions": (CHATML, {"architectures": ["Qwen3ForCausalLM"], "is_causal": False}),
    "bare, no language model": (MISTRAL, {"architectures": ["Qwen3Model"]}),
    "bare, several templates": (LISTED, {"architectures": ["Qwen3ForCausalLM"]}),
}


def start(root: Path, name: str, folder: Path, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """A model without files of sentence-transformers, and without a template."""
    folder.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / name / file, folder)
    for file, change in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        values = json.loads((folder / file).read_text("utf-8"))
        values.pop("chat_template", None)
        files.write_json(folder / file, {**values, **change})


def small_files(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in KEPT)
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}


def transformer(folder: Path, form: Form, state: str = "last_hidden_state", **options: Any) -> Transformer:
    computed = {"method": "forward", "method_output_name": state}
    message = {**computed, **({"format": form.format} if form.format else {})}
    if form.arguments:
        options["processing_kwargs"] = {"chat_template": form.arguments}
    if form.length:
        options["max_seq_length"] = form.length
    module = Transformer(
        str(folder),
        modality_config={"text": computed, "message": message},
        module_output_name="token_embeddings",
        model_kwargs=OPTIONS,
        **options,
    )
    module.processor.chat_template = form.template
    return module


def dense(root: Path, form: Form, temporary: Path) -> Path:
    plain, folder = temporary / "plain", temporary / "saved"
    tokenizer = {"bos_token": END, **form.tokenizer}
    start(root, BASE, plain, tokenizer, {"max_position_embeddings": POSITIONS})
    module = transformer(plain, form)
    pooling = Pooling(module.get_embedding_dimension(), form.pooling, include_prompt=form.include_prompt)
    SentenceTransformer(modules=[module, pooling], prompts=PROMPTS, device="cpu").save(
        str(folder), create_model_card=False
    )
    for file, change in form.saved.items():
        values = json.loads((folder / file).read_text("utf-8"))
        files.write_json(folder / file, {**values, **change})
    return folder


def bare(root: Path, template: Any, config: dict[str, Any], temporary: Path) -> Path:
    folder = temporary / "bare"
    named = {} if isinstance(template, str) else {"chat_template": template}
    start(root, BASE, folder, {"bos_token": END, **named}, {"max_position_embeddings": 64, **config})
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def vectors(folder: Path, *, prompted: bool) -> dict[str, Any]:
    """The vectors of each text alone, by the arguments of the call, and the tokens of each, none cut."""
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=OPTIONS, local_files_only=True)
    calls: list[dict[str, str]] = [{}, {"prompt": INSTRUCTION}] + ([{"prompt_name": "query"}] if prompted else [])
    cases = []
    for call in calls:
        try:
            found = [model.encode(text, show_progress_bar=False, **call) for text in TEXTS]
        except TemplateError as error:
            cases.append({"call": call, "refused": str(error)})
            continue
        cases.append({"call": call, "vectors": [files.floats(vector, 7) for vector in found]})
    whole = {"text": {"truncation": False}}
    tokens = [len(model[0].preprocess([text], processing_kwargs=whole)["input_ids"][0]) for text in TEXTS]
    return {"max_length": model.max_seq_length, "tokens": tokens, "cases": cases}


def sparse(root: Path, temporary: Path) -> dict[str, Any]:
    plain, folder = temporary / "plain", temporary / "saved"
    start(root, SPARSE, plain, {}, {})
    form = Form("sparse", PLAIN.replace("role }}:", "role }}"), length=20)
    module = transformer(plain, form, "logits", transformer_task="fill-mask")
    SparseEncoder(modules=[module, SpladePooling("max")], device="cpu").save(str(folder), create_model_card=False)
    model = SparseEncoder(str(folder), device="cpu", model_kwargs=OPTIONS, local_files_only=True)
    cases = []
    for text in TEXTS[:4]:
        found = model.encode(text, convert_to_sparse_tensor=False, show_progress_bar=False, prompt=INSTRUCTION)
        indices = found.nonzero()[:, 0].tolist()
        cases.append({"text": text, "indices": indices, "values": files.floats(found[indices].numpy(), 7)})
    return {"base": SPARSE, "files": small_files(folder), "cases": cases}


def late(root: Path, temporary: Path) -> dict[str, Any]:
    plain, folder = temporary / "plain", temporary / "saved"
    start(root, BASE, plain, {"bos_token": END}, {"max_position_embeddings": POSITIONS})
    form = Form("late", TASKS, length=None)
    module = transformer(plain, form, query_length=20, document_length=30)
    modules = [module, MultiVectorMask(skiplist_words=["."]), Normalize(module_input_name="token_embeddings")]
    prompts = {"query": "Q", "document": ""}
    MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu").save(str(folder), create_model_card=False)
    model = MultiVectorEncoder(str(folder), device="cpu", model_kwargs=OPTIONS, local_files_only=True)
    sides = {"query": model.encode_query, "document": model.encode_document}
    found = {}
    for side, encode in sides.items():
        rows = [encode(text, show_progress_bar=False) for text in TEXTS[:3]]
        found[side] = [[files.floats(row, 6) for row in text.float().numpy()] for text in rows]
    return {"base": BASE, "files": small_files(folder), "texts": TEXTS[:3], **found}


def make(target: Path) -> None:
    logging.disable(logging.WARNING)
    folders: list[dict[str, Any]] = []
    for form in FORMS:
        with TemporaryDirectory() as temporary:
            folder = dense(target, form, Path(temporary))
            found = {"name": form.name, "base": BASE, "files": small_files(folder)}
            folders.append(found | vectors(folder, prompted=True))
    for name, (template, config) in BARE.items():
        with TemporaryDirectory() as temporary:
            folder = bare(target, template, config, Path(temporary))
            found = {"name": name, "base": BASE, "files": small_files(folder)}
            folders.append(found | vectors(folder, prompted=False))
    with TemporaryDirectory() as temporary:
        weights = sparse(target, Path(temporary))
    with TemporaryDirectory() as temporary:
        tokens = late(target, Path(temporary))
    logging.disable(logging.NOTSET)
    path = target / f"{NAME}.json"
    made = {"made_with": VERSIONS, "texts": TEXTS, "folders": folders, "sparse": weights, "late": tokens}
    files.write_json(path, made)
    print(f"{NAME}: {path.stat().st_size / 1000:.0f} kB", flush=True)
