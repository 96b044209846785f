"""What is wrong with the address of a Redis server, in words and with the remedy."""

from __future__ import annotations

import time

import pytest
from conftest import tiny
from model_manager.errors import ConfigError, ModelIOError
from test_cache_redis import SLOT, figures, fill, patient, ready


def certified(redis_server, authority, tmp_path, *, asks="no"):
    """A server that speaks TLS alone, with a certificate of `authority`."""
    paths = {name: str(tmp_path / f"redis-{name}.pem") for name in ("cert", "key", "ca")}
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(paths["cert"])
    leaf.private_key_pem.write_to_path(paths["key"])
    authority.cert_pem.write_to_path(paths["ca"])
    files = ["--tls-cert-file", paths["cert"], "--tls-key-file", paths["key"], "--tls-ca-cert-file", paths["ca"]]
    return redis_server("--port", "0", "--tls-port", "{port}", *files, "--tls-auth-clients", asks)


def reported(caplog, url):
    """What is said of a server that does not answer."""
    with tiny(cache_url=url, cache_timeout=0.2) as manager:
        ready(manager)
        deadline = time.monotonic() + 20
        while not figures(manager)["errors"] and time.monotonic() < deadline:
            manager.embed(f"text at {time.monotonic()}", SLOT)
    said = [record.getMessage() for record in caplog.records if "does not answer: " in record.getMessage()]
    assert len(said) == 1
    assert "os error" not in said[0]
    return said[0]


def test_a_server_that_trusts_us_and_that_we_trust(redis_server, authority, trusted, tmp_path):
    server = certified(redis_server, authority, tmp_path)
    url = server.url.replace("redis://", "rediss://")
    assert fill(url)["errors"] == 0
    with patient(cache_url=url, cache_size=0) as manager:
        ready(manager)
        manager.embed("text number 1", SLOT)
        assert figures(manager)["hits"] > 0


def test_tls_to_a_port_without_it(redis_server, caplog):
    said = reported(caplog, redis_server().url.replace("redis://", "rediss://"))
    assert "write redis:// in the place of rediss://" in said


def test_a_port_with_tls_without_it(redis_server, authority, tmp_path, caplog):
    said = reported(caplog, certified(redis_server, authority, tmp_path).url)
    assert "write rediss:// in the place of redis://" in said


def test_an_authority_that_is_not_trusted(redis_server, authority, tmp_path, caplog):
    server = certified(redis_server, authority, tmp_path)
    said = reported(caplog, server.url.replace("redis://", "rediss://"))
    assert "comes from an authority that is not trusted here" in said
    assert "SSL_CERT_FILE" in said


def test_a_server_that_asks_for_a_certificate(redis_server, authority, trusted, tmp_path, caplog):
    server = certified(redis_server, authority, tmp_path, asks="yes")
    said = reported(caplog, server.url.replace("redis://", "rediss://"))
    assert "ask for no certificate of ours" in said


def test_a_port_without_a_server(caplog):
    assert "the connection was refused: no server listens there" in reported(caplog, "redis://127.0.0.1:1")


def test_a_file_without_authorities(tmp_path, monkeypatch):
    path = tmp_path / "empty.pem"
    path.write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(ConfigError, match="it holds no certificate"):
        tiny(cache_url="rediss://127.0.0.1:1").slots()
    tiny(cache_url="redis://127.0.0.1:1").close()


def test_signs_in_a_password():
    with pytest.raises(ConfigError, match="%23 %2F %3F %40 %2C") as raised:
        tiny(cache_url="redis://:se#cret@127.0.0.1").slots()
    assert "cret" not in str(raised.value)


def test_one_node_does_not_clear_its_cluster(redis_cluster):
    fill(redis_cluster.url, ["one text"])
    for node in redis_cluster.nodes:
        with (
            patient(cache_url=node.url) as manager,
            pytest.raises(ModelIOError, match=r"its other nodes were not asked.*redis\+cluster://"),
        ):
            manager.cache_clear(tiers=True)
        assert redis_cluster.keys(node) == 0


def test_a_user_who_may_not_ask_for_clusters_clears_a_server(redis_server):
    server = redis_server()
    fill(server.url)
    may = ["~mm:1:*", "+mget", "+get", "+set", "+del", "+scan", "+select", "+client"]
    assert server.call("ACL", "SETUSER", "vectors", "on", ">word", *may) == b"+OK\r\n"
    with patient(cache_url=server.url.replace("://", "://vectors:word@")) as manager:
        manager.cache_clear(tiers=True)
    assert server.call("DBSIZE") == b":0\r\n"
