"""How an answer is said not to be the expected one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argosy.serve.worker.warmup import GoldenMismatch, verify_golden

NUMBERS = np.ones((2, 3), np.float32)
TEXTS = np.array([["a", "b"], ["a", "c"]], object)


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        pytest.param(NUMBERS, NUMBERS * 1.5, "differs by 0.5, allowed 0.001", id="numbers"),
        pytest.param(NUMBERS, None, "is missing", id="missing"),
        pytest.param(NUMBERS, NUMBERS[:0], "has shape (0, 3), expected (1, 3)", id="no-rows"),
        pytest.param(NUMBERS, NUMBERS.astype(np.int64), "has datatype int64, expected float32", id="datatype"),
        pytest.param(NUMBERS, NUMBERS * np.nan, "is NaN or infinite in 3 of 3 elements", id="nan"),
        pytest.param(NUMBERS * np.inf, NUMBERS, "is NaN or infinite in 3 of 3 elements", id="not-infinite"),
        pytest.param(TEXTS, TEXTS[:, ::-1], "has 2 of 2 elements that are not the expected ones", id="texts"),
        pytest.param(NUMBERS > 0, NUMBERS > 2, "has 3 of 3 elements that are not the expected ones", id="booleans"),
    ],
)
def test_answer_that_is_not_the_recorded_one_is_told_in_words(expected: Any, got: Any, said: str) -> None:
    def infer(inputs: dict[str, Any]) -> dict[str, Any]:
        row = int(inputs["x"][0])
        return {} if got is None else {"y": got[row : row + 1]}

    with pytest.raises(GoldenMismatch) as caught:
        verify_golden(infer, {"x": np.arange(len(expected))}, {"y": expected}, is_batched=True)
    assert str(caught.value).startswith(f"output 'y' {said}")
