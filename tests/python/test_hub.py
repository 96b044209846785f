"""Downloads, from a hub that runs here: whole, cut short, refused, missing, resumed, and never needed twice."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT
from model_manager.errors import ConfigError, DownloadError, ModelManagerError

REPO = "someone/tiny-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    str(path.relative_to(ENGLISH_MODEL)): path.read_bytes()
    for path in Path(ENGLISH_MODEL).rglob("*")
    if path.is_file() and path.name != "reference.json"
}


class Hub(ThreadingHTTPServer):
    """A model hub with one model. Tests set how it behaves."""

    daemon_threads = True
    status = None
    cut = False
    token = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        return b"" if self.command == "HEAD" else body

    def do_GET(self):
        hub = self.server
        hub.requests.append(f"{self.command} {self.path}")
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.wfile.write(self.answer(401, b'{"error": "unauthorized"}'))
        elif hub.status:
            self.wfile.write(self.answer(hub.status, b'{"error": "no"}'))
        elif self.path.startswith(f"/api/models/{REPO}"):
            names = [{"rfilename": name} for name in FILES]
            self.wfile.write(self.answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": names}).encode()))
        elif self.path.startswith(f"/{REPO}/resolve/"):
            self.file(self.path.split("/resolve/", 1)[1].split("/", 1)[1])
        else:
            self.wfile.write(self.answer(404, b'{"error": "not found"}', X_Error_Code="RepoNotFound"))

    def file(self, name):
        if name not in FILES:
            self.wfile.write(self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT))
            return
        body = FILES[name]
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X_Repo_Commit": COMMIT,
            "Accept_Ranges": "bytes",
        }
        wanted = self.headers.get("Range")
        status = 200
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) if last else len(body) - 1, len(body) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(body)}"
            body, status = body[start : end + 1], 206
        if self.server.cut and name == "model.safetensors" and self.command == "GET" and len(body) > 10_000:
            self.answer(status, body, **headers)
            self.wfile.write(body[:5000])
            self.close_connection = True
            return
        self.wfile.write(self.answer(status, body, **headers))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield hub
    hub.shutdown()
    hub.server_close()


def manager_for(make_manager, tmp_path, **overrides):
    return make_manager(english_model=REPO, cache_dir=str(tmp_path / "hub"), **overrides)


def test_download_and_then_no_request_at_all(hub, make_manager, tmp_path):
    manager = manager_for(make_manager, tmp_path)
    vector = manager.embed(ENGLISH_TEXT)
    assert vector.shape == (DIMENSION,)
    assert hub.requests
    hub.requests.clear()
    assert manager_for(make_manager, tmp_path).embed(ENGLISH_TEXT).tolist() == vector.tolist()
    assert hub.requests == []
    offline = manager_for(make_manager, tmp_path, offline=True)
    assert offline.embed(ENGLISH_TEXT).tolist() == vector.tolist()


def test_the_layout_is_the_hubs(hub, make_manager, tmp_path):
    manager_for(make_manager, tmp_path).load("english_sentence")
    folder = tmp_path / "hub" / "models--someone--tiny-model"
    assert (folder / "refs" / "main").read_text().strip() == COMMIT
    assert (folder / "snapshots" / COMMIT / "config.json").is_file()


def test_a_mirror_with_a_companys_certificate(hub, make_manager, tmp_path, authority, monkeypatch, request):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http", "https"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(DownloadError, match=r"not trusted here.*SSL_CERT_FILE"):
        manager_for(make_manager, tmp_path).load("english_sentence")
    assert hub.requests == []
    request.getfixturevalue("trusted")
    manager_for(make_manager, tmp_path).load("english_sentence")
    monkeypatch.setenv("SSL_CERT_FILE", "no/such/file")
    manager_for(make_manager, tmp_path).load("english_sentence")  # from the cache
    with pytest.raises(ConfigError, match="SSL_CERT_FILE=no/such/file"):
        manager_for(make_manager, tmp_path / "empty").load("english_sentence")


def test_hf_home_is_respected(hub, make_manager, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    make_manager(english_model=REPO).load("english_sentence")
    assert (tmp_path / "home" / "hub" / "models--someone--tiny-model").is_dir()


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_refusing_hub(hub, make_manager, tmp_path, status):
    manager = manager_for(make_manager, tmp_path)
    hub.status = status
    with pytest.raises(ModelManagerError, match=rf"{REPO}") as caught:
        manager.embed(ENGLISH_TEXT)
    assert isinstance(caught.value, OSError)
    if status in (401, 403):
        assert "HF_TOKEN" in str(caught.value)
    hub.status = None
    assert manager.embed(ENGLISH_TEXT).shape == (DIMENSION,), "and works when the hub does again"


def test_a_token(hub, make_manager, tmp_path, monkeypatch):
    hub.token = "secret"
    manager = manager_for(make_manager, tmp_path)
    with pytest.raises(ModelManagerError, match="HF_TOKEN"):
        manager.embed(ENGLISH_TEXT)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert manager.embed(ENGLISH_TEXT).shape == (DIMENSION,)


def test_a_transfer_cut_in_the_middle(hub, make_manager, tmp_path):
    manager = manager_for(make_manager, tmp_path)
    hub.cut = True
    with pytest.raises(DownloadError, match=r"model\.safetensors"):
        manager.embed(ENGLISH_TEXT)
    with pytest.raises(ModelManagerError):
        manager_for(make_manager, tmp_path, offline=True).embed(ENGLISH_TEXT)
    hub.cut = False
    assert manager.embed(ENGLISH_TEXT).shape == (DIMENSION,), "a half-written file is not taken for a whole one"


def test_no_network(make_manager, tmp_path, monkeypatch):
    hub = Hub()
    hub.shutdown()
    hub.server_close()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(DownloadError, match=REPO):
        manager_for(make_manager, tmp_path).embed(ENGLISH_TEXT)
