"""What transformers makes of files that add tokens: to a BERT vocabulary alone, and to a `tokenizer.json`."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .files import write_json
from .versions import VERSIONS

TEXT = "the [DRUG] is cold, [drug] <e1>x</e1> the[MASK] thedrugs drug [M]"


def described(content: str, **flags: bool) -> dict[str, Any]:
    """An added token as `added_tokens_decoder` describes it."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


def cases(size: int) -> dict[str, dict[str, Any]]:
    """Name → file name → what it says; `tokenizer_config.json` over the fixture's own."""
    plain = {"[DRUG]": size, "<e1>": size + 1}
    word = described("drug", special=False, normalized=True, single_word=True)
    decoder = {str(size): described("[DRUG]"), str(size + 1): word}
    mask = {"content": "[M]", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "none": {},
        "added": {"added_tokens.json": plain},
        "added, lower-cased": {"added_tokens.json": plain, "tokenizer_config.json": {"do_lower_case": True}},
        "added, with a gap": {"added_tokens.json": {"[DRUG]": size + 3}},
        "added, known already": {"added_tokens.json": {"the": 5}},
        "additional": {"special_tokens_map.json": {"additional_special_tokens": ["[DRUG]"]}},
        "described": {"tokenizer_config.json": {"added_tokens_decoder": decoder}},
        "described and added": {
            "tokenizer_config.json": {"added_tokens_decoder": decoder},
            "added_tokens.json": {"<e1>": size + 2},
        },
        "another mask": {
            "special_tokens_map.json": {"mask_token": mask, "additional_special_tokens": ["[DRUG]"]},
            "tokenizer_config.json": {"mask_token": None},
        },
    }


def cases_over_json(size: int) -> dict[str, dict[str, Any]]:
    """Name → what `tokenizer_config.json` says, next to a `tokenizer.json` whose vocabulary has `size` pieces."""
    word = described("drug", special=False, normalized=True, single_word=True)
    own = described("[MASK]", single_word=True)
    return {
        "none": {},
        "described": {"added_tokens_decoder": {str(size): described("[DRUG]"), str(size + 1): word}},
        "described otherwise": {"added_tokens_decoder": {"4": own}, "mask_token": "[MASK]"},
        "named": {"eos_token": "the"},
        "named by an object": {"eos_token": {**described("the"), "single_word": True, "__type": "AddedToken"}},
        "additional": {"additional_special_tokens": ["the", "is"]},
        "extra": {"extra_special_tokens": ["the"]},
    }


def _ids(tokenizer: Any, folder: Path, files: dict[str, Any]) -> list[int]:
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return tokenizer.from_pretrained(str(folder))(TEXT)["input_ids"]


def make(fixtures: Path) -> None:
    """Writes the ids of every case, on the vocabulary of the fixture `bert_bin` and on the file of `bert_cls`."""
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    source = fixtures / "bert_bin"
    size = len((source / "vocab.txt").read_text(encoding="utf-8").splitlines())
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    versions = {name: VERSIONS[name] for name in ("transformers", "tokenizers")}
    made, over_json = [], []
    for name, files in cases(size).items():
        files = {**files, "tokenizer_config.json": {**settings, **files.get("tokenizer_config.json", {})}}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(source / "vocab.txt", folder)
            made.append({"name": name, "files": files, "ids": _ids(BertTokenizer, Path(folder), files)})
    source = fixtures / "bert_cls" / "tokenizer.json"
    size = len(json.loads(source.read_text(encoding="utf-8"))["model"]["vocab"])
    for name, config in cases_over_json(size).items():
        files = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **config}}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(source, folder)
            over_json.append({"name": name, "files": files, "ids": _ids(PreTrainedTokenizerFast, Path(folder), files)})
    made = {"versions": versions, "text": TEXT, "cases": made, "over_json": over_json}
    write_json(fixtures / "text" / "added_tokens.json", made)
