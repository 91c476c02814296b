"""What a registry may try: other bytes, other names, other hosts. Each is refused, and nothing is left in the store."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import argosy
from argosy.errors import ArgosyError
from argosy.registry.transfer import pull_files
from argosy.store.local import Golden, Store
from argosy.store.manifest import CONFIG_TYPE, FILE_PATH, MANIFEST_TYPE
from tests.home import Home
from tests.registry.registry_server import FakeRegistry, start_registry

SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}
WEIGHTS = bytes(range(256)) * 8192


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("argosy.registry.connection.FIRST_PAUSE_S", 0.001)
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ARGOSY_REGISTRY_USERNAME", "me")
    monkeypatch.setenv("ARGOSY_REGISTRY_PASSWORD", "secret")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with start_registry() as registry:
        yield registry


@pytest.fixture
def second() -> Iterator[FakeRegistry]:
    """Another host."""
    with start_registry() as registry:
        yield registry


def describe(**changes: Any) -> bytes:
    """An argosy.json."""
    return json.dumps({"signature": SIGNATURE, "runtime": "python", "entry": "model.py"} | changes).encode()


def forge(
    registry: FakeRegistry,
    files: dict[str, bytes] | None = None,
    own: bytes | None = None,
    *,
    layer: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """Put an artifact `m` into the registry; `layer` changes what is said of the first file, `changes` the manifest."""
    files = {"weights.bin": WEIGHTS, "model.py": b"code"} if files is None else files
    files = {**files, "argosy.json": own or describe()}
    layers = [registry.add_blob("m", data) | {"annotations": {FILE_PATH: name}} for name, data in files.items()]
    layers[0] |= layer or {}
    config = registry.add_blob("m", b"{}") | {"mediaType": CONFIG_TYPE}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": config,
        "layers": layers,
    }
    registry.add_manifest("m", "latest", manifest | changes)
    return str(layers[0]["digest"])


def assert_refused(registry: FakeRegistry, store: Store, key: str, match: str | None = None) -> ArgosyError:
    """Pull `m`: it is refused with a key, and the store is as empty as before."""
    with pytest.raises(ArgosyError, match=match) as caught:
        argosy.pull(f"{registry.address}/m", store=store)
    assert caught.value.key == key, caught.value
    assert Store(store.home).list_models() == []
    assert list((store.home / "store" / "blobs" / "sha256").iterdir()) == []
    assert list((store.home / "store").rglob(".incoming-*")) == []
    return caught.value


def test_artifact_as_it_should_be_is_taken(registry: FakeRegistry, store: Store) -> None:
    forge(registry)
    assert argosy.pull(f"{registry.address}/m", store=store).version.manifest.runtime == "python"


# bytes


def test_blob_with_another_content_is_refused(registry: FakeRegistry, store: Store) -> None:
    digest = forge(registry)
    registry.blobs["m"][digest] = WEIGHTS[::-1]
    assert_refused(registry, store, "blob_differs", "its content has digest")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_blob_of_another_length_is_refused(registry: FakeRegistry, store: Store, change: int, is_chunked: bool) -> None:
    digest = forge(registry)
    body = WEIGHTS[:-1] if change < 0 else WEIGHTS + b"x"

    def send(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked") if is_chunked else handler.send_header("Content-Length", len(body))
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body)

    registry.act("GET", digest, send)
    assert_refused(registry, store, "blob_differs", "ends after" if change < 0 else "more than")
    assert registry.count("GET", digest) == 1


def test_blob_without_an_end_is_left_after_its_length(registry: FakeRegistry, store: Store) -> None:
    digest = forge(registry)

    def flood(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:  # until the client leaves
            handler.wfile.write(WEIGHTS)

    registry.act("GET", digest, flood)
    assert_refused(registry, store, "blob_differs", "more than")


def test_answer_that_says_it_is_endless_is_refused_at_once(registry: FakeRegistry, store: Store) -> None:
    forge(registry)
    over = threading.Event()

    def begin(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "99999999999")
        handler.end_headers()
        handler.wfile.write(b"x")
        over.wait(30)

    registry.act("GET", "/manifests/", begin)
    before = time.monotonic()
    assert_refused(registry, store, "bad_registry_answer", "more than")
    over.set()
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("is_blob", [False, True], ids=["manifest", "blob"])
def test_answer_that_comes_byte_by_byte_is_given_up(
    registry: FakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch, is_blob: bool
) -> None:
    monkeypatch.setattr("argosy.registry.connection.PACE_S", 0.1)
    digest = forge(registry)

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(WEIGHTS)))
        handler.end_headers()
        for _ in range(len(WEIGHTS) - 1):  # until the client leaves
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    registry.act("GET", digest if is_blob else "/manifests/", drip, times=9)
    assert_refused(registry, store, "registry_unreachable", "bytes in")


def test_packed_body_is_refused(registry: FakeRegistry, store: Store) -> None:
    forge(registry)
    registry.blob_headers = {"Content-Encoding": "gzip"}
    assert_refused(registry, store, "bad_registry_answer", "packed")


def test_other_part_than_asked_for_is_refused(registry: FakeRegistry, store: Store) -> None:
    digest = forge(registry)
    registry.cut_download(digest, 1 << 20)
    registry.act("GET", digest, lambda handler: handler.reply(206, WEIGHTS, {"Content-Range": "bytes 0-9/10"}))
    assert_refused(registry, store, "bad_registry_answer", "another part")


def test_blob_that_never_gets_on_is_given_up(registry: FakeRegistry, store: Store) -> None:
    digest = forge(registry)
    registry.cut_download(digest, 100, times=99)
    assert_refused(registry, store, "registry_unreachable")
    assert registry.count("GET", digest) == 5


def test_manifest_over_four_mebibytes_is_refused(registry: FakeRegistry, store: Store) -> None:
    forge(registry, annotations={"x": "x" * (4 << 20)})
    assert_refused(registry, store, "bad_registry_answer", "more than 4194304 bytes")


def test_manifest_of_another_digest_is_refused(registry: FakeRegistry, store: Store) -> None:
    forge(registry)
    asked = f"sha256:{'0' * 64}"
    registry.manifests["m", asked] = registry.manifests["m", "latest"]
    with pytest.raises(ArgosyError) as caught:
        argosy.pull(f"{registry.address}/m@{asked}", store=store)
    assert caught.value.key == "blob_differs"


# what the manifest says


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"config": 3}'], ids=["empty", "list", "bytes", "deep", "type"]
)
def test_manifest_that_is_none_is_refused(registry: FakeRegistry, store: Store, data: bytes) -> None:
    registry.add_manifest("m", "latest", data)
    assert_refused(registry, store, "not_modelpack")


def test_image_of_programs_is_refused(registry: FakeRegistry, store: Store) -> None:
    config = registry.add_blob("m", b"{}") | {"mediaType": "application/vnd.docker.container.image.v1+json"}
    forge(registry, config=config)
    error = assert_refused(registry, store, "not_modelpack", "vnd.cncf.model.config")
    assert "argosy push" in error.hint


def test_index_is_refused(registry: FakeRegistry, store: Store) -> None:
    registry.add_manifest("m", "latest", {"schemaVersion": 2, "manifests": []})
    assert_refused(registry, store, "not_modelpack", "index of several artifacts")


@pytest.mark.parametrize(
    "layer",
    [
        {"digest": "sha512:" + "0" * 128},
        {"digest": "sha256:../../../etc/passwd"},
        {"digest": "sha256:" + "A" * 64},
        {"size": -1},
        {"size": 1 << 60},
    ],
    ids=["sha512", "path", "case", "negative", "huge"],
)
def test_descriptor_that_cannot_be_checked_is_refused(registry: FakeRegistry, store: Store, layer: dict[str, Any]) -> None:
    forge(registry, layer=layer)
    assert_refused(registry, store, "not_modelpack")
    assert registry.count("GET", "/blobs/") == 0


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a\\b", "", ".", "x\x1b[2J", ".incoming-1", "model.py", "model.py/x", "n" * 300]
)
def test_unsafe_file_name_is_refused(registry: FakeRegistry, store: Store, name: str) -> None:
    forge(registry, layer={"annotations": {FILE_PATH: name}})
    error = assert_refused(registry, store, "bad_file_name" if name == "model.py/x" else "bad_manifest")
    assert "\x1b" not in str(error)


def test_packed_layer_is_refused(registry: FakeRegistry, store: Store) -> None:
    forge(registry, layer={"mediaType": "application/vnd.cncf.model.weight.v1.tar"})
    assert "--files" in assert_refused(registry, store, "not_servable", "packed").hint


def test_artifact_of_another_tool_is_told_what_it_lacks(registry: FakeRegistry, store: Store) -> None:
    forge(registry)
    manifest = json.loads(registry.manifests["m", "latest"][1])
    registry.add_manifest("m", "latest", manifest | {"layers": manifest["layers"][:2]})
    error = assert_refused(registry, store, "not_servable", r"no argosy\.json.*model\.py, weights\.bin")
    assert "--files" in error.hint
    assert registry.count("GET", "/blobs/") == 0


# what it says of itself


@pytest.mark.parametrize(
    ("own", "match"),
    [
        (b"{", "argosy.json"),
        (b'{"options": ' + b"[" * 5000 + b"]" * 5000 + b"}", "argosy.json|nested"),
        (describe(runtime="shell"), "runtime 'shell' is none of"),
        (describe(entry="other.py"), "entry file 'other.py'"),
        (describe(entry="argosy.json"), "entry file 'argosy.json'"),
        (describe(num_golden=3), "3 golden examples"),
        (describe(lineage={"author": ["\x1b]0;title\x07"]}), "control characters"),
        (describe(measurements={"accuracy": 1e999}), "argosy.json|finite"),
        (describe(signature=SIGNATURE | {"outputs": [{"name": "y", "datatype": "FP7", "shape": [1]}]}), "FP7"),
        (describe(from_the_future=1), "from_the_future"),
    ],
    ids=["no-json", "deep", "runtime", "entry", "own-entry", "golden", "escape", "infinite", "datatype", "newer"],
)
def test_description_that_does_not_fit_is_refused_before_weights_move(
    registry: FakeRegistry, store: Store, own: bytes, match: str
) -> None:
    digest = forge(registry, own=own)
    assert_refused(registry, store, "not_servable", match)
    assert registry.count("GET", digest) == 0


@pytest.mark.parametrize(
    ("golden", "key"),
    [
        (b"PK nonsense", "bad_manifest"),
        (Golden({"x": np.zeros((3, 5), np.float32)}, {"y": np.zeros((3, 2), np.float32)}), "bad_golden"),
        (Golden({"x": np.zeros((2, 4), np.float32)}, {"y": np.zeros((2, 2), np.float32)}), "not_servable"),
    ],
    ids=["no-zip", "shape", "count"],
)
def test_golden_examples_that_do_not_fit_are_refused(
    registry: FakeRegistry, store: Store, golden: bytes | Golden, key: str
) -> None:
    from argosy.store.golden import encode_golden

    data = golden if isinstance(golden, bytes) else encode_golden(golden)
    forge(registry, {"model.py": b"code", "golden.npz": data}, describe(num_golden=3))
    assert_refused(registry, store, key)


@pytest.mark.parametrize("location", ["/etc/passwd", "../argosy.db", "other.bin"])
def test_graph_that_reads_a_file_outside_of_the_artifact_is_refused(
    registry: FakeRegistry, store: Store, make_onnx: Callable[..., Path], location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    model = onnx.load(make_onnx(external="weights.bin"), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = location if entry.key == "location" else entry.value
    files = {"model.onnx": model.SerializeToString(), "weights.bin": bytes(32)}
    forge(registry, files, describe(runtime="onnx", entry="model.onnx"))
    # Whoever pulls does not parse it, and could not.
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(registry, store, "bad_external_data")


def make_graph(operator: str, **attributes: int) -> bytes:
    """An ONNX file whose `y` is an operator of `x`, cut to two numbers a row."""
    import onnx
    from onnx import TensorProto, helper

    numbers = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in (("a", 0), ("b", 2), ("c", 1))]
    nodes = [
        helper.make_node(operator, ["x"], ["z"], **attributes),
        helper.make_node("Slice", ["z", "a", "b", "c"], ["y"]),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in (("x", 4), ("y", 2))]
    graph = helper.make_graph(nodes, "g", [sides[0]], [sides[1]], numbers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


CLAIM = {"kind": "independent", "reason": "believe me"}


def test_graph_whose_rows_depend_on_one_another_is_refused_if_it_says_that_they_do_not(
    registry: FakeRegistry, store: Store
) -> None:
    own = describe(runtime="onnx", entry="model.onnx", joining=CLAIM)
    forge(registry, {"model.onnx": make_graph("Softmax", axis=0)}, own)
    assert_refused(registry, store, "not_servable", "rows are independent")


def test_rows_of_a_pulled_version_are_tried_and_watched_whatever_its_maker_says(registry: FakeRegistry, home: Home) -> None:
    from argosy.store.golden import encode_golden

    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    y = (np.exp(x) / np.exp(x).sum(1, keepdims=True))[:, :2]
    files = {"model.onnx": make_graph("Softmax", axis=1), "golden.npz": encode_golden(Golden({"x": x}, {"y": y}))}
    forge(registry, files, describe(runtime="onnx", entry="model.onnx", num_golden=3, joining=CLAIM))
    argosy.pull(f"{registry.address}/m", store=home.store)
    with home.serve("m") as server, server.admin() as admin:
        (lane,) = next(iter(admin.stats()["fronts"].values()))
    assert lane["can_join"] and lane["joining"].startswith("unknown: ") and "run again alone" in lane["joining"]


def test_pulled_version_opens_no_devices_whatever_its_options_say(registry: FakeRegistry, store: Store) -> None:
    from argosy.bench.artifact import open_version
    from argosy.importers.onnx import import_onnx

    own = describe(runtime="onnx", entry="model.onnx", options={"device": "cuda"})
    forge(registry, {"model.onnx": make_graph("Softmax", axis=1)}, own)
    pulled = argosy.pull(f"{registry.address}/m", store=store).version
    assert open_version(store, pulled).options == {"device": "cuda"} and not open_version(store, pulled).has_devices
    path = store.home / "own.onnx"
    path.write_bytes(make_graph("Softmax", axis=1))
    assert open_version(store, import_onnx(store, path, "own", options={"device": "cuda"})).has_devices


# hosts


def test_redirected_download_carries_no_credentials(registry: FakeRegistry, second: FakeRegistry, store: Store) -> None:
    registry.basic = "me:secret"
    digest = forge(registry)
    forge(second)
    elsewhere = f"http://{second.address}/v2/m/blobs/{digest}?signature=secret"
    registry.fail("GET", digest, 307, Location=elsewhere)
    assert argosy.pull(f"{registry.address}/m", store=store).is_new
    assert second.count("GET") == 1
    assert "Authorization" not in second.requests[0].headers


def test_redirected_upload_is_refused(registry: FakeRegistry, second: FakeRegistry, store: Store) -> None:
    forge(registry)
    argosy.pull(f"{registry.address}/m", store=store)
    registry.fail("POST", "/uploads/", 307, times=2, Location=f"http://{second.address}/v2/other/blobs/uploads/")
    with pytest.raises(ArgosyError) as caught:
        argosy.push("m", f"{registry.address}/other", store=store)
    assert (caught.value.key, second.requests) == ("registry_refused", [])


def test_upload_to_another_host_carries_no_credentials(registry: FakeRegistry, second: FakeRegistry, store: Store) -> None:
    forge(registry)
    argosy.pull(f"{registry.address}/m", store=store)
    registry.basic, registry.has_mounts = "me:secret", False
    for number in range(5):
        second.uploads[f"u{number}"] = ("other", bytearray())
        location = f"http://{second.address}/v2/other/blobs/uploads/u{number}"
        registry.fail("POST", "/v2/other/blobs/uploads/", 202, Location=location)
    registry.faults[0].times = 1
    argosy.push("m", f"{registry.address}/other", store=store)
    assert WEIGHTS in second.blobs["other"].values()
    assert not [request for request in second.requests if "Authorization" in request.headers]


@pytest.mark.parametrize(
    ("location", "key"),
    [
        ("http://registry.example.com/x", "insecure_registry"),
        ("//registry.example.com/x", "insecure_registry"),
        ("ftp://127.0.0.1/x", "insecure_registry"),
        ("http://me:pw@127.0.0.1/x", "insecure_registry"),
        ("http://127.0.0.1:port/", "registry_unreachable"),
        ("", "bad_registry_answer"),
    ],
)
def test_redirect_to_where_it_may_not_lead_is_refused(registry: FakeRegistry, store: Store, location: str, key: str) -> None:
    digest = forge(registry)
    registry.fail("GET", digest, 302, times=9, Location=location)
    assert_refused(registry, store, key)


def test_circle_of_redirects_ends(registry: FakeRegistry, store: Store) -> None:
    digest = forge(registry)
    registry.fail("GET", digest, 302, times=99, Location=f"/v2/m/blobs/{digest}")
    assert_refused(registry, store, "bad_registry_answer", "redirects more than 5 times")
    assert registry.count("GET", digest) == 6


@pytest.mark.parametrize("realm", ["http://auth.example.com/token", "/token", ""])
def test_token_server_without_tls_gets_no_credentials(registry: FakeRegistry, store: Store, realm: str) -> None:
    challenge = f'Bearer realm="{realm}",service="x"'
    registry.fail("GET", "/manifests/", 401, times=9, WWW_Authenticate=challenge)
    assert_refused(registry, store, "insecure_registry" if realm.startswith("http") else "bad_registry_answer")


def test_token_server_is_not_followed_elsewhere(registry: FakeRegistry, second: FakeRegistry, store: Store) -> None:
    forge(registry)
    registry.bearer_realm = f"http://{registry.address}/v2/redirect/manifests/token"
    registry.tokens.add("")

    def redirect(handler: Any) -> None:
        handler.reply(307, headers={"Location": f"http://{second.address}/token"})

    registry.act("GET", "/redirect/", redirect, times=9)
    registry.fail("GET", "/v2/m/manifests/", 401, times=9, WWW_Authenticate=f'Bearer realm="{registry.bearer_realm}"')
    registry.bearer_realm = ""
    assert_refused(registry, store, "bad_registry_answer", "without a usable token")
    assert second.requests == []


@pytest.mark.parametrize("token", ["", "a\r\nX: y", "é", "x" * 70_000], ids=["empty", "line", "letter", "long"])
def test_token_that_is_none_is_refused(registry: FakeRegistry, store: Store, token: str) -> None:
    registry.bearer_realm = f"http://{registry.address}/v2/x/manifests/token"
    registry.tokens.add("")
    challenge = f'Bearer realm="{registry.bearer_realm}"'
    registry.bearer_realm = ""
    registry.act("GET", "/v2/x/", lambda handler: handler.reply(200, json.dumps({"token": token}).encode()), times=9)
    registry.fail("GET", "/v2/m/", 401, times=9, WWW_Authenticate=challenge)
    assert_refused(registry, store, "bad_registry_answer", "without a usable token")


# files alone


def make_tar(*members: tuple[str, bytes | None, dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data, changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            for key, value in changes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    return out.getvalue()


TAR = {"mediaType": "application/vnd.cncf.model.weight.v1.tar"}


def test_files_of_any_modelpack_artifact_are_fetched_alone(registry: FakeRegistry, tmp_path: Path) -> None:
    archive = make_tar(("./part", None, {"type": tarfile.DIRTYPE}), ("./part/a.bin", b"a", {}), ("b.bin", WEIGHTS, {}))
    forge(registry, {"part": archive, "sub/model.py": b"code"}, layer=TAR)
    names = pull_files(f"{registry.address}/m", tmp_path / "files")
    assert names == ["argosy.json", "b.bin", "part/a.bin", "sub/model.py"]
    assert {name: (tmp_path / "files" / name).read_bytes() for name in names[1:]} == {
        "b.bin": WEIGHTS,
        "part/a.bin": b"a",
        "sub/model.py": b"code",
    }
    with pytest.raises(ArgosyError, match="does not exist"):
        pull_files(f"{registry.address}/m", tmp_path / "files")


@pytest.mark.parametrize(
    ("archive", "key"),
    [
        (make_tar(("../x", b"x", {})), "bad_file_name"),
        (make_tar(("/etc/x", b"x", {})), "bad_file_name"),
        (make_tar(("x", None, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})), "bad_layer"),
        (make_tar(("x", None, {"type": tarfile.LNKTYPE, "linkname": "model.py"})), "bad_layer"),
        (make_tar(("x", None, {"type": tarfile.FIFOTYPE})), "bad_layer"),
        (make_tar(("x", b"1", {}), ("x", b"2", {})), "write_failed"),
        (make_tar(("x", b"1" * 4000, {}))[:2000], "bad_layer"),
        (make_tar(("n" * (2 << 20), b"1", {})), "bad_layer"),
        (b"no archive at all" * 100, "bad_layer"),
    ],
    ids=["parent", "absolute", "symlink", "hardlink", "fifo", "twice", "cut", "long-name", "nonsense"],
)
def test_hostile_archive_is_refused(registry: FakeRegistry, tmp_path: Path, archive: bytes, key: str) -> None:
    forge(registry, {"part": archive, "model.py": b"code"}, layer=TAR)
    with pytest.raises(ArgosyError) as caught:
        pull_files(f"{registry.address}/m", tmp_path / "files")
    assert caught.value.key == key
    assert list(tmp_path.iterdir()) == []


def test_compressed_layer_is_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    forge(registry, layer={"mediaType": "application/vnd.cncf.model.weight.v1.tar+gzip"})
    with pytest.raises(ArgosyError) as caught:
        pull_files(f"{registry.address}/m", tmp_path / "files")
    assert (caught.value.key, list(tmp_path.iterdir())) == ("bad_layer", [])
