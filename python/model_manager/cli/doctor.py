"""``doctor``: the machine, the settings, the models, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import Config, ModelManager, __version__, available_isas, isa, resident_bytes
from .._embedder import is_served, without_key
from .._environment import SERVER_PREFIX, unknown
from .._machine import cpu_name, usable_cores
from .._sizes import size_text
from ..errors import ConfigError, MissingFileError, ModelManagerError, ModelNotFoundError
from .known import KINDS, inspect
from .output import complete_model, is_offline, json_option, manager, quiet, show_json, show_table
from .slots import hub_cache
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_PREFIXES = ("MODEL_MANAGER_", "HF_", "QDRANT_", "OLLAMA_", "API_", "EMBEDDING_")
_NETWORK = ("SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_PACKAGES = (
    "numpy", "tqdm", "qdrant-client", "click", "rich", "fastapi", "uvicorn", "langchain-core", "llama-index-core",
)  # fmt: skip
OK, ABSENT, WRONG = "ok", "not downloaded", "wrong"


@click.command(
    cls=Command,
    help=say(
        "Check machine, settings and models. Each configured model is loaded once, without downloads. Exit code 1 if"
        " something is wrong; a model that is not downloaded yet is not wrong. With MODEL (a slot, folder, GGUF file,"
        " pkg:… or hub id): say whether it runs, and why not. Its weights are neither read nor downloaded.",
        "Makineye, ayarlara ve modellere bak. Ayarlı her model bir kez, indirmeden yüklenir. Yanlış bir şey varsa çıkış"
        " kodu 1'dir; gerektiğinde indirilecek model yanlış sayılmaz. MODEL (yuva, klasör, GGUF dosyası, pkg:… ya da"
        " hub adı) verilirse: çalışıp çalışmadığını, çalışmıyorsa nedenini söyle. Ağırlıkları okunmaz ve indirilmez.",
    ),
)
@click.argument("model", required=False, shell_complete=complete_model)
@option("--quick", is_flag=True, help=("Load no models.", "Model yükleme."))
@option(
    "--kind",
    type=click.Choice(KINDS),
    help=(
        "What MODEL is to be used for. Default: as its files say.",
        "MODEL'in kullanımı. Varsayılan: dosyalarındaki gibi.",
    ),
)
@option(
    "--adapter",
    help=(
        "A LoRA adapter of PEFT over MODEL (folder or hub id), or one of MODEL's own by its name.",
        "MODEL üzerine bir PEFT LoRA uyarlayıcısı (klasör ya da hub adı) ya da MODEL'in kendi uyarlayıcısının adı.",
    ),
)
@json_option
def doctor(model: str | None, quick: bool, kind: str | None, adapter: str | None, as_json: bool) -> int:
    if model is not None:
        return inspect(model, kind, as_json, adapter)
    for name, value in (("kind", kind), ("adapter", adapter)):
        if value is not None:
            raise click.UsageError(f"--{name} needs MODEL.")
    found: dict[str, Any] = {"versions": _versions(), "machine": _machine(), "settings": _settings()}
    problems: list[str] = []
    found |= {"problems": problems, "warnings": []}
    try:
        config = Config()
    except ConfigError as error:
        problems.append(str(error))
    else:
        with quiet(), manager(lazy_loading=True) as empty:
            threads = empty.stats()["threads"]
            slots = empty.stats()["slots"]
        found["warnings"] = [*unknown(Config.fields, similar=True).values(), *_server_variables()]
        found["warnings"] += _warnings(config, {name: slot["source"] for name, slot in slots.items()})
        found["machine"] |= {
            "compute_threads": str(threads),
            "dtype": config.dtype,
            "profile": config.profile,
            "language_detector": config.language_detector,
            "model_cache": str(hub_cache(config)),
        }
        if not quick:
            found["models"] = list(_models(config))
            problems += [f"{one['slot']}: {one['reason']}" for one in found["models"] if one["state"] == WRONG]
    if as_json:
        show_json(found)
    else:
        _show(found)
    return 1 if problems else 0


def _show(found: dict[str, Any]) -> None:
    show_table("Machine", ("", ""), ((name.replace("_", " "), value) for name, value in found["machine"].items()))
    show_table("Versions", ("package", "version"), found["versions"].items())
    show_table("Settings in the environment", ("variable", "value"), found["settings"].items())
    if "models" in found:
        rows = ((one["slot"], one["source"], one["state"], one["reason"] or one["facts"]) for one in found["models"])
        show_table("Models", ("slot", "source", "state", ""), rows)
    for warning in found["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
    for problem in found["problems"]:
        click.echo(f"Wrong: {problem}", err=True)
    if not found["problems"]:
        click.echo("Nothing is wrong.")


def _server_variables() -> list[str]:
    try:
        from ..server import ServerConfig
    except ImportError:  # the extra is not installed
        return []
    return list(unknown(ServerConfig.fields, SERVER_PREFIX).values())


def _warnings(config: Config, sources: dict[str, str | None]) -> list[str]:
    """What works, but hardly as intended."""
    turkish, english = sources["turkish_sentence"], sources["english_sentence"]
    if not config.language_detection or turkish == english:
        return []
    warning = (
        "turkish_sentence and english_sentence have different models, and each text goes to the model of its"
        " language. Their vectors do not compare: a Qdrant collection, a router or a cache of answers that holds"
        " texts of both finds those of one language only. MODEL_MANAGER_PROFILE=multilingual gives both one model;"
        " AI_LANGUAGE_DETECTION=false sends all texts to the preferred one."
    )
    return [warning]


def _versions() -> dict[str, str]:
    versions = {"model-manager-rs": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _machine() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "instruction_set": f"{isa()} of {', '.join(available_isas())}",
        "cores": f"{usable_cores()} usable of {os.cpu_count()}, cgroup limit {_cpu_limit()}",
        "memory": _memory(),
        "this_process": size_text(resident_bytes()),
    }


def _cpu_limit() -> str:
    quota, period = ([*next(iter(_lines("/sys/fs/cgroup/cpu.max")), "").split(), "", ""])[:2]
    return f"{int(quota) / int(period):g}" if quota.isdigit() and period.isdigit() else "none"


def _memory() -> str:
    figures = {name: rest for name, _, rest in (line.partition(":") for line in _lines("/proc/meminfo"))}
    if not {"MemTotal", "MemAvailable"} <= figures.keys():
        return "unknown"
    total, free = (int(figures[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit = next(iter(_lines("/sys/fs/cgroup/memory.max")), "max")
    bound = size_text(int(limit)) if limit.isdigit() else "none"
    return f"{size_text(free)} free of {size_text(total)}, cgroup limit {bound}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _settings() -> dict[str, str]:
    """The variables of this package and its parts that are set. Keys and tokens are not shown."""
    ours = {field["environment"] for field in Config.fields()}
    return {
        name: "(set)" if any(word in name for word in _SECRETS) else _shown(name, value)
        for name, value in sorted(os.environ.items())
        if name in ours or name.startswith(_PREFIXES) or name.upper() in _NETWORK
    }


def _shown(name: str, value: str) -> str:
    """A value without the keys and passwords in its addresses: before an @, and behind a ?."""
    if name.upper().endswith("_PROXY"):  # one address, with or without a scheme
        value = re.sub(r"^(\w+://)?.*@", r"\1***@", value)
    return re.sub(r"(://[^?]*\?)\S+", r"\1***", without_key(value))


def _models(config: Config) -> Iterator[dict[str, Any]]:
    """The state of each slot, which is loaded without a download and unloaded again."""
    offline = is_offline(config)
    with manager(offline=True, lazy_loading=True) as found, quiet():
        for slot, state in found.stats()["slots"].items():
            if state["kind"] == "generator" and not config.use_huggingface:
                continue
            started = time.perf_counter()
            one = {"slot": slot, "source": state["source"], "state": OK, "reason": None, "facts": None}
            try:
                found.load(slot)
                seconds = time.perf_counter() - started
                one["facts"] = f"{_facts(found, slot, state['kind'])}, {seconds:.2f} s to load"
            except (ModelNotFoundError, MissingFileError) as error:
                source = state["source"] or ""
                missing = not offline and not is_served(source) and not Path(source).exists()
                one["state"], one["reason"] = ABSENT if missing else WRONG, str(error)
            except ModelManagerError as error:
                one["state"], one["reason"] = WRONG, str(error)
            finally:
                found.unload(slot)
            yield one


def _facts(found: ModelManager, slot: str, kind: str) -> str:
    if kind == "generator":
        about = found.describe_generator(slot)
        return f"{about['context']} tokens of context, {size_text(about['bytes'])}"
    model = found.describe(slot)
    served = "://" in model["path"]
    where = f"at {model['path']}" if served else f"{model['dtype']}, {size_text(model['bytes'])}"
    return f"{model['architecture']}, {model['dimension']} dimensions, {where}"
