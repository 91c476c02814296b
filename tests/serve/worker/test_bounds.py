"""A version that asks for more memory than there is comes to grief alone, however it came into the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from argosy.errors import FaultError
from tests.bombs import write_large
from tests.home import SIGNATURE, Home, golden_scale, row
from tests.processes import find_workers

GIB = 2**30


@pytest.mark.parametrize("is_constant", [True, False], ids=["when it is opened", "when it runs"])
def test_version_that_asks_for_more_than_is_free_is_refused_alone(home: Home, is_constant: bool) -> None:
    home.publish_scale()
    files = {"model.onnx": write_large(home.files / "large.onnx", 8 * GIB, is_constant=is_constant)}
    # Version 1 has nothing to run while it is loaded; version 2 has.
    for golden in (None, golden_scale(1.0)):
        home.store.publish("large", files, signature=SIGNATURE, entry="model.onnx", golden=golden)
    with home.serve("scale", memory_limit_bytes=GIB) as server, server.client() as client:
        (pid,) = find_workers(server, "scale")
        with pytest.raises(FaultError, match=r"asks for more memory than the \d+ MiB that are free for it"):
            server.deploy("large@2")
        try:
            server.deploy("large@1")
        except FaultError as error:
            # An older ONNX Runtime opens no file with a constant that there is no room for.
            assert is_constant and "asks for more memory than the" in error.message
        else:
            with pytest.raises(FaultError, match="allocate"):
                client.predict("large", {"x": row(1)})
            (worker,) = find_workers(server, "large")
            assert Path(f"/proc/{worker}/oom_score_adj").read_text().strip() == "500"
        np.testing.assert_array_equal(client.predict("scale", {"x": row(1)})["y"], row(2))
        assert find_workers(server, "scale") == [pid]
