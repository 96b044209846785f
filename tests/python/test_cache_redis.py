"""Results in a real redis-server: shared by processes, and every failure is a miss."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES, tiny
from model_manager.errors import ModelIOError

SLOT = "english_sentence"
TEXTS = [f"text number {number}" for number in range(64)]


@pytest.fixture
def expected():
    with tiny(cache_size=0) as manager:
        return manager.embed(TEXTS, SLOT)


def figures(manager):
    return manager.cache_info()["tiers"]["redis"]


def patient(**settings):
    """A manager that waits for an answer of a busy machine."""
    return tiny(**{"cache_timeout": 10, **settings})


def fill(url, texts=TEXTS, **settings):
    with patient(cache_url=url, **settings) as manager:
        manager.embed(texts, SLOT)
        deadline = time.monotonic() + 20
        while figures(manager)["writes"] < len(texts) and time.monotonic() < deadline:
            manager.cache_flush()
            time.sleep(0.02)
        return figures(manager)


def ready(manager):
    """The model is loaded and its content known, so that the tier is asked."""
    manager.embed("a first text", SLOT)
    deadline = time.monotonic() + 20
    while not any(figures(manager)[key] for key in ("hits", "writes", "errors")) and time.monotonic() < deadline:
        manager.cache_flush()
        time.sleep(0.02)


def test_a_second_process_hits_every_text(redis_server, expected):
    server = redis_server()
    assert fill(server.url)["writes"] == len(TEXTS)
    with patient(cache_url=server.url) as manager:
        ready(manager)
        texts = manager.stats()["queue"]["texts"]
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert figures(manager)["hits"] == len(TEXTS)
        assert manager.stats()["queue"]["texts"] == texts
        assert manager.cache_info()["entries"] == 50
    key = server.call("RANDOMKEY").split(b"\r\n")[1].decode()
    assert 600_000 < int(server.call("TTL", key)[1:].strip()) <= 604_800


async def test_asyncio(redis_server, expected):
    server = redis_server()
    fill(server.url)
    with patient(cache_url=server.url) as manager:
        ready(manager)
        np.testing.assert_array_equal(await manager.aembed(TEXTS, SLOT), expected)
        assert figures(manager)["hits"] == len(TEXTS)


def test_what_redis_has_is_copied_to_the_disk(redis_server, expected, tmp_path):
    server = redis_server()
    fill(server.url)
    settings = {"cache_url": server.url, "cache_disk": str(tmp_path)}
    with patient(**settings) as manager:
        ready(manager)
        manager.embed(TEXTS, SLOT)
        manager.cache_flush()
    server.stop()
    with patient(**settings) as manager:
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert not manager.is_loaded(SLOT)


def test_killed_restarted_and_paused(redis_server, expected):
    server = redis_server()
    fill(server.url)
    with tiny(cache_url=server.url, cache_size=0) as manager:
        ready(manager)
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        hits = figures(manager)["hits"]
        assert hits == len(TEXTS)
        server.stop()
        for _ in range(3):
            np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
        assert figures(manager)["hits"] == hits
        server.start()
        deadline = time.monotonic() + 30
        while figures(manager)["hits"] == hits and time.monotonic() < deadline:
            manager.embed(TEXTS[:4], SLOT)
            manager.cache_flush()
            time.sleep(0.1)
        assert figures(manager)["hits"] > hits
        server.signal(signal.SIGSTOP)
        errors = figures(manager)["errors"]
        for number in range(20):
            manager.embed(f"new text {number}", SLOT)
        # One call waits for the timeout; then the server rests for a second or more.
        assert 0 < figures(manager)["errors"] - errors < 10
        server.signal(signal.SIGCONT)


def test_a_model_that_is_replaced_while_redis_is_asked(redis_server, tmp_path):
    """The old model's vector is not kept as the new one's."""
    server = redis_server()
    names = ("bert_plain", "bert_max")
    plain, other = (shutil.copytree(FIXTURES / name, tmp_path / name) for name in names)
    fill(server.url, TEXTS, english_model=str(plain))
    with patient(cache_url=server.url, english_model=str(plain)) as manager:
        ready(manager)
        server.signal(signal.SIGSTOP)
        asking = threading.Thread(target=manager.embed, args=(TEXTS, SLOT))
        asking.start()
        # The call waits for an answer meanwhile; on a machine that is slower than that, this shows nothing.
        time.sleep(0.02)
        manager.unload(SLOT)
        plain.rename(tmp_path / "gone")
        other.rename(plain)
        manager.load(SLOT)
        server.signal(signal.SIGCONT)
        asking.join(60)
        later = manager.embed(TEXTS, SLOT)
    with tiny(english_model=str(plain), cache_size=0) as fresh:
        np.testing.assert_allclose(later, fresh.embed(TEXTS, SLOT), atol=1e-6)


@pytest.mark.parametrize("password", ["", ":wrong@", "other:right@"])
def test_a_wrong_password_is_a_miss_and_one_warning(redis_server, expected, password, caplog):
    server = redis_server("--requirepass", "right")
    url = server.url.replace("redis://", f"redis://{password}")
    with caplog.at_level("WARNING"), patient(cache_url=url, cache_size=0) as manager:
        ready(manager)
        for _ in range(3):
            np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
        manager.cache_flush()
        assert figures(manager)["hits"] == 0
    warnings = [record.message for record in caplog.records if "does not answer" in record.message]
    assert 1 <= len(warnings) <= 2
    assert "wrong" not in "".join(warnings)
    assert "right" not in "".join(warnings)


def test_a_password_from_the_environment(redis_server, expected, monkeypatch):
    server = redis_server("--requirepass", "p@ss:word/1")
    monkeypatch.setenv("MY_REDIS_PASSWORD", "p@ss:word/1")
    url = server.url.replace("redis://", "redis://:env:MY_REDIS_PASSWORD@")
    assert fill(url)["writes"] == len(TEXTS)


def test_tls_with_an_authority_of_ones_own(redis_server, expected, authority, tmp_path, monkeypatch, caplog):
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    certificate.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    files = ("--tls-cert-file", str(chain), "--tls-key-file", str(key), "--tls-ca-cert-file", str(chain))
    server = redis_server("--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no", *files)
    url = server.url.replace("redis://", "rediss://")
    with caplog.at_level("WARNING"), patient(cache_url=url, cache_size=0) as manager:
        ready(manager)
        np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
        manager.cache_flush()
        assert (figures(manager)["hits"], figures(manager)["writes"]) == (0, 0)
    assert any("does not answer" in record.message for record in caplog.records)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    assert fill(url)["writes"] == len(TEXTS)
    with patient(cache_url=url, cache_size=0) as manager:
        ready(manager)
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert figures(manager)["hits"] == len(TEXTS)


def test_the_documented_rights_are_enough(redis_server, expected):
    server = redis_server()
    documented = (Path(__file__).parents[2] / "docs" / "cache.md").read_text(encoding="utf-8")
    rule = next(line for line in documented.splitlines() if line.startswith("ACL SETUSER vectors "))
    assert server.call(*rule.split()) == b"+OK\r\n"
    url = server.url.replace("redis://", "redis://vectors:password@")
    fill(url)
    with patient(cache_url=url, cache_size=0) as manager:
        ready(manager)
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert figures(manager)["hits"] == len(TEXTS)
        manager.cache_clear(tiers=True)
        assert figures(manager)["errors"] == 0
    assert server.call("DBSIZE") == b":0\r\n"


def test_a_server_that_answers_byte_by_byte_holds_nobody(expected):
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with contextlib.suppress(OSError), connection:
            while connection.recv(1 << 16):
                for byte in b"*64\r\n" + b"$-1\r\n" * 64:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.03)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with tiny(cache_url=f"redis://127.0.0.1:{listener.getsockname()[1]}", cache_size=0) as manager:
        ready(manager)
        for _ in range(2):
            started = time.monotonic()
            np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
            assert time.monotonic() - started < 8, "a complete answer takes ten seconds"
    listener.close()


def test_no_memory_left_there(redis_server, expected, caplog):
    server = redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    with patient(cache_url=server.url, cache_size=0) as manager:
        ready(manager)
        for _ in range(4):
            np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
            manager.cache_flush()
        assert figures(manager)["errors"] > 1
        assert figures(manager)["working"] is True
    warnings = [record.getMessage() for record in caplog.records if server.url in record.getMessage()]
    assert len(warnings) == 1, "reads between the refusals do not begin the report anew"
    assert "refuses to store" in warnings[0]


def test_a_distant_server_has_the_time_of_the_setting(redis_server, expected):
    """An answer that takes 0.4 s is waited for where `cache_timeout` allows it."""
    server = redis_server()
    fill(server.url)
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source, target, delay):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(delay)
                target.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", server.port))
                for way in ((near, far, 0), (far, near, 0.4)):
                    threading.Thread(target=pass_on, args=way, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with tiny(cache_url=f"redis://127.0.0.1:{listener.getsockname()[1]}", cache_timeout=20, cache_size=0) as manager:
        ready(manager)
        computed = manager.stats()["queue"]["texts"]
        np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
        assert manager.stats()["queue"]["texts"] == computed
        assert figures(manager)["hits"] == len(TEXTS)
    listener.close()


def test_a_secret_hides_keys_and_refuses_strangers(redis_server, expected, monkeypatch):
    server = redis_server()
    monkeypatch.setenv("CACHE_SECRET", "one secret")
    fill(server.url, cache_secret="env:CACHE_SECRET")
    for secret, hits in [("another secret", 0), (None, 0), ("one secret", len(TEXTS))]:
        with patient(cache_url=server.url, cache_size=0, cache_secret=secret) as manager:
            ready(manager)
            np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
            assert figures(manager)["hits"] == hits


def test_two_servers_share_the_keys_and_one_may_die(redis_server, expected):
    servers = [redis_server(), redis_server()]
    url = ",".join(server.url for server in servers)
    fill(url)
    sizes = [int(server.call("DBSIZE")[1:].strip()) for server in servers]
    assert sum(sizes) == len(TEXTS)
    assert min(sizes) > 10
    servers[0].stop()
    with patient(cache_url=url, cache_size=0) as manager:
        ready(manager)
        np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
        assert figures(manager)["hits"] == sizes[1]


def test_clearing_leaves_keys_of_others(redis_server):
    server = redis_server()
    server.call("SET", "mine", "1")
    fill(server.url)
    with patient(cache_url=server.url) as manager:
        manager.cache_clear(tiers=True)
    assert server.call("DBSIZE") == b":1\r\n"


def test_clearing_asks_a_server_that_rests_and_says_what_it_could_not_empty(redis_server):
    server = redis_server()
    fill(server.url)
    with tiny(cache_url=server.url, cache_timeout=0.2) as manager:
        ready(manager)
        errors = figures(manager)["errors"]
        server.signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while figures(manager)["errors"] == errors and time.monotonic() < deadline:
            manager.embed(f"text at {time.monotonic()}", SLOT)
        assert figures(manager)["working"] is False
        with pytest.raises(ModelIOError, match=r"not emptied.*call again") as raised:
            manager.cache_clear(tiers=True)
        assert server.url in str(raised.value)
        server.signal(signal.SIGCONT)
        manager.cache_clear(tiers=True)
    assert server.call("DBSIZE") == b":0\r\n"


def test_the_password_of_a_socket_is_not_shown(caplog):
    url = "unix:///no/such/socket?pass=hidden-word&db=1"
    with caplog.at_level("WARNING"), patient(cache_url=url) as manager:
        manager.embed(TEXTS[:1], SLOT)
        manager.cache_flush()
        shown = f"{manager._cache_probe()} {manager.config!r} {caplog.text}"
    assert "/no/such/socket" in shown
    assert "hidden-word" not in shown


def test_a_wrong_address_is_refused_by_name():
    with pytest.raises(ValueError, match="cache_url"):
        patient(cache_url="http://example.com").embed("text", SLOT)
