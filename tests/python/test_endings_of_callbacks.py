"""The interpreter ends while a thread of the core runs Python's code, which calls the manager again."""

from __future__ import annotations

import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, run_python

SCRIPT = """
import logging, os, threading, time
from model_manager import ModelManager

manager = ModelManager(
    english_model=os.environ["ENGLISH"], turkish_model=os.environ["TURKISH"], generator_model=os.environ["WRITER"],
    auto_cleanup=False,
)
began = threading.Event()

def use():
    if threading.current_thread() is threading.main_thread() or began.is_set():
        return
    began.set()
    time.sleep(0.3)  # the main thread is at the end of the interpreter
    manager.stats()
    assert manager.is_loaded("english_sentence") in (True, False)
    print("went on", flush=True)
"""
CALLBACK = """
manager.submit(["a text"], lambda *_: use(), "english_sentence")
began.wait()
"""
EVENT = """
manager.submit_generation("a text", lambda *_: use(), max_new_tokens=4)
began.wait()
"""
HANDLER = """
class Handler(logging.Handler):
    def emit(self, record):
        use()

logger = logging.getLogger("model_manager")
logger.setLevel(logging.DEBUG)
logger.addHandler(Handler())
manager.submit(["a text"], lambda *_: None, "english_sentence")
began.wait()
"""


@pytest.mark.parametrize("code", [CALLBACK, EVENT, HANDLER], ids=["callback", "event", "logging handler"])
def test_a_thread_that_python_waits_for_may_use_the_manager(code):
    """It would sleep with the locks that it holds, such as a logging handler's, and the end would wait for them."""
    writer = str(FIXTURES / "gpt2")
    done = run_python(SCRIPT + code, ENGLISH=ENGLISH_MODEL, TURKISH=TURKISH_MODEL, WRITER=writer)
    assert done.stdout == "went on\n"
    assert done.stderr == ""
