"""Tiny text generators, GPT-2, Llama, Qwen2 and Qwen3, with what transformers' models answer to a prompt."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from . import files, vocabularies
from .texts import ENGLISH, TURKISH
from .versions import VERSIONS
from .weights import random_weights

Kind = Literal["gpt2", "llama", "qwen2", "qwen3"]

HIDDEN, POSITIONS = 32, 64
# In place of a value: the size of the vocabulary.
VOCABULARY = object()
NEW_TOKENS = 20
CLEAR = 1e-3  # between the best logit and the next: float32 must not decide the greedy answers
PROMPTS = [TURKISH[0], ENGLISH[2], "a", "Soru: çğıöşü 123 😀\nYanıt:"]
END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Kısa yanıt ver."},
    {"role": "user", "content": ENGLISH[2]},
]


@dataclass(frozen=True)
class Generator:
    """One fixture. `old`: pytorch_model.bin, vocab.json and merges.txt alone, as DialoGPT has them."""

    name: str
    seed: int
    kind: Kind
    old: bool = False


GENERATORS = (
    Generator("gpt2", 21, "gpt2"),
    Generator("gpt2_bin", 22, "gpt2", old=True),
    Generator("llama", 23, "llama"),
    Generator("qwen3", 24, "qwen3"),
    Generator("qwen2", 25, "qwen2"),
)


def config(kind: Kind, vocabulary: int, dtype: torch.dtype) -> dict[str, Any]:
    end = vocabulary - 3  # END, TURN, TURN_END come last
    common: dict[str, Any] = {"model_type": kind, "vocab_size": vocabulary}
    common |= {"bos_token_id": end, "eos_token_id": end}
    common["torch_dtype"] = str(dtype).removeprefix("torch.")
    if kind == "gpt2":
        sizes = {"n_positions": POSITIONS, "n_ctx": POSITIONS, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4}
        rest = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
        return {"architectures": ["GPT2LMHeadModel"], **common, **sizes, **rest}
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    if kind == "qwen3":  # heads of their own width: 4 · 12 is not the hidden size
        name, rest = "Qwen3ForCausalLM", {"head_dim": 12, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6}
    elif kind == "qwen2":  # queries, keys and values have biases
        name, rest = "Qwen2ForCausalLM", {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6}
    else:
        name, rest = "LlamaForCausalLM", {"rope_theta": 10000.0, "rms_norm_eps": 1e-5}
    flags = {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": kind == "qwen3"}
    return {"architectures": [name], **common, **sizes, **heads, **rest, **flags}


def write_tokenizer(directory: Path, kind: str, length: int, *, ends: bool = False, old: bool = False) -> Tokenizer:
    """`ends`: every text gets END behind it, as Qwen3-Embedding wants it."""
    result = vocabularies.byte_level(kind, [END, TURN, TURN_END])
    if ends:
        single, pair = f"$A {END}", f"$A {END} $B {END}"
        special = [(END, result.token_to_id(END))]
        result.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    settings: dict[str, Any] = {"model_max_length": length, "eos_token": END, "pad_token": END}
    if old:
        result.model.save(str(directory))
        added = {token: result.token_to_id(token) for token in (END, TURN, TURN_END)}
        files.write_json(directory / "added_tokens.json", added)
        settings |= {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "unk_token": END}
    else:
        result.save(str(directory / "tokenizer.json"), pretty=False)
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
        settings |= {"padding_side": "left"} if ends else {}
    files.write_json(directory / "tokenizer_config.json", settings)
    return result


def write_weights(spec: Generator, directory: Path) -> None:
    empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    if empty.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    # Small tables: a tied head would otherwise answer with the token it was given.
    tensors = random_weights(shapes, spec.seed, gain=2.0, embedding=0.3)
    if not spec.old:
        files.save_single(directory, tensors)
        return
    mask = torch.ones(POSITIONS, POSITIONS, dtype=torch.uint8).tril()[None, None]
    for layer in range(2):  # buffers that old checkpoints carry
        tensors[f"transformer.h.{layer}.attn.bias"] = mask
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    torch.save(tensors, directory / "pytorch_model.bin")


def greedy(model: Any, ids: list[int]) -> Iterator[tuple[int, float]]:
    """The best token and its distance to the next, step by step, the whole sequence computed each time."""
    ids = list(ids)
    for _ in range(NEW_TOKENS):
        best = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
        ids.append(int(best.indices[0]))
        yield ids[-1], float(best.values[0] - best.values[1])


def case(model: Any, exact: Any, tokenizer: Any, prompt: str) -> tuple[dict[str, Any], float]:
    """What the model answers, and the largest difference of its logits to float64."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    batch = torch.tensor([ids])
    logits = model(batch).logits[0]
    steps = list(greedy(model, ids))
    margin = min(distance for _, distance in steps)
    if margin < CLEAR:
        raise ValueError(f"{prompt!r}: two tokens within {margin:.1e}, choose another seed")
    tokens = [token for token, _ in steps]
    penalised = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        repetition_penalty=1.3,
        no_repeat_ngram_size=3,
    )[0, len(ids) :].tolist()
    found = {
        "prompt": prompt,
        "ids": ids,
        "logits": files.floats(logits[-1]),
        "greedy": tokens,
        "greedy_text": tokenizer.decode(tokens),
        "greedy_margin": float(f"{margin:.1e}"),
        "penalised": penalised,
    }
    return found, float((exact(batch).logits[0] - logits).abs().max())


def make(spec: Generator, root: Path) -> None:
    directory = root / spec.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    tokens = "qwen" if spec.kind in ("qwen2", "qwen3") else spec.kind
    vocabulary = write_tokenizer(directory, tokens, POSITIONS, old=spec.old).get_vocab_size()
    files.write_json(directory / "config.json", config(spec.kind, vocabulary, torch.float32))
    write_weights(spec, directory)

    tokenizer = AutoTokenizer.from_pretrained(directory)
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    exact = AutoModelForCausalLM.from_pretrained(directory, **options).eval().double()
    with torch.no_grad():
        answers = [case(model, exact, tokenizer, prompt) for prompt in PROMPTS]
    found: dict[str, Any] = {
        "made_with": VERSIONS,
        "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        "cases": [answer for answer, _ in answers],
        "float64_error": float(f"{max(error for _, error in answers):.1e}"),
    }
    if not spec.old:
        text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found["chat"] = {"messages": MESSAGES, "text": text, "ids": ids}
    files.write_json(directory / "reference.json", found)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{spec.name}: {size / 1000:.0f} kB, float64 error {found['float64_error']}", flush=True)
