"""Intel Neural Compressor's tuning that is aware of accuracy, as its documentation has it, on MiniLM's ONNX file.

python minilm_neural_compressor.py MODEL CALIBRATION VALIDATION OUTPUT MAX_LOSS TRIALS
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import onnx
from minilm_rows import Row, embed, load_rows, measure_cosine
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import AccuracyCriterion, TuningCriterion


class Loader:
    """Calibration rows, one a batch, with no labels."""

    batch_size = 1

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Row, int]]:
        return ((row, 0) for row in self._rows)


def main() -> None:
    model, calibration, validation, output, max_loss, trials = sys.argv[1:]
    rows = load_rows(validation)
    right = embed(model, rows)

    def evaluate(candidate: onnx.ModelProto) -> float:
        return measure_cosine(embed(candidate.SerializeToString(), rows), right)

    given = load_rows(calibration)
    config = PostTrainingQuantConfig(
        approach="auto",
        quant_level=1,  # With the default, "auto", its conservative strategy ends in a TypeError for "auto" approaches.
        calibration_sampling_size=[len(given)],
        accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=float(max_loss)),
        tuning_criterion=TuningCriterion(max_trials=int(trials), timeout=0),
    )
    made = quantization.fit(model, config, calib_dataloader=Loader(given), eval_func=evaluate)
    if made is None:
        sys.exit(f"no model loses at most {max_loss} within {trials} trials")
    made.save(output)


if __name__ == "__main__":
    main()
