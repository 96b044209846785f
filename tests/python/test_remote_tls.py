"""A server's model over TLS: trusted certificates, and the errors for others."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
import trustme
from conftest import ENGLISH_MODEL, ENGLISH_TEXT
from embedding_server import EmbeddingServer, plain_vectors
from model_manager.errors import ConfigError, RemoteError, RemoteRefusedError

NOW = dt.datetime.now(dt.timezone.utc)
DAY = dt.timedelta(days=1)


@pytest.fixture(autouse=True)
def nobody_else_is_trusted(monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


@pytest.mark.parametrize(
    ("protocol", "host"), [("ollama", "127.0.0.1"), ("openai", "127.0.0.1"), ("openai", "localhost")]
)
def test_a_companys_authority_is_trusted_when_it_is_named(make_manager, authority, trusted, protocol, host):
    manager = make_manager()
    texts = [f"text {n}" for n in range(100)]
    with EmbeddingServer(certificate=authority.issue_cert(host)) as server:
        source = getattr(server, protocol).replace("127.0.0.1", host)
        assert source.startswith(f"{protocol}+https://")
        manager.register("remote", source)
        vectors = manager.embed(texts, "remote", normalize=False)
        for n in range(5):
            manager.embed(f"another {n}", "remote")
        assert server.connections <= 4, "they are kept"
    np.testing.assert_allclose(vectors, plain_vectors(texts), atol=1e-6)


def own_certificate(authority):
    """The result of `openssl req -x509`: a server that uses an authority's certificate."""
    return trustme.LeafCert(authority.private_key_pem.bytes(), authority.cert_pem.bytes(), [])


@pytest.mark.parametrize(
    ("certify", "words"),
    [
        (lambda _: trustme.CA().issue_cert("127.0.0.1"), "authority that is not trusted here.*SSL_CERT_FILE"),
        (lambda ours: ours.issue_cert("vectors.example"), 'is for DnsName\\("vectors.example"\\), not for 127.0.0.1;'),
        (
            lambda ours: ours.issue_cert("127.0.0.1", not_before=NOW - 9 * DAY, not_after=NOW - DAY),
            "has expired; renew",
        ),
        (
            lambda ours: ours.issue_cert("127.0.0.1", not_before=NOW + DAY, not_after=NOW + 9 * DAY),
            "not valid yet; see",
        ),
        (own_certificate, "an authority's own.*CA:FALSE"),
    ],
    ids=["unknown authority", "another name", "expired", "not yet valid", "self-signed"],
)
def test_a_certificate_that_is_not_trusted_is_told_at_once(
    make_manager, authority, trusted, monkeypatch, certify, words
):
    """Also the tenth time, because an open circuit would hide the reason."""
    monkeypatch.setenv("MODEL_MANAGER_REMOTE_KEY", "sk-secret")
    manager = make_manager()
    with EmbeddingServer(certificate=certify(authority)) as server:
        manager.register("remote", server.openai)
        for _ in range(10):
            with pytest.raises(RemoteRefusedError, match=words) as caught:
                manager.load("remote")
            assert f"https://127.0.0.1:{server.port}/v1/embeddings" in str(caught.value)
        assert server.connections == 10, "not tried again"
        assert server.asked == [], "neither text nor key has left"
        report = manager.stats()["slots"]["remote"]["remote"]
        assert (report["requests"], report["retries"], report["circuit"]) == (10, 0, "closed")


def test_a_server_without_tls_is_told_at_once(make_manager):
    manager = make_manager()
    with EmbeddingServer() as server:
        manager.register("remote", server.ollama.replace("ollama", "ollama+https"))
        with pytest.raises(
            RemoteRefusedError, match=r"no TLS is spoken at this port.*write http in the place of https"
        ):
            manager.load("remote")
        assert server.connections == 1


def test_tls_that_is_not_spoken_to_is_thought_of(make_manager, authority):
    manager = make_manager()
    with EmbeddingServer(certificate=authority.issue_cert("127.0.0.1")) as server:
        manager.register("remote", server.ollama.replace("+https", ""))
        with pytest.raises(RemoteError, match="if it speaks TLS, write https in the place of http"):
            manager.load("remote")


def test_a_certificate_that_is_renewed_wrongly_fails_its_calls(make_manager, authority, trusted):
    """While the model is in memory, until the next valid certificate."""
    manager = make_manager(cache_size=0)
    good, expired = (authority.issue_cert("127.0.0.1", not_after=NOW + days * DAY) for days in (9, -1))
    with EmbeddingServer(certificate=good) as server:
        manager.register("remote", server.ollama)
        vector = manager.embed("a", "remote")
        server.certify(expired)
        manager.embed("a", "remote")  # by the connection that was open
        for _ in range(10):
            with pytest.raises(RemoteRefusedError, match="has expired"):
                manager.embed("a", "remote")
        server.certify(good)
        np.testing.assert_array_equal(manager.embed("a", "remote"), vector)


def test_a_local_model_stands_in_for_a_server_that_is_not_trusted(make_manager, authority, caplog):
    manager = make_manager()
    with EmbeddingServer(certificate=authority.issue_cert("127.0.0.1")) as server:
        manager.register("search", server.ollama, fallback=[ENGLISH_MODEL])
        vector = manager.embed(ENGLISH_TEXT, "search")
    np.testing.assert_array_equal(vector, manager.embed(ENGLISH_TEXT, "english_sentence"))
    assert "SSL_CERT_FILE" in caplog.text


def test_a_file_of_authorities_that_is_none_is_named(make_manager, authority, tmp_path, monkeypatch):
    manager = make_manager()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with EmbeddingServer(certificate=authority.issue_cert("127.0.0.1")) as server, EmbeddingServer() as plain:
        manager.register("remote", server.openai)
        with pytest.raises(ConfigError, match=r"SSL_CERT_FILE=.*missing\.pem: .*; name a file of certificates in PEM"):
            manager.load("remote")
        manager.register("plain", plain.openai)
        manager.load("plain")  # which has no use for it
