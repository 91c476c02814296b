"""A small registry of the OCI Distribution protocol, in memory, that can be told to misbehave."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["FakeRegistry", "Request", "start_registry"]


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]


@dataclass
class Fault:
    """Happens to the next `times` requests of a method whose path holds `part`."""

    method: str
    part: str
    times: int
    act: Callable[[Any], None]


@dataclass
class FakeRegistry:
    """State of the server; tests read and change it."""

    address: str = ""
    blobs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, tuple[str, bytearray]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    has_mounts: bool = True
    has_ranges: bool = True
    keeps_blobs: bool = False
    """What is sent under a digest that is there is dropped, as Distribution does."""
    basic: str = ""
    """USER:PASSWORD that is asked for."""
    bearer_realm: str = ""
    """URL of the token server; tokens are asked for if it is set."""
    users: str = ""
    """USER:PASSWORD that the token server takes."""
    tokens: set[str] = field(default_factory=set)
    blob_headers: dict[str, str] = field(default_factory=dict)

    def count(self, method: str, part: str = "") -> int:
        return sum(request.method == method and part in request.path for request in self.requests)

    def add_blob(self, repository: str, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs.setdefault(repository, {})[digest] = data
        return {"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": digest, "size": len(data)}

    def add_manifest(self, repository: str, tag: str, manifest: Any) -> str:
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for reference in (tag, digest):
            self.manifests[repository, reference] = ("application/vnd.oci.image.manifest.v1+json", data)
        return digest

    def fail(self, method: str, part: str, status: int, *, times: int = 1, **headers: str) -> None:
        """Answer with a status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, part, times, lambda handler: handler.reply(status, b"{}", named)))

    def act(self, method: str, part: str, act: Callable[[Any], None], *, times: int = 1) -> None:
        """Do something else with requests."""
        self.faults.append(Fault(method, part, times, act))

    def cut_download(self, part: str, after_bytes: int, *, times: int = 1) -> None:
        """Close the connection in the middle of a blob, counted from where the client goes on."""
        self.act("GET", part, lambda handler: handler.send_blob(limit=after_bytes), times=times)

    def cut_upload(self, after_bytes: int, *, times: int = 1) -> None:
        """Close the connection after so many bytes of a stream, which are kept."""
        self.act("PATCH", "/blobs/uploads/", lambda handler: handler.take_stream(limit=after_bytes), times=times)

    def lose_reply(self, method: str, part: str) -> None:
        """Do what is asked for, and close the connection instead of answering."""
        self.act(method, part, lambda handler: handler.answer(is_lost=True))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FakeRegistry

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            super().handle()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.place, self.query = url.path, parse_qs(url.query)
        self.is_lost = False
        self.length = int(self.headers.get("Content-Length", 0))
        self.registry.requests.append(Request(self.command, self.place, self.query, dict(self.headers)))
        if self.place == "/token":
            self.give_token()
        elif self.may_pass():
            for fault in self.registry.faults:
                if fault.times and fault.method == self.command and fault.part in self.place:
                    fault.times -= 1
                    fault.act(self)
                    return
            self.answer()

    do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

    def answer(self, *, is_lost: bool = False) -> None:
        self.is_lost = is_lost
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs/uploads|blobs)/(.*)", self.place)
        if not found:
            self.reply(404)
            return
        self.repository, kind, self.rest = found.groups()
        if kind == "manifests":
            self.manifest()
        elif kind == "blobs":
            self.send_blob()
        elif self.command == "POST":
            self.begin_upload()
        elif self.rest not in self.registry.uploads:
            self.reply(404)
        elif self.command == "PATCH":
            self.take_stream()
        elif self.command == "PUT":
            self.end_upload()
        else:
            self.tell_upload(204)

    def may_pass(self) -> bool:
        given = self.headers.get("Authorization", "")
        registry = self.registry
        if registry.basic and given != "Basic " + base64.b64encode(registry.basic.encode()).decode():
            self.drain()
            self.reply(401, headers={"WWW-Authenticate": 'Basic realm="here, and there"'})
            return False
        if registry.bearer_realm and given.removeprefix("Bearer ") not in registry.tokens:
            self.drain()
            scope = f"repository:{self.place.removeprefix('/v2/').split('/')[0]}:pull,push"
            challenge = f'Bearer realm="{registry.bearer_realm}",service="test",scope="{scope}"'
            self.reply(401, headers={"WWW-Authenticate": challenge})
            return False
        return True

    def give_token(self) -> None:
        body = parse_qs(self.rfile.read(self.length).decode())
        given = self.headers.get("Authorization", "")
        user, _, password = self.registry.users.partition(":")
        is_known = given == "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        if self.registry.users and not is_known and body.get("refresh_token") != [password]:
            self.reply(401)
            return
        token = secrets.token_hex(8)
        self.registry.tokens.add(token)
        self.reply(200, json.dumps({"access_token" if body else "token": token}).encode())

    def manifest(self) -> None:
        key = (self.repository, self.rest)
        if self.command == "PUT":
            data = self.rfile.read(self.length)
            digest = self.registry.add_manifest(self.repository, self.rest, data)
            self.reply(201, headers={"Docker-Content-Digest": digest})
        elif key in self.registry.manifests:
            kind, data = self.registry.manifests[key]
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.reply(200, data, {"Content-Type": kind, "Docker-Content-Digest": digest})
        else:
            self.reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no\\u001b[31m such"}]}')

    def send_blob(self, limit: int | None = None) -> None:
        _, repository, digest = re.fullmatch(r"(/v2/)?(.+)/blobs/(.*)", self.place).groups()  # type: ignore[union-attr]
        data = self.registry.blobs.get(repository, {}).get(digest)
        if data is None:
            self.reply(404)
            return
        start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0]) if self.registry.has_ranges else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.reply(206 if start else 200, data[start:], headers | self.registry.blob_headers, limit=limit)

    def begin_upload(self) -> None:
        (digest,) = self.query.get("mount", [""])
        (source,) = self.query.get("from", [""])
        data = self.registry.blobs.get(source, {}).get(digest)
        if self.registry.has_mounts and data is not None:
            self.registry.blobs.setdefault(self.repository, {})[digest] = data
            self.reply(201)
            return
        self.rest = secrets.token_hex(4)
        self.registry.uploads[self.rest] = (self.repository, bytearray())
        self.tell_upload(202)

    def take_stream(self, limit: int | None = None) -> None:
        _, data = self.registry.uploads[self.place.rpartition("/")[2]]
        self.repository, self.rest = "", self.place.rpartition("/")[2]
        start = int(self.headers.get("Content-Range", "0-").split("-")[0])
        if start != len(data):
            self.drain()
            self.reply(416)
            return
        left = self.length if limit is None else min(limit, self.length)
        while left and (piece := self.rfile.read(min(left, 1 << 16))):
            data += piece
            left -= len(piece)
        if limit is None:
            self.tell_upload(202)
        else:
            self.close_connection = True
            self.connection.close()

    def end_upload(self) -> None:
        repository, data = self.registry.uploads.pop(self.rest)
        data += self.rfile.read(self.length)
        if self.query["digest"] != [f"sha256:{hashlib.sha256(data).hexdigest()}"]:
            self.reply(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
            return
        if not (self.registry.keeps_blobs and self.query["digest"][0] in self.registry.blobs.get(repository, {})):
            self.registry.add_blob(repository, bytes(data))
        self.reply(201)

    def tell_upload(self, status: int) -> None:
        repository, data = self.registry.uploads[self.rest]
        headers = {"Location": f"/v2/{repository}/blobs/uploads/{self.rest}?state=a%3Db", "Range": f"0-{max(len(data) - 1, 0)}"}
        self.reply(status, headers=headers)

    def drain(self) -> None:
        while self.length > 0 and (piece := self.rfile.read(min(self.length, 1 << 16))):
            self.length -= len(piece)

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, limit: int | None = None) -> None:
        if self.is_lost:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body[:limit])
        if limit is not None:
            self.close_connection = True


@contextlib.contextmanager
def start_registry(certificate: Path | None = None) -> Iterator[FakeRegistry]:
    """Run a registry on a free port of this machine; with a certificate (PEM, key included) over TLS."""
    registry = FakeRegistry()
    handler = type("BoundHandler", (Handler,), {"registry": registry})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # The handshake is left to the connection's own thread.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
