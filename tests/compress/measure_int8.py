"""Make the table of src/argosy/compress/steps/int8.md: `python -m tests.compress.measure_int8`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from argosy.compress import Guard, compress
from argosy.compress.steps.int8 import Int8
from argosy.store.local import Store
from argosy.train.recipes import load_data_for, run_recipe

METHODS = {
    "per channel, 512 rows": Int8(),
    "per channel, 32 rows": Int8(max_calibration_rows=32),
    "one scale": Int8(per_channel=False),
}


def main() -> None:
    print(
        "| seed | variant | accuracy float32 -> int8 | kB | of float32 | us a row, alone | us a row, batch of 32 | batch mates |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for seed in range(5):
            version = run_recipe("digits", seed=seed, publish_as="digits", store=store, progress=False).version
            data = load_data_for(version) if version else None
            if version is None or data is None:
                raise SystemExit("the recipe published nothing")
            training, testing = data
            for name, method in METHODS.items():
                result = compress(
                    version,
                    method=method,
                    calibration=training.x,
                    evaluation=testing,
                    guard=Guard(max_loss=0.99),
                    publish=False,
                    store=store,
                )
                before, after, score = result.before, result.after, result.score
                print(
                    f"| {seed} | {name} | {score.before:.4f} -> {score.after:.4f} | {before.size_bytes / 1e3:.0f} -> "
                    f"{after.size_bytes / 1e3:.0f} | {after.size_bytes / before.size_bytes:.1%} | "
                    f"{before.latency_s * 1e6:.1f} -> {after.latency_s * 1e6:.1f} | "
                    f"{before.batch_row_s * 1e6:.1f} -> {after.batch_row_s * 1e6:.1f} | "
                    f"{result.after.batch_difference:.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
