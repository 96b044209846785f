"""An embedding server on 127.0.0.1 with Ollama's and OpenAI's protocols, optionally with TLS, that fails on request."""

from __future__ import annotations

import base64
import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import trustme
    from typing_extensions import Self

WIDTH = 4


def plain_vectors(texts: list[str]) -> np.ndarray:
    """Different vectors for different texts; not normalized."""
    return np.array([[len(text), sum(text.encode()), len(text.split()), 1] for text in texts], np.float32)


class EmbeddingServer(ThreadingHTTPServer):
    """Answers with `vectors`; `faults` go first, once each: a status, bytes that are the whole answer, None for none.

    `asked` holds (path, body, headers) of every request. While `gate` is clear, nothing is answered. With a
    `certificate` it speaks TLS.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        vectors: Callable[[list[str]], np.ndarray] = plain_vectors,
        certificate: trustme.LeafCert | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.vectors = vectors
        self.tls: ssl.SSLContext | None = None
        if certificate is not None:
            self.certify(certificate)
        self.faults: list[int | bytes | None] = []
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        self.busy = self.most_busy = self.connections = 0
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def get_request(self) -> tuple[Any, Any]:
        self.connections += 1
        connection, address = super().get_request()
        if self.tls is not None:
            # The handshake is the connection's own thread's, with its first read.
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that hung up
            super().handle_error(request, client_address)

    def certify(self, certificate: trustme.LeafCert) -> None:
        """Use this certificate from now on; open connections end with their next answer."""
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.tls)

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def ollama(self) -> str:
        """A source."""
        return f"ollama{'+https' if self.tls else ''}://127.0.0.1:{self.port}/org/model:1b"

    @property
    def openai(self) -> str:
        """A source."""
        return f"openai+http{'s' if self.tls else ''}://127.0.0.1:{self.port}/org/model"

    def texts(self) -> list[list[str]]:
        """The texts of each request."""
        return [body["input"] for _, body, _ in self.asked]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: EmbeddingServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.asked.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
            fault = server.faults.pop(0) if server.faults else None
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        server.gate.wait()
        # Before the answer goes out: who has read it may count at once.
        with server.lock:
            server.busy -= 1
        if isinstance(fault, int):
            self._send(fault, json.dumps({"error": {"message": f"fault {fault}"}}).encode())
        elif fault is not None:
            self._send(200, fault)
        else:
            self._send(200, json.dumps(self._answer(body)).encode())

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = body["input"]
        rows = self.server.vectors(texts)
        tokens = sum(len(text.split()) for text in texts)
        if self.path == "/api/embed":
            return {"model": body["model"], "embeddings": rows.tolist(), "prompt_eval_count": tokens}
        packed = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist(),
            }
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if getattr(self.connection, "context", None) is not self.server.tls:
            self.send_header("connection", "close")  # which also ends it here
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests do not print."""
