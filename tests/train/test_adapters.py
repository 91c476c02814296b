"""Fine-tuning by adapters: they alone are trained, the lineage says so, and they are merged when the model is published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from argosy.optim import Adam
from argosy.train.run import train

peft = pytest.importorskip("peft")


def test_adapters_alone_are_trained_and_merged_when_published(blobs, make_model, store):
    base = make_model()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0", "3"], r=4, lora_alpha=8))
    result = train(model, blobs, optimizer=Adam(learning_rate=0.05), epochs=5, progress=False)
    assert result.history[-1].loss < result.history[0].loss
    after = {name.replace("base_layer.", "").removeprefix("base_model.model."): t for name, t in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    lineage = result.describe_lineage()
    assert lineage["weights"]["trained"] == 4 * (4 + 16) + 4 * (16 + 3)
    assert lineage["weights"]["adapters"] == [{"name": "default", "kind": "LORA", "r": 4, "lora_alpha": 8}]
    version = result.publish("tuned", store)
    golden = store.load_golden(version)
    np.testing.assert_allclose(golden.outputs["output"], result.predict(golden.inputs["input"]), rtol=1e-3, atol=1e-4)
    assert version.manifest.lineage["adapters"][0]["rank"] == 4
