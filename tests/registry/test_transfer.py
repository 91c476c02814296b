"""Versions go to registries and come back the same: what moves, what is resumed, what is shared, who is let in."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest

import argosy
from argosy.errors import AuthError, NotFoundError, RegistryError
from argosy.registry.transfer import Step
from argosy.signature import Signature, TensorSpec
from argosy.store.local import Golden, Store, Version
from tests.registry.registry_server import FakeRegistry, start_registry
from tests.store.soundness import assert_sound

Publish = Callable[..., Version]

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))
LARGE = bytes(range(256)) * (12 << 12)
"""Twelve MiB: more than a piece, so that it goes as a stream."""


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests, and short pauses."""
    monkeypatch.setattr("argosy.registry.connection.FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("USERNAME", "PASSWORD", "HOST"):
        monkeypatch.delenv(f"ARGOSY_REGISTRY_{name}", raising=False)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with start_registry() as registry:
        yield registry


@pytest.fixture
def publish(store: Store) -> Publish:
    """Publish a model whose weights are any bytes."""

    def publish(weights: bytes = b"weights", more: dict[str, bytes] | None = None, **options: Any) -> Version:
        files = {"model.py": b"code", "weights.bin": weights} | (more or {})
        return store.publish("iris", files, signature=SIGNATURE, entry="model.py", runtime="python", **options)

    return publish


@pytest.fixture
def other(store: Store) -> Store:
    """The store of another machine."""
    return Store(store.home.with_name("other"))


def read_files(store: Store, version: Version) -> dict[str, bytes]:
    folder = store.open_artifact(version)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_version_comes_back_with_its_digest_and_all_that_belongs_to_it(
    registry: FakeRegistry, store: Store, other: Store, publish: Publish, golden: Golden
) -> None:
    options = {"lineage": {"seed": 3}, "measurements": {"accuracy": 0.9}, "options": {"threads": 2}, "golden": golden}
    version = publish(LARGE, {"sub/vocabulary.txt": b"a b"}, **options)
    pushed = argosy.push("iris@1", f"{registry.address}/team/iris:3", store=store)
    pulled = argosy.pull(f"{registry.address}/team/iris:3", store=other)
    got = pulled.version
    assert str(pushed.location) == f"{registry.address}/team/iris:3@{version.digest}"
    assert (got.name, got.number, got.digest, pulled.is_new) == ("iris", 1, version.digest, True)
    assert got.manifest == version.manifest
    assert got.measurements == version.measurements
    assert got.size_bytes == version.size_bytes
    assert got.pulled_from == f"{registry.address}/team/iris:3@{version.digest}"
    assert read_files(other, got) == read_files(store, version)
    assert (other.load_golden(got).outputs["y"] == golden.outputs["y"]).all()
    assert assert_sound(other.home) == [1]


def test_second_push_moves_no_blob(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(LARGE)
    assert argosy.push("iris", f"{registry.address}/iris", store=store).moved_bytes > len(LARGE)
    registry.requests.clear()
    assert argosy.push("iris", f"{registry.address}/iris", store=store).moved_bytes == 0
    assert (registry.count("HEAD", "/blobs/"), registry.count("POST"), registry.count("PATCH")) == (4, 0, 0)
    assert registry.count("PUT") == registry.count("PUT", "/manifests/latest") == 1


def test_new_version_moves_only_what_changed(registry: FakeRegistry, store: Store, other: Store, make_onnx: Any) -> None:
    from argosy.importers.onnx import import_onnx

    path = make_onnx(external="weights.bin")
    for seed in (1, 2):
        import_onnx(store, path, "iris", lineage={"seed": seed})
        argosy.push(f"iris@{seed}", f"{registry.address}/iris:{seed}", store=store)
        argosy.pull(f"{registry.address}/iris:{seed}", store=other)
    weights = f"sha256:{hashlib.sha256(path.with_name('weights.bin').read_bytes()).hexdigest()}"
    assert registry.count("GET", weights) == 1
    assert assert_sound(other.home) == [1, 2]


def test_same_artifact_is_not_made_a_version_twice(registry: FakeRegistry, store: Store, other: Store, publish: Publish) -> None:
    version = publish()
    argosy.push("iris", f"{registry.address}/iris", store=store)
    assert argosy.pull(f"{registry.address}/iris", store=other).is_new
    registry.requests.clear()
    for where in (store, other):
        again = argosy.pull(f"{registry.address}/iris@{version.digest}", store=where)
        assert (again.is_new, again.version.number, again.moved_bytes) == (False, 1, 0)
    assert registry.count("GET", "/blobs/") == 0
    named = argosy.pull(f"{registry.address}/iris", "flower", store=other)
    assert (named.version.name, named.is_new, named.moved_bytes) == ("flower", True, 0)
    assert sorted(assert_sound(other.home)) == [1, 1]


def test_pulled_version_gets_the_next_number(registry: FakeRegistry, store: Store, other: Store, publish: Publish) -> None:
    publish()
    argosy.push("iris", f"{registry.address}/iris", store=store)
    other.publish("iris", {"model.onnx": b"mine"}, signature=SIGNATURE, entry="model.onnx")
    assert argosy.pull(f"{registry.address}/iris", store=other).version.number == 2
    assert [event.event for event in other.list_history("iris")] == ["published", "published"]
    assert [version.pulled_from[:9] for version in other.list_versions("iris")] == ["", "127.0.0.1"]


def test_blob_of_another_repository_is_mounted(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(LARGE)
    argosy.push("iris", f"{registry.address}/one/iris", store=store)
    steps: list[Step] = []
    assert argosy.push("iris", f"{registry.address}/two/iris", store=store, tell=steps.append).moved_bytes == 0
    assert {step.action for step in steps} == {"mounted"}
    assert set(registry.blobs["two/iris"]) == set(registry.blobs["one/iris"])


def test_registry_without_mounts_gets_the_blobs(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(LARGE)
    argosy.push("iris", f"{registry.address}/one/iris", store=store)
    registry.has_mounts = False
    assert argosy.push("iris", f"{registry.address}/two/iris", store=store).moved_bytes > len(LARGE)
    assert registry.uploads == {} or all(not data for _, data in registry.uploads.values())


# faults


@pytest.mark.parametrize(
    ("method", "part", "status"),
    [
        ("HEAD", "/blobs/", 503),
        ("POST", "/uploads/", 500),
        ("PATCH", "/uploads/", 502),
        ("PUT", "/uploads/", 504),
        ("PUT", "/manifests/", 429),
        ("GET", "/manifests/", 503),
        ("GET", "/blobs/", 500),
    ],
    ids=lambda value: str(value).strip("/"),
)
def test_request_that_fails_for_a_moment_is_sent_again(
    registry: FakeRegistry, store: Store, other: Store, publish: Publish, method: str, part: str, status: int
) -> None:
    publish(LARGE)
    registry.fail(method, part, status, times=2, Retry_After="0")
    argosy.push("iris", f"{registry.address}/iris", store=store)
    assert argosy.pull(f"{registry.address}/iris", store=other).is_new
    assert assert_sound(other.home) == [1]


@pytest.mark.parametrize(("method", "part"), [("POST", "/uploads/"), ("PUT", "/uploads/"), ("PUT", "/manifests/")])
def test_lost_reply_is_no_harm(
    registry: FakeRegistry, store: Store, other: Store, publish: Publish, method: str, part: str
) -> None:
    publish(LARGE)
    registry.lose_reply(method, part)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    assert argosy.pull(f"{registry.address}/iris", store=other).is_new


def test_registry_that_stays_away_is_reported_after_some_tries(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish()
    registry.fail("HEAD", "/blobs/", 503, times=99)
    with pytest.raises(RegistryError) as caught:
        argosy.push("iris", f"{registry.address}/iris", store=store)
    assert (caught.value.key, caught.value.fields["detail"].args) == ("registry_unreachable", ("HTTP 503",))
    assert registry.count("HEAD") == 5


def test_host_without_a_registry_is_reported(store: Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RegistryError) as caught:
            argosy.pull(f"127.0.0.1:{taken.getsockname()[1]}/iris", store=store)
    assert caught.value.key == "registry_unreachable"
    with pytest.raises(RegistryError, match="no host has that name"):
        argosy.pull("no-such-host.invalid/iris", store=store)


def test_upload_goes_on_where_it_was_cut(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(LARGE)
    registry.cut_upload(5 << 20, times=2)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    ranges = [request.headers.get("Content-Range") for request in registry.requests if request.method == "PATCH"]
    last = len(LARGE) - 1
    assert ranges == [None, f"{5 << 20}-{last}", f"{10 << 20}-{last}"]
    assert LARGE in registry.blobs["iris"].values()


def test_upload_that_the_registry_forgot_begins_anew(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(LARGE)
    registry.cut_upload(5 << 20)
    registry.fail("GET", "/uploads/", 404)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    assert LARGE in registry.blobs["iris"].values()


@pytest.mark.parametrize("has_ranges", [True, False], ids=["ranges", "no-ranges"])
def test_download_goes_on_where_it_was_cut(
    registry: FakeRegistry, store: Store, other: Store, publish: Publish, has_ranges: bool
) -> None:
    version = publish(LARGE)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    registry.has_ranges = has_ranges
    large = next(digest for digest, data in registry.blobs["iris"].items() if data == LARGE)
    registry.cut_download(large, 3 << 20)
    registry.cut_download(large, 4 << 20)
    pulled = argosy.pull(f"{registry.address}/iris", store=other).version
    assert read_files(other, pulled) == read_files(store, version)
    ranges = [request.headers.get("Range") for request in registry.requests if large in request.path and request.method == "GET"]
    assert ranges[0] is None and all(given and int(given[6:-1]) > 0 for given in ranges[1:])


def test_blob_of_many_cuts_arrives_as_long_as_it_gets_on(
    registry: FakeRegistry, store: Store, other: Store, publish: Publish
) -> None:
    publish(LARGE)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    large = next(digest for digest, data in registry.blobs["iris"].items() if data == LARGE)
    registry.cut_download(large, (1 << 20) + 1, times=10)
    assert argosy.pull(f"{registry.address}/iris", store=other).is_new


def test_damaged_blob_is_not_pushed(registry: FakeRegistry, store: Store, publish: Publish, blob_of: Any) -> None:
    publish(b"weights")
    path = blob_of("sha256:" + hashlib.sha256(b"weights").hexdigest())
    path.chmod(0o600)
    path.write_bytes(b"WEIGHTS")
    with pytest.raises(argosy.ArgosyError) as caught:
        argosy.push("iris", f"{registry.address}/iris", store=store)
    assert caught.value.key == "corrupt_blob"
    assert registry.manifests == {}


def test_damaged_blob_of_the_store_is_fetched_again(registry: FakeRegistry, store: Store, publish: Publish, blob_of: Any) -> None:
    publish(b"weights")
    argosy.push("iris", f"{registry.address}/iris", store=store)
    path = blob_of("sha256:" + hashlib.sha256(b"weights").hexdigest())
    path.chmod(0o600)
    path.write_bytes(b"WEIGHTS")
    assert argosy.pull(f"{registry.address}/iris", "flower", store=store).moved_bytes == len(b"weights")
    assert len(assert_sound(store.home)) == 2


WEIGHTS = b"weights"
DAMAGED = {"other": b"WEIGHTS", "shorter": b"weight", "longer": b"weights!", "empty": b""}


def damage(registry: FakeRegistry, content: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()
    registry.blobs["iris"][digest] = content
    return digest


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_blob_of_the_registry_is_mended_by_what_the_hint_says(
    registry: FakeRegistry, store: Store, other: Store, publish: Publish, content: bytes
) -> None:
    version, place = publish(WEIGHTS), f"{registry.address}/iris"
    argosy.push("iris", place, store=store)
    digest = damage(registry, content)
    with pytest.raises(argosy.ArgosyError) as caught:
        argosy.pull(place, store=other)
    assert caught.value.key == "blob_differs" and "push --verify" in caught.value.hint
    assert argosy.push("iris", place, store=store, verify=True).moved_bytes == len(WEIGHTS)
    assert registry.blobs["iris"][digest] == WEIGHTS
    assert read_files(other, argosy.pull(place, store=other).version) == read_files(store, version)
    assert argosy.push("iris", place, store=store, verify=True).moved_bytes == 0


def test_wrong_length_is_seen_by_any_push(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(WEIGHTS)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    digest = damage(registry, b"weight")
    assert argosy.push("iris", f"{registry.address}/iris", store=store).moved_bytes == len(WEIGHTS)
    assert registry.blobs["iris"][digest] == WEIGHTS


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_registry_that_keeps_a_damaged_blob_is_told(
    registry: FakeRegistry, store: Store, publish: Publish, content: bytes
) -> None:
    publish(WEIGHTS)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    registry.keeps_blobs = True
    digest = damage(registry, content)
    with pytest.raises(argosy.ArgosyError, match=digest) as caught:
        argosy.push("iris", f"{registry.address}/iris", store=store, verify=True)
    assert caught.value.key == "blob_stays_damaged"
    del registry.blobs["iris"][digest]  # as the hint says
    assert argosy.push("iris", f"{registry.address}/iris", store=store, verify=True).moved_bytes == len(WEIGHTS)


def test_mounted_blob_is_verified_as_well(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(WEIGHTS)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    digest = damage(registry, b"WEIGHTS")
    assert argosy.push("iris", f"{registry.address}/other", store=store, verify=True).moved_bytes == len(WEIGHTS)
    assert registry.blobs["other"][digest] == WEIGHTS


def test_push_says_what_its_tag_meant_before(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    place = f"{registry.address}/iris:1"
    first = publish(WEIGHTS)
    assert argosy.push("iris@1", place, store=store).replaced == ""
    assert argosy.push("iris@1", place, store=store).replaced == ""
    publish(b"others")
    assert argosy.push("iris@2", place, store=store).replaced == first.digest


# several at once, and dead ones


PULL = """
import sys
from pathlib import Path
import argosy
pulled = argosy.pull(sys.argv[2], store=argosy.Store(Path(sys.argv[1])))
print(pulled.version.number, pulled.is_new)
"""


def test_two_processes_that_pull_the_same_make_one_version(
    registry: FakeRegistry, store: Store, publish: Publish, start_python: Callable
) -> None:
    publish(LARGE)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    both = threading.Barrier(2, timeout=60)

    def wait(handler: Any) -> None:
        both.wait()
        handler.answer()

    registry.act("GET", "/manifests/", wait, times=2)
    target = store.home.with_name("both")
    processes = [start_python(PULL, target, f"{registry.address}/iris") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert sorted(stdout.split() for stdout, _ in outputs) == [["1", "False"], ["1", "True"]], outputs
    assert assert_sound(target) == [1]


def test_two_threads_that_push_the_same_both_succeed(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    version = publish(LARGE)
    digests: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: digests.append(argosy.push("iris", f"{registry.address}/iris", store=store).location.digest)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [version.digest] * 2


def test_pull_that_is_killed_leaves_the_store_whole(
    registry: FakeRegistry, store: Store, publish: Publish, start_python: Callable
) -> None:
    publish(LARGE)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    large = next(digest for digest, data in registry.blobs["iris"].items() if data == LARGE)
    half, dead = threading.Event(), threading.Event()

    def stop(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(LARGE)))
        handler.end_headers()
        handler.wfile.write(LARGE[: len(LARGE) // 2])
        half.set()
        dead.wait(60)
        handler.close_connection = True

    registry.act("GET", large, stop)
    target = store.home.with_name("killed")
    process = start_python(PULL, target, f"{registry.address}/iris")
    assert half.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    dead.set()
    assert assert_sound(target) == []
    assert list((target / "store" / "blobs" / "sha256").iterdir()) == []
    assert argosy.pull(f"{registry.address}/iris", store=Store(target)).version.number == 1


# who is let in


def write_auth(path: Path, host: str, user: str = "me:secret") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(user.encode()).decode()}}}))


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_credentials_of_the_environment_are_used(
    registry: FakeRegistry, store: Store, other: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    publish(LARGE)
    registry.basic = "me:secret" if kind == "basic" else ""
    registry.bearer_realm = f"http://{registry.address}/token" if kind == "bearer" else ""
    registry.users = "me:secret"
    monkeypatch.setenv("ARGOSY_REGISTRY_USERNAME", "me")
    monkeypatch.setenv("ARGOSY_REGISTRY_PASSWORD", "secret")
    argosy.push("iris", f"{registry.address}/iris", store=store)
    assert argosy.pull(f"{registry.address}/iris", store=other).is_new
    # Nothing is sent before it is asked for.
    assert "Authorization" not in registry.requests[0].headers


def test_token_that_ends_in_between_is_renewed(registry: FakeRegistry, store: Store, publish: Publish) -> None:
    publish(LARGE)
    registry.bearer_realm = f"http://{registry.address}/token"

    def expire(handler: Any) -> None:
        registry.tokens.clear()
        assert not handler.may_pass()

    registry.act("PUT", "/blobs/uploads/", expire)
    registry.act("PUT", "/manifests/", expire)
    argosy.push("iris", f"{registry.address}/iris", store=store)
    assert registry.count("GET", "/token") == 3


@pytest.mark.parametrize("password", ["", "wrong"], ids=["none", "wrong"])
@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_refused_credentials_are_reported_and_not_shown(
    registry: FakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch, kind: str, password: str
) -> None:
    registry.basic = "me:secret" if kind == "basic" else ""
    registry.bearer_realm = f"http://{registry.address}/token" if kind == "bearer" else ""
    registry.users = "me:secret"
    if password:
        monkeypatch.setenv("ARGOSY_REGISTRY_USERNAME", "me")
        monkeypatch.setenv("ARGOSY_REGISTRY_PASSWORD", password)
    with pytest.raises(AuthError) as caught:
        argosy.pull(f"{registry.address}/iris", store=store)
    assert caught.value.key == "registry_unauthorized"
    assert "ARGOSY_REGISTRY_USERNAME" in caught.value.hint
    assert "wrong" not in str(caught.value)


def test_refresh_token_of_a_file_gets_a_token(
    registry: FakeRegistry, store: Store, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    registry.bearer_realm = f"http://{registry.address}/token"
    registry.users = "me:refresh"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"identitytoken": "refresh"}}}))
    argosy.push("iris", f"{registry.address}/iris", store=store)
    assert registry.count("POST", "/token") == 1


def test_unknown_repository_is_reported_without_control_characters(registry: FakeRegistry, store: Store) -> None:
    with pytest.raises(NotFoundError) as caught:
        argosy.pull(f"{registry.address}/iris:7", store=store)
    assert caught.value.key == "not_in_registry"
    assert "MANIFEST_UNKNOWN" in caught.value.message
    assert "\x1b" not in caught.value.message


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, signed by itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "registry.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    try:
        subprocess.run(["openssl", *request, *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl here, which makes the certificate")
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_registry_with_its_own_authority_is_trusted_by_its_file(
    store: Store, other: Store, publish: Publish, certificate: Path
) -> None:
    publish(LARGE)
    with start_registry(certificate) as registry:
        target, authority = f"{registry.address}/iris", Path(f"{certificate}.crt")
        argosy.push("iris", target, store=store, ca_file=authority)
        assert argosy.pull(target, store=other, ca_file=authority).is_new


def test_registry_of_an_unknown_authority_is_refused(store: Store, publish: Publish, certificate: Path) -> None:
    publish()
    with start_registry(certificate) as registry:
        port = registry.address.partition(":")[2]
        with pytest.raises(RegistryError, match="certificate is not trusted"):
            # Any authority but the right one.
            argosy.push("iris", f"127.0.0.1:{port}/iris", store=store, ca_file=Path(certifi.where()))


# Debian's registry


@pytest.fixture(params=["open", "basic"])
def debian(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Debian's docker-registry on a free port; its address."""
    program = Path("/usr/bin/docker-registry")
    if not program.exists():
        pytest.skip("Debian's package docker-registry is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    auth = ""
    if request.param == "basic":
        # htpasswd -nbB me secret
        (tmp_path / "htpasswd").write_text("me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n")
        auth = f"auth: {{htpasswd: {{realm: registry, path: {tmp_path / 'htpasswd'}}}}}\n"
        write_auth(tmp_path / "user" / ".docker" / "config.json", address)
    (tmp_path / "registry.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\nhttp: {{addr: '{address}'}}\n{auth}"
    )
    process = subprocess.Popen([program, "serve", tmp_path / "registry.yml"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", int(address.partition(":")[2]))).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, process.communicate()[0]
                threading.Event().wait(0.02)
        yield address
    finally:
        process.kill()
        process.communicate()


def test_version_goes_through_debians_registry(debian: str, store: Store, other: Store, publish: Publish) -> None:
    version = publish(LARGE, {"sub/labels.txt": b"a"})
    first = argosy.push("iris@1", f"{debian}/team/iris:1", store=store)
    again = argosy.push("iris@1", f"{debian}/team/iris:1", store=store)
    mounted = argosy.push("iris@1", f"{debian}/other/iris:1", store=store)
    assert (first.moved_bytes > len(LARGE), again.moved_bytes, mounted.moved_bytes) == (True, 0, 0)
    for source in (f"{debian}/team/iris:1", f"{debian}/other/iris@{version.digest}"):
        pulled = argosy.pull(source, store=other).version
        assert (pulled.number, pulled.digest) == (1, version.digest)
    assert read_files(other, pulled) == read_files(store, version)
    assert assert_sound(other.home) == [1]
