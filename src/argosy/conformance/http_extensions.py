"""Clauses on the extensions model_configuration, statistics, model_repository and schedule_policy over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final, cast

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import NotOffered, Skip
from argosy.conformance.http_wire import Answer, model_path
from argosy.conformance.model import RELOAD, make_request
from argosy.conformance.target import Target, read_outputs

_CONFIG: Final = "extension_model_configuration.md: HTTP/REST"
_STATS: Final = "extension_statistics.md: Statistics Response JSON Object"
_INDEX: Final = "extension_model_repository.md: Index"
_LOAD: Final = "extension_model_repository.md: Load"
_UNLOAD: Final = "extension_model_repository.md: Unload"
_SCHEDULE: Final = "extension_schedule_policy.md: Dynamic Batcher"
_UNKNOWN: Final = "conformance-no-such-model"
_PAUSE_S: Final = 0.05
_TYPES: Final = {"FP16": "TYPE_FP16", "BYTES": "TYPE_STRING"}


def _read_config(target: Target, version: str = "") -> tuple[Answer, dict[str, Any]]:
    target.need_extension("model_configuration")
    answer = target.get(model_path(target.main.name, version, "config"))
    return answer, answer.read_object()


@clause("config.name", "The configuration is an object with the model's name", Level.MUST, _CONFIG)
def check_config(target: Target) -> None:
    answer, value = _read_config(target)
    answer.expect(value.get("name") == target.main.name, f"name {target.main.name}", f"name {value.get('name')}")


@clause("config.version", "The configuration of a version", Level.MUST, _CONFIG)
def check_config_version(target: Target) -> None:
    answer, value = _read_config(target, target.need_version(target.main))
    answer.expect(value.get("name") == target.main.name, f"name {target.main.name}", f"name {value.get('name')}")


@clause("config.max-batch-size", "max_batch_size is an integer from 0", Level.MUST, _CONFIG)
def check_max_batch(target: Target) -> None:
    answer, value = _read_config(target)
    found = answer.field(value, "max_batch_size", int, "an integer")
    answer.expect(found >= 0, "max_batch_size from 0", str(found))


def _read_items(answer: Answer, value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    items = cast(list[Any], answer.field(value, name, list, "an array"))
    answer.expect(all(isinstance(item, dict) for item in items), f"{name} of objects")
    return items


@clause("config.tensors", "Inputs and outputs are those of the metadata", Level.MUST, _CONFIG)
def check_config_tensors(target: Target) -> None:
    answer, value = _read_config(target)
    for kind, tensors in (("input", target.main.inputs), ("output", target.main.outputs)):
        items = _read_items(answer, value, kind)
        found = {str(item.get("name")): item.get("data_type") for item in items}
        expected = {tensor.name: _TYPES.get(tensor.datatype, f"TYPE_{tensor.datatype}") for tensor in tensors}
        answer.expect(found == expected, f"{kind}s {expected}", f"{kind}s {found}")


@clause(
    "config.dims",
    "Dims are the metadata's shape, without the axis of rows where max_batch_size is above 0",
    Level.MUST,
    _CONFIG,
    "As model_config.proto has it; the metadata's shape has the axis of rows as -1.",
)
def check_config_dims(target: Target) -> None:
    answer, value = _read_config(target)
    has_rows = answer.field(value, "max_batch_size", int, "an integer") > 0
    for kind, tensors in (("input", target.main.inputs), ("output", target.main.outputs)):
        found = {str(item.get("name")): item.get("dims") for item in _read_items(answer, value, kind)}
        for tensor in tensors:
            expected = list(tensor.shape[1:] if has_rows else tensor.shape)
            got = found.get(tensor.name)
            answer.expect(got == expected, f"dims {expected} of {tensor.name}", f"dims {got}")


@clause("config.unknown-model", "The configuration of an unknown model is refused", Level.MUST, _CONFIG)
def check_config_unknown(target: Target) -> None:
    target.need_extension("model_configuration")
    target.get(model_path(_UNKNOWN, "", "config")).expect_refusal()


def _read_stats(target: Target, path: str) -> tuple[Answer, list[dict[str, Any]]]:
    target.need_extension("statistics")
    answer = target.get(path)
    return answer, _read_items(answer, answer.read_object(), "model_stats")


def _own_stats(target: Target, version: str = "") -> tuple[Answer, dict[str, Any]]:
    answer, items = _read_stats(target, model_path(target.main.name, version, "stats"))
    own = [item for item in items if item.get("name") == target.main.name and version in ("", item.get("version"))]
    answer.expect(bool(own) and len(own) == len(items), f"model_stats of {target.main.name} alone")
    return answer, own[-1]


@clause("stats.model", "A model has its counts", Level.MUST, _STATS)
def check_stats(target: Target) -> None:
    answer, own = _own_stats(target)
    for name in ("last_inference", "inference_count", "execution_count"):
        answer.expect(answer.field(own, name, int, "a number") >= 0, f"{name} from 0")


@clause("stats.durations", "Each duration has a count and nanoseconds", Level.MUST, _STATS)
def check_durations(target: Target) -> None:
    answer, own = _own_stats(target)
    _check_durations(answer, answer.field(own, "inference_stats", dict, "an object"))


def _check_durations(answer: Answer, place: Mapping[str, Any], names: tuple[str, ...] = ("success", "fail", "queue")) -> None:
    for name in (*names, "compute_input", "compute_infer", "compute_output"):
        duration = answer.field(place, name, dict, "an object of count and ns")
        for part in ("count", "ns"):
            answer.expect(answer.field(duration, part, int, "a number") >= 0, f"{part} of {name} from 0")


@clause("stats.batches", "Each size of batch has its durations", Level.MUST, _STATS)
def check_batches(target: Target) -> None:
    target.infer(target.main)
    answer, own = _own_stats(target)
    for item in _read_items(answer, own, "batch_stats"):
        answer.expect(answer.field(item, "batch_size", int, "a number") >= 1, "a batch_size from 1")
        _check_durations(answer, item, ())


@clause("stats.version", "A version has its counts", Level.MUST, _STATS)
def check_stats_version(target: Target) -> None:
    _own_stats(target, target.need_version(target.main))


@clause("stats.all", "All models together", Level.MUST, _STATS)
def check_stats_all(target: Target) -> None:
    answer, items = _read_stats(target, "/v2/models/stats")
    missing = target.models.keys() - {item.get("name") for item in items}
    answer.expect(not missing, "model_stats of every model", f"none of {', '.join(sorted(missing))}")


@clause(
    "stats.counts",
    "Requests and their rows are counted",
    Level.MUST,
    _STATS,
    "inference_count counts rows, success counts requests. Other clients must be silent; counts may take a moment.",
)
def check_counts(target: Target) -> None:
    _, before = _own_stats(target)
    num_requests, num_rows = 3, 2
    for _ in range(num_requests):
        read_outputs(target.infer(target.main))
    has_rows = all(tensor.shape[:1] == (-1,) for tensor in target.main.inputs)
    expected = (num_requests * (num_rows if has_rows else 1), num_requests)
    end = time.monotonic() + target.http.timeout_s
    while True:
        answer, after = _own_stats(target)
        got = (_count(answer, after, before, "inference_count"), _count_success(answer, after, before))
        if got == expected or time.monotonic() > end:
            break
        time.sleep(_PAUSE_S)
    answer.expect(got == expected, f"{expected[0]} rows and {expected[1]} requests more", f"{got[0]} and {got[1]} more")
    answer.expect(after["execution_count"] > before.get("execution_count", 0), "more executions")
    answer.expect(abs(after["last_inference"] / 1000 - time.time()) < 3600, "last_inference now, in milliseconds")


def _count(answer: Answer, after: Mapping[str, Any], before: Mapping[str, Any], name: str) -> int:
    return answer.field(after, name, int, "a number") - answer.field(before, name, int, "a number")


def _count_success(answer: Answer, after: Mapping[str, Any], before: Mapping[str, Any]) -> int:
    found = [
        answer.field(answer.field(stats, "inference_stats", dict, "an object"), "success", dict, "an object")
        for stats in (after, before)
    ]
    return _count(answer, found[0], found[1], "count")


@clause("stats.unknown-model", "The counts of an unknown model are refused", Level.MUST, _STATS)
def check_stats_unknown(target: Target) -> None:
    target.need_extension("statistics")
    target.get(model_path(_UNKNOWN, "", "stats")).expect_refusal()


def _read_index(target: Target, request: Mapping[str, Any]) -> tuple[Answer, list[dict[str, Any]]]:
    target.need_extension("model_repository")
    answer = target.http.send("POST", "/v2/repository/index", json.dumps(request).encode())
    answer.expect(answer.status == 200, "status 200")
    value = answer.read_json(answer.body)
    if not isinstance(value, list):
        raise answer.failure("a JSON array")
    items = cast(list[Any], value)
    answer.expect(all(isinstance(item, dict) for item in items), "entries that are objects")
    return answer, items


@clause("repository.index", "The index has every model, and the state of each", Level.MUST, _INDEX)
def check_index(target: Target) -> None:
    answer, items = _read_index(target, {})
    for item in items:
        for name in ("name", "state"):
            answer.field(item, name, str, "a string")
    missing = target.models.keys() - {item["name"] for item in items}
    answer.expect(not missing, "every model", f"none of {', '.join(sorted(missing))}")


@clause(
    "repository.index-fields",
    "`reason` and `version` are strings",
    Level.MUST,
    _INDEX,
    "version is optional; reason is not, though Triton leaves an empty one out over HTTP.",
)
def check_index_fields(target: Target) -> None:
    answer, items = _read_index(target, {})
    for item in items:
        for name in ("version", "reason"):
            if name in item:
                answer.field(item, name, str, "a string")


@clause("repository.index-ready", "ready = true leaves what is not ready out", Level.MUST, _INDEX)
def check_index_ready(target: Target) -> None:
    answer, items = _read_index(target, {"ready": True})
    states = {str(item.get("state")) for item in items}
    answer.expect(states == {"READY"}, "models whose state is READY", f"states {', '.join(sorted(states))}")


@clause("repository.index-empty-body", "The index is given to an empty body", Level.MAY, _INDEX, "The text requires the object.")
def check_index_empty(target: Target) -> None:
    target.need_extension("model_repository")
    answer = target.http.send("POST", "/v2/repository/index", b"")
    if answer.is_refusal:
        raise NotOffered("an empty body is refused")
    answer.expect(answer.status == 200, "status 200")


def _change(target: Target, name: str, action: str) -> Answer:
    target.need_extension("model_repository")
    answer = target.http.send("POST", f"/v2/repository/models/{name}/{action}", b"{}", target.admin_headers)
    if answer.status in (401, 403) and not target.admin_headers:
        raise Skip("it needs --admin-token")
    return answer


@clause("repository.load-unknown", "Loading an unknown model is refused", Level.MUST, _LOAD)
def check_load_unknown(target: Target) -> None:
    _change(target, _UNKNOWN, "load").expect_refusal()


@clause(
    "repository.unload-unknown",
    "Unloading an unknown model is refused",
    Level.SHOULD,
    _UNLOAD,
    "The text does not say so; a server may take it as done already.",
)
def check_unload_unknown(target: Target) -> None:
    _change(target, _UNKNOWN, "unload").expect_refusal()


def _wait_ready(target: Target, name: str, is_ready: bool) -> Answer:
    end = time.monotonic() + target.http.timeout_s
    while True:
        answer = target.get(model_path(name, "", "ready"))
        if (answer.status == 200) == is_ready or time.monotonic() > end:
            return answer
        time.sleep(_PAUSE_S)


@clause("repository.unload", "A model that is unloaded is not ready, and answers no more", Level.MUST, _UNLOAD)
def check_unload(target: Target) -> None:
    model = target.need_model(RELOAD)
    try:
        answer = _change(target, RELOAD, "unload")
        answer.expect(answer.status == 200, "status 200")
        ready = _wait_ready(target, RELOAD, False)
        ready.expect(ready.status != 200, f"another status than 200 within {target.http.timeout_s:g} s of the unloading")
        target.infer(model).expect_refusal()
    finally:
        _change(target, RELOAD, "load")


@clause("repository.load", "A model that is loaded again is ready, and answers", Level.MUST, _LOAD)
def check_load(target: Target) -> None:
    model = target.need_model(RELOAD)
    _change(target, RELOAD, "unload")
    answer = _change(target, RELOAD, "load")
    answer.expect(answer.status == 200, "status 200")
    ready = _wait_ready(target, RELOAD, True)
    ready.expect(ready.status == 200, f"status 200 within {target.http.timeout_s:g} s of the loading")
    read_outputs(target.infer(model))


def _check_policy(target: Target, **parameters: object) -> None:
    target.need_extension("schedule_policy")
    read_outputs(target.infer(target.main, make_request(target.main, parameters=parameters)))


@clause("schedule.priority", "A priority is taken, 0 being the default", Level.MUST, _SCHEDULE)
def check_priority(target: Target) -> None:
    for priority in (0, 1, 2):
        _check_policy(target, priority=priority)


@clause("schedule.timeout", "A timeout in microseconds is taken", Level.MUST, _SCHEDULE)
def check_timeout(target: Target) -> None:
    _check_policy(target, timeout=30_000_000)


@clause(
    "schedule.timeout-zero",
    "A timeout of 0 is the model's own",
    Level.MAY,
    _SCHEDULE,
    "Triton's clients send 0 for none; the text does not speak of it.",
)
def check_timeout_zero(target: Target) -> None:
    _check_policy(target, timeout=0)


@clause("schedule.refuse-text", "A timeout that is no number is refused", Level.SHOULD, _SCHEDULE)
def check_timeout_text(target: Target) -> None:
    target.need_extension("schedule_policy")
    target.infer(target.main, make_request(target.main, parameters={"timeout": "soon"})).expect_refusal()
