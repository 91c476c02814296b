"""How many threads and replicas a model gets where its deployment leaves that open."""

from __future__ import annotations

import os
import signal

import pytest

from argosy.errors import ArgosyError
from argosy.serve.worker.cores import choose_replicas, choose_threads, count_cores, run_apart
from tests.home import Home, golden_scale, row
from tests.processes import find_child, find_workers, wait_until

pytestmark = pytest.mark.alone

SLOW = "time.sleep(0.01 * len(x)); return {'y': x * 2}"


def test_slow_model_gets_a_replica_for_each_core_and_a_quick_one_a_single(home: Home) -> None:
    home.publish_scale()
    home.publish_code(SLOW, golden=golden_scale())
    with home.serve() as server, server.client() as client, server.admin() as admin:
        server.deploy("scale", replicas=0)
        server.deploy("code", replicas=0, allow_code=True)
        lanes = {found["spec"]["name"]: found["lanes"][0] for found in admin.status()["deployments"]}
        assert (lanes["scale"]["replicas"], len(find_workers(server, "scale"))) == (1, 1)
        assert (lanes["code"]["replicas"], len(find_workers(server, "code"))) == (count_cores(), count_cores())
        assert client.predict("code", {"x": row(3)})["y"].tolist() == (row(3) * 2).tolist()


def test_number_of_replicas_that_was_found_outlives_the_control_process(home: Home) -> None:
    home.publish_code(SLOW, golden=golden_scale())
    with home.serve() as server, server.admin() as admin:
        server.deploy("code", replicas=0, allow_code=True)
        workers = sorted(find_workers(server, "code"))
        os.kill(find_child(server, "argosy.deploy.control"), signal.SIGKILL)

        def is_settled() -> bool:
            try:
                (found,) = admin.status()["deployments"]
            except ArgosyError:
                return False
            return bool(found["lanes"]) and found["lanes"][0]["replicas"] == count_cores()

        wait_until(is_settled)
        assert sorted(find_workers(server, "code")) == workers


@pytest.mark.skipif(count_cores() < 2, reason="one replica is all that one core is good for")
def test_memory_bounds_the_replicas_that_are_found(home: Home) -> None:
    home.publish_code(f"self.kept = np.ones(40 << 17); {SLOW}", golden=golden_scale())
    with home.serve(memory_limit_bytes=70 << 20) as server, server.admin() as admin:
        server.deploy("code", replicas=0, allow_code=True)
        (found,) = admin.status()["deployments"]
        assert found["lanes"][0]["replicas"] == 1
        steps = [event.detail for event in admin.follow(found["rollouts"][0]["id"])]
    assert any(f"memory has no room for {count_cores()}" in step for step in steps)


@pytest.mark.parametrize(
    ("times", "max_threads", "expected"),
    [
        pytest.param({1: 0.001}, 8, 1, id="a quick row has one thread"),
        pytest.param({1: 0.016, 2: 0.009, 4: 0.005, 8: 0.003}, 8, 8, id="all that pay"),
        pytest.param({1: 0.016, 2: 0.009, 4: 0.008}, 8, 2, id="until twice as many are of little use"),
        pytest.param({1: 0.016, 2: 0.009, 4: 0.005, 6: 0.0041}, 6, 4, id="what is left may not pay"),
        pytest.param({1: 0.010, 2: 0.030}, 2, 1, id="more can be worse"),
        pytest.param({1: 0.010}, 1, 1, id="there is one core"),
    ],
)
def test_threads_are_those_that_pay_and_the_model_ends_loaded_with_them(times, max_threads, expected) -> None:
    loaded: list[int] = []
    assert choose_threads(loaded.append, lambda: times[loaded[-1]], max_threads) == expected
    assert loaded[-1] == expected


@pytest.mark.parametrize(
    ("row_s", "num_cores", "expected"),
    [(2e-6, 2, 1), (1e-3, 2, 2), (2e-6, 16, 1), (8e-6, 16, 4), (25e-6, 16, 8), (1e-2, 16, 16), (1e-9, 1, 1)],
)
def test_cores_are_divided_as_a_request_divides_its_time(row_s, num_cores, expected) -> None:
    assert choose_replicas(row_s, num_cores) == expected


def test_what_a_fork_finds_comes_back_and_its_end_is_survived() -> None:
    found = bytes(range(256)) * 1000
    assert run_apart(lambda: found) == found
    assert run_apart(lambda: bytes(1 // 0)) == b""
    assert run_apart(lambda: os.kill(os.getpid(), signal.SIGKILL) or found) == b""


def test_cores_are_no_more_than_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= count_cores() <= len(allowed)
