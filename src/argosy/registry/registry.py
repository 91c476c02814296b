"""A client of the OCI Distribution protocol: one repository's manifests and blobs, fetched and sent.

A download goes on where it was cut, an upload where the registry says that it stopped. A blob never has more bytes than
its descriptor says; its digest is the caller's to check.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self
from urllib.parse import quote

from argosy.errors import AuthError, NotAllowedError, RegistryError
from argosy.registry.connection import CHUNK_BYTES, Connection, Lost, Patience, Reply, check_encoding, read_pieces, read_reply
from argosy.registry.location import Location
from argosy.store.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor

__all__ = ["Registry"]

_MAX_MANIFEST_BYTES: Final = 4 << 20
"""What the Distribution specification asks every registry to take; most take no more."""
_SMALL_BYTES: Final = 1 << 20
"""A blob of at most so many goes with the request that ends its upload, which saves one."""
_OCTETS: Final = "application/octet-stream"
# Kinds that are no ModelPack are asked for too: then what is there can be named.
_ACCEPT: Final = ", ".join(
    (
        MANIFEST_TYPE,
        INDEX_TYPE,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class Registry:
    """One repository of a registry.

    Args:
        location: which one.
        plain_http: speak to it without TLS. To this machine's own addresses that is done anyway, unless `ca_file` is given.
        ca_file: certificates (PEM) of authorities that are trusted beside the usual ones.

    Every method raises, beside what it says itself:
        RegistryError: `registry_unreachable`, after several tries; `registry_refused`, `bad_registry_answer`.
        AuthError: `registry_unauthorized`.
        NotAllowedError: `registry_denied`; `insecure_registry`, the registry leads to where there is no TLS.
        NotFoundError: `not_in_registry`.
        InputError: `bad_credentials`.
    """

    def __init__(self, location: Location, *, plain_http: bool = False, ca_file: Path | str | None = None) -> None:
        self.location = location
        self._connection = Connection(location, plain_http=plain_http, ca_file=ca_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._connection.close()

    # what is there

    def read_manifest(self) -> tuple[bytes, str]:
        """Fetch the manifest of the location, and its digest.

        Raises:
            RegistryError: `blob_differs`, it is not the one that was asked for by its digest.
        """
        path = self._path(f"manifests/{self.location.reference}")
        reply = self._connection.ask("GET", path, headers={"Accept": _ACCEPT}, max_bytes=_MAX_MANIFEST_BYTES)
        if reply.status != 200:
            raise self._connection.explain(reply, f"manifest {self.location}")
        digest = f"sha256:{hashlib.sha256(reply.data).hexdigest()}"
        if self.location.digest not in ("", digest):
            raise self._differs(self.location.digest, f"its content has digest {digest}")
        self._check_digest(reply, digest)
        return reply.data, digest

    def has_blob(self, digest: str) -> bool:
        """Say whether the repository has a blob, sound or not."""
        return self.find_blob(digest) is not None

    def find_blob(self, digest: str) -> int | None:
        """Give the bytes that a blob of the repository has, -1 where the registry does not say; None if it has none."""
        reply = self._connection.ask("HEAD", self._path(f"blobs/{digest}"))
        if reply.status not in (200, 404):
            raise self._connection.explain(reply, f"blob {digest}")
        told = reply.headers.get("Content-Length", "")
        return None if reply.status == 404 else int(told[:18]) if told.isdecimal() else -1

    def find_damage(self, blob: Descriptor) -> str:
        """Fetch a blob that the repository has, and say what is wrong with it; nothing where it is what it should be."""
        digest = hashlib.sha256()
        try:
            for chunk in self.read_blob(blob):
                digest.update(chunk)
        except RegistryError as error:
            if error.key != "blob_differs":
                raise
            return str(error.fields["detail"])
        got = f"sha256:{digest.hexdigest()}"
        return "" if got == blob.digest else f"its content has digest {got}"

    def find_tag(self) -> str:
        """Give the digest that the location's tag means now; nothing where it means none, or the registry does not say."""
        reply = self._connection.ask("HEAD", self._path(f"manifests/{self.location.tag}"), headers={"Accept": _ACCEPT})
        told = reply.headers.get("Docker-Content-Digest", "") if reply.status == 200 else ""
        return told if _DIGEST.fullmatch(told) else ""

    def read_blob(self, blob: Descriptor) -> Iterator[bytes]:
        """Fetch a blob in pieces, together exactly as many bytes as it should have.

        Raises:
            RegistryError: `blob_differs`, it is longer or shorter.
        """
        patience, done, kept = Patience(self.location.host), 0, 0
        while True:
            try:
                for chunk in self._read_rest(blob, done):
                    done += len(chunk)
                    yield chunk
                break
            except Lost as lost:
                if done == blob.size:
                    break
                if done - kept >= CHUNK_BYTES:
                    patience.refresh()
                    kept = done
                patience.wait(lost)
        if done != blob.size:
            raise self._differs(blob.digest, f"it ends after {done} bytes, expected {blob.size}")

    def _read_rest(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """Fetch a blob from a position on, once."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        host = self.location.host
        with self._connection.open("GET", self._path(f"blobs/{blob.digest}"), headers=headers) as response:
            if response.status_code not in (200, 206):
                raise self._connection.explain(read_reply(response, host), f"blob {blob.digest}")
            check_encoding(response, host)
            is_part = response.status_code == 206
            if is_part and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise self._connection.bad_answer("it sends another part of a blob than it was asked for")
            # A registry that knows no ranges begins anew.
            pos = start if is_part else 0
            for chunk in read_pieces(response):
                if pos + len(chunk) > blob.size:
                    raise self._differs(blob.digest, f"it has more than {blob.size} bytes")
                if fresh := chunk[max(0, start - pos) :]:
                    yield fresh
                pos += len(chunk)

    # what is sent

    def put_manifest(self, data: bytes, media_type: str, digest: str) -> None:
        """Make a manifest, whose blobs are there already, what the location's tag means."""
        path = self._path(f"manifests/{self.location.tag}")
        reply = self._connection.ask("PUT", path, headers={"Content-Type": media_type}, body=lambda: data)
        if reply.status not in (200, 201):
            raise self._connection.explain(reply, f"manifest {self.location}")
        self._check_digest(reply, digest)

    def mount_blob(self, digest: str, repository: str) -> bool:
        """Take over a blob of another repository, where the registry offers that and lets us; returns whether it did."""
        path = f"{self._path('blobs/uploads/')}?mount={quote(digest, safe='')}&from={quote(repository, safe='')}"
        try:
            reply = self._connection.ask("POST", path)
        except (AuthError, NotAllowedError):
            return False
        if reply.status == 202:  # it began an upload instead
            self._connection.ask("DELETE", self._connection.locate(reply))
        return reply.status == 201

    def send_blob(self, digest: str, file: BinaryIO, size_bytes: int, tell: Callable[[int], None]) -> None:
        """Upload a blob, in a stream of pieces.

        Args:
            digest: the content's, just checked.
            file: has the content; it is read by position.
            size_bytes: how long it is.
            tell: called with the bytes that are sent so far.
        """
        patience, offset, best = Patience(self.location.host), 0, 0
        url = self._begin_upload()
        while True:
            try:
                if size_bytes > _SMALL_BYTES:
                    url = self._send_rest(url, file, offset, size_bytes, tell)
                self._end_upload(url, digest, file if size_bytes <= _SMALL_BYTES else None)
                break
            except Lost as lost:
                patience.wait(lost)
            if self.has_blob(digest):  # all was received, and the reply was lost
                break
            url, offset = self._find_upload(url, size_bytes)
            if offset > best:
                patience.refresh()
                best = offset
        tell(size_bytes)

    def _begin_upload(self) -> str:
        reply = self._connection.ask("POST", self._path("blobs/uploads/"))
        if reply.status != 202:
            raise self._connection.explain(reply, f"an upload to {self.location.repository}")
        return self._connection.locate(reply)

    def _send_rest(self, url: str, file: BinaryIO, offset: int, size_bytes: int, tell: Callable[[int], None]) -> str:
        """Send a blob from a position on, once; the URL that ends the upload."""
        if offset == size_bytes:
            return url
        headers = {"Content-Type": _OCTETS, "Content-Length": str(size_bytes - offset)}
        # The first stream goes without a range, as Docker's does: some registries take one with it for a small chunk.
        headers |= {"Content-Range": f"{offset}-{size_bytes - 1}"} if offset else {}
        with self._connection.open("PATCH", url, headers=headers, body=lambda: _read_pieces(file, offset, tell)) as response:
            reply = read_reply(response, self.location.host)
        if reply.status not in (201, 202, 204):
            if offset:
                raise Lost(f"it does not go on with an upload (HTTP {reply.status})")
            raise self._connection.explain(reply, f"an upload to {self.location.repository}")
        return self._connection.locate(reply)

    def _end_upload(self, url: str, digest: str, small: BinaryIO | None) -> None:
        """End an upload, once, with the whole content of a small blob."""
        content = b"" if small is None else os.pread(small.fileno(), _SMALL_BYTES, 0)
        target = f"{url}{'&' if '?' in url else '?'}digest={quote(digest, safe='')}"
        with self._connection.open("PUT", target, headers={"Content-Type": _OCTETS}, body=lambda: content) as response:
            reply = read_reply(response, self.location.host)
        if reply.status not in (200, 201, 204):
            raise self._connection.explain(reply, f"blob {digest}")

    def _find_upload(self, url: str, size_bytes: int) -> tuple[str, int]:
        """Ask where an upload stopped: its URL, and how many bytes are there. Begins another where the registry does not know."""
        reply = self._connection.ask("GET", url)
        found = _RANGE.fullmatch(reply.headers.get("Range", ""))
        # 0-0 stands for no byte as well as for one.
        if 200 <= reply.status < 300 and found and 0 < int(found[1]) < size_bytes:
            return (self._connection.locate(reply) if "Location" in reply.headers else url), int(found[1]) + 1
        return self._begin_upload(), 0

    def _path(self, rest: str) -> str:
        return f"/v2/{self.location.repository}/{rest}"

    def _differs(self, digest: str, detail: str) -> RegistryError:
        return RegistryError("blob_differs", digest=digest, location=self.location, detail=detail)

    def _check_digest(self, reply: Reply, digest: str) -> None:
        told = reply.headers.get("Docker-Content-Digest", digest)
        if told.startswith("sha256:") and told != digest:
            raise self._connection.bad_answer(f"it names another digest of the manifest than {digest}")


def _read_pieces(file: BinaryIO, offset: int, tell: Callable[[int], None]) -> Iterator[bytes]:
    while chunk := os.pread(file.fileno(), CHUNK_BYTES, offset):
        offset += len(chunk)
        yield chunk
        tell(offset)
