"""Triton's C++ core (HTTP and gRPC) with its Python backend, from the wheel of nvidia-pytriton.

That wheel has no ONNX Runtime backend: ONNX goes through a stub process that runs `triton_model.py`.
"""

import shutil
from pathlib import Path

from ort_model import FOLDER, GRPC_PORT, MAX_BATCH, PAD, PORT, WAIT_MS, WORKERS, OrtModel
from triton_start import start

HERE = Path(__file__).parent


def make_repository(model: OrtModel) -> Path:
    folder = Path(FOLDER) / "repository" / "m"
    (folder / "1").mkdir(parents=True)
    shutil.copy(HERE / "triton_model.py", folder / "1" / "model.py")
    shutil.copy(HERE / "ort_model.py", folder / "1")
    kinds = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}

    def describe(word: str, items: list, extra: str = "") -> str:
        # The first axis is Triton's own; of the others, those without a fixed length are -1.
        shapes = [[size if isinstance(size, int) else -1 for size in item.shape[1:]] for item in items]
        return "".join(
            f'{word} {{ name: "{item.name}" data_type: {kinds[item.type]} dims: {shape} {extra}}}\n'
            for item, shape in zip(items, shapes, strict=True)
        )

    ragged = "allow_ragged_batch: true " if PAD else ""
    lines = [
        f'name: "m"\nbackend: "python"\nmax_batch_size: {MAX_BATCH}\n',
        describe("input", model.session.get_inputs(), ragged) + describe("output", model.session.get_outputs()),
        f"dynamic_batching {{ max_queue_delay_microseconds: {int(WAIT_MS * 1000)} }}\n" if MAX_BATCH > 1 else "",
        f"instance_group {{ count: {WORKERS} kind: KIND_CPU }}\n",
    ]
    (folder / "config.pbtxt").write_text("".join(lines))
    return folder.parent


if __name__ == "__main__":
    start(make_repository(OrtModel()), PORT, GRPC_PORT)
