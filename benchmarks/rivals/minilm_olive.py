"""Olive's search over its passes for ONNX Runtime, as its example for BERT on a CPU has it, on MiniLM's ONNX file.

    python minilm_olive.py MODEL CALIBRATION VALIDATION OUTPUT MAX_LOSS TRIALS

Olive imports this file, too: `evaluate` and the data set are found by name.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import Any

from minilm_rows import embed, load_rows, measure_cosine

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

from olive.data.registry import Registry
from olive.workflows import run


class Rows:
    """A data set as Olive takes it: inputs and a label by place."""

    def __init__(self, path: str) -> None:
        self._rows = load_rows(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[dict[str, Any], int]:
        return {name: array[0] for name, array in self._rows[place].items()}, 0


@Registry.register_dataset()
def minilm_sentences(path: str, **_: object) -> Rows:
    return Rows(path)


def evaluate(model: Any, *_: object, **options: Any) -> dict[str, float]:
    """The mean cosine to the original."""
    rows = load_rows(options["validation"])
    return {"mean": measure_cosine(embed(str(model.model_path), rows), embed(options["original"], rows))}


def main() -> None:
    model, calibration, validation, output, max_loss, trials = sys.argv[1:]

    def describe_rows(name: str, path: str) -> dict[str, Any]:
        loader = {"type": "minilm_sentences", "params": {"path": path}}
        return {"name": name, "user_script": __file__, "load_dataset_config": loader, "dataloader_config": {"batch_size": 1}}

    cosine = {
        "name": "cosine",
        "type": "custom",
        "sub_types": [
            {
                "name": "mean",
                "priority": 1,
                "higher_is_better": True,
                "goal": {"type": "max-degradation", "value": float(max_loss)},
            }
        ],
        "user_config": {
            "user_script": __file__,
            "evaluate_func": "evaluate",
            "evaluate_func_kwargs": {"original": model, "validation": validation},
        },
    }
    latency = {
        "name": "latency",
        "type": "latency",
        "data_config": "validation",
        "sub_types": [{"name": "avg", "priority": 2, "goal": {"type": "percent-min-improvement", "value": 5}}],
    }
    with tempfile.TemporaryDirectory() as folder:
        found = run(
            {
                "input_model": {"type": "ONNXModel", "model_path": model},
                "systems": {
                    "here": {
                        "type": "LocalSystem",
                        "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                    }
                },
                "data_configs": [describe_rows("calibration", calibration), describe_rows("validation", validation)],
                "evaluators": {"both": {"metrics": [cosine, latency]}},
                "passes": {
                    "transformers": {
                        "type": "OrtTransformersOptimization",
                        "model_type": "bert",
                        "num_heads": 12,
                        "hidden_size": 384,
                    },
                    "quantization": {
                        "type": "OnnxQuantization",
                        "data_config": "calibration",
                        "quant_mode": "SEARCHABLE_VALUES",
                        "precision": "SEARCHABLE_VALUES",
                        "per_channel": "SEARCHABLE_VALUES",
                        "reduce_range": "SEARCHABLE_VALUES",
                        # Entropy and Percentile take rows of one length alone; padded, they fail on the mask's -inf.
                        "calibrate_method": "MinMax",
                        "quant_format": "SEARCHABLE_VALUES",
                        "activation_type": "SEARCHABLE_VALUES",
                        # Types that cannot be inferred behind ONNX Runtime's own operators: float32.
                        "extra_options": {"DefaultTensorType": 1},
                    },
                },
                "search_strategy": {
                    "execution_order": "joint",
                    "sampler": "tpe",
                    "sampler_config": {"max_samples": int(trials), "seed": 0},
                },
                "evaluator": "both",
                "host": "here",
                "target": "here",
                "cache_dir": f"{folder}/cache",
                "output_dir": f"{folder}/output",
                "log_severity_level": 2,
            }
        )
        best = found.get_best_candidate()
        if best is None:
            sys.exit(f"no model loses at most {max_loss} within {trials} samples")
        # Where none reaches its goal, Olive gives the best of those that do not.
        rows = load_rows(validation)
        loss = 1.0 - measure_cosine(embed(str(best.model_path), rows), embed(model, rows))
        if loss > float(max_loss):
            sys.exit(f"no model of {trials} samples loses at most {max_loss}; what it gives loses {loss:.4f}")
        shutil.copy(best.model_path, output)


if __name__ == "__main__":
    main()
