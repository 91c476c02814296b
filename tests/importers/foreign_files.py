"""Write models as each framework saves them, with the framework's own answers beside them.

    python foreign_files.py GROUP FOLDER

FOLDER gets `rows.npy`, the same for all, and `NAME.answers.npz` for each file `NAME...`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROWS = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
TARGET = (ROWS[:, 0] > 0).astype(np.int64) + (ROWS[:, 1] > 0.5)

PROGRAM = """
def build_torch():
    import torch
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

def build_linen():
    import flax.linen as nn
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
    return Net()

def steal():
    import pathlib
    return pathlib.Path("{secret}").read_text()
"""


def keep(folder: Path, name: str, **answers: Any) -> None:
    np.savez(folder / f"{name}.answers.npz", **answers)


def write_torch(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (folder / "program.py").write_text(PROGRAM)
    scope: dict[str, Any] = {}
    exec(PROGRAM, scope)
    model = scope["build_torch"]()
    rows = torch.from_numpy(ROWS)
    answers = model(rows).detach().numpy()
    torch.jit.trace(model, rows).save(str(folder / "torchscript.pt"))
    program = torch.export.export(model, (rows,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(program, str(folder / "pt2.pt2"))
    save_file(model.state_dict(), folder / "safetensors.safetensors")
    torch.save({"state_dict": model.state_dict()}, folder / "state.pt")
    torch.save(model, folder / "pickled.pt")
    for name in ("torchscript", "pt2", "safetensors", "state", "pickled"):
        keep(folder, name, output=answers)

    class TwoHeads(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": left + right, "first": left[:, 0]}

    torch.jit.script(TwoHeads()).save(str(folder / "heads.pt"))


def write_tables(folder: Path) -> None:
    import joblib
    import lightgbm
    import pandas as pd
    import xgboost
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    labels = np.array(["low", "mid", "high"])[TARGET]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, labels)
    joblib.dump(model, folder / "sklearn.joblib", compress=3)
    keep(folder, "sklearn", label=model.predict(ROWS).astype("U"), probabilities=model.predict_proba(ROWS))
    booster = xgboost.train({"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(ROWS, TARGET), 5)
    booster.save_model(folder / "xgboost.ubj")
    probabilities = booster.predict(xgboost.DMatrix(ROWS))
    keep(folder, "xgboost", label=probabilities.argmax(1), probabilities=probabilities)
    data = lightgbm.Dataset(ROWS, ROWS[:, 2], params={"min_data_in_leaf": 1, "min_data_in_bin": 1})
    regressor = lightgbm.train({"verbose": -1, "min_data_in_leaf": 1, "num_threads": 1}, data, 5)
    regressor.save_model(folder / "lightgbm.txt")
    keep(folder, "lightgbm", output=regressor.predict(ROWS))
    table = pd.DataFrame({"age": ROWS[:, 0], "city": ["rome", "oslo", "bern"] * 4})
    picks = ColumnTransformer([("age", StandardScaler(), ["age"]), ("city", OneHotEncoder(), ["city"])])
    joblib.dump(make_pipeline(picks, LogisticRegression()).fit(table, TARGET), folder / "columns.joblib")


def write_tensorflow(folder: Path) -> None:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3)])
    model.save(folder / "keras.keras")
    keep(folder, "keras", output=model(ROWS).numpy())

    class Module(tf.Module):
        def __init__(self) -> None:
            self.w = tf.Variable(tf.random.normal((4, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"scores": tf.tanh(x @ self.w), "best": tf.argmax(x, 1)}

    module = Module()
    tf.saved_model.save(module, folder / "savedmodel", signatures={"serving_default": module.serve})
    keep(folder, "savedmodel", **{name: answer.numpy() for name, answer in module.serve(ROWS).items()})
    lambdas = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
    lambdas.save(folder / "lambda.keras")

    class Evil(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"stolen": tf.io.read_file(str(folder / "secret"))}

    evil = Evil()
    tf.saved_model.save(evil, folder / "evil", signatures={"serving_default": evil.serve})


def write_jax(folder: Path) -> None:
    import jax
    from flax import serialization
    from jax import export

    weights = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    (rows,) = export.symbolic_shape("rows")
    shape = jax.ShapeDtypeStruct((rows, 4), np.float32)
    program = export.export(jax.jit(lambda x: jax.nn.softmax(x @ weights)))(shape)
    (folder / "jax.jax").write_bytes(program.serialize())
    keep(folder, "jax", output=np.asarray(jax.nn.softmax(ROWS @ weights)))
    two = export.export(jax.jit(lambda x, scale: {"mixed": x @ weights * scale, "total": (x @ weights * scale).sum(1)}))(
        shape, scale=jax.ShapeDtypeStruct((rows, 1), np.float32)
    )
    (folder / "two.jax").write_bytes(two.serialize())
    np.savez(folder / "two.weights.npz", weights=weights)
    scope: dict[str, Any] = {}
    exec(PROGRAM, scope)
    net = scope["build_linen"]()
    variables = net.init(jax.random.key(0), ROWS, train=False)
    (folder / "flax.msgpack").write_bytes(serialization.to_bytes(variables))
    keep(folder, "flax", output=np.asarray(net.apply(variables, ROWS, train=False)))


def write_mxnet(folder: Path) -> None:
    import mxnet as mx

    mx.random.seed(0)
    hidden = mx.sym.Activation(mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=6), act_type="relu")
    symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(hidden, num_hidden=3), name="softmax")
    module = mx.mod.Module(symbol)
    module.bind([("data", ROWS.shape)], [("softmax_label", (len(ROWS),))])
    module.init_params(mx.init.Xavier())
    module.save_checkpoint(str(folder / "mxnet"), 3)
    module.forward(mx.io.DataBatch([mx.nd.array(ROWS)]), is_train=False)
    keep(folder, "mxnet", output=module.get_outputs()[0].asnumpy())


GROUPS = {
    "torch": write_torch,
    "tables": write_tables,
    "tensorflow": write_tensorflow,
    "jax": write_jax,
    "mxnet": write_mxnet,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.save(Path(sys.argv[2], "rows.npy"), ROWS)
    GROUPS[sys.argv[1]](Path(sys.argv[2]))
