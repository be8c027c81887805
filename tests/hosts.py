"""A host of static files as devices meet it: HTTPS on loopback, with byte ranges, and ways to misbehave."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Misbehave = Callable[[Any, str], bool]
"""(handler, file name) -> whether it has answered the request in its own way."""


class Host:
    """A host that serves a folder.

    Attributes:
        url: Its address.
        requests: (file name, the Range that was asked for) of each request.
        sent: Bytes of bodies, by file name.
        misbehave: Answers requests in its own way, if set.
        ranges: Whether it knows byte ranges.
    """

    def __init__(self, folder: Path, certificate: Path):
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []
        self.sent: dict[str, int] = {}
        self.misbehave: Misbehave | None = None
        self.ranges = True
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def do_GET(self) -> None:
                host._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"

    def asked(self, part: str) -> list[str]:
        """Returns the names of the files that were asked for and have something in their name."""
        return [name for name, _ in self.requests if part in name]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((name, wanted))
        if self.misbehave is not None and self.misbehave(handler, name):
            return
        path = self.folder / name
        if not path.is_file():
            handler.send_error(404)
            return
        data, start = path.read_bytes(), 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send(handler, name, data, start)

    def send(
        self, handler: BaseHTTPRequestHandler, name: str, data: bytes, start: int, most: int | None = None
    ) -> None:
        """Answers with a file from some byte on; of `most` bytes only so many, then the connection is cut."""
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        body = data[start:] if most is None else data[start : start + most]
        handler.wfile.write(body)
        self.sent[name] = self.sent.get(name, 0) + len(body)
        if most is not None:
            handler.close_connection = True
            handler.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Says nothing of devices that hang up: it is what they are tested for."""


@contextmanager
def serving(folder: Path, certificate: Path) -> Iterator[Host]:
    """Serves a folder as long as it is open."""
    host = Host(folder, certificate)
    thread = threading.Thread(target=host.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.server.shutdown()
        host.server.server_close()
        thread.join()


def write_certificate(path: Path) -> Path:
    """Writes key and certificate of 127.0.0.1, signed by itself, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return path
