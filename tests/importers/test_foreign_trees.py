"""Ensembles of trees and estimators of scikit-learn as ONNX: every objective, missing values and categories included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.errors import InputError, ModelError
from argosy.frameworks.agreement import Differs, Run, hold_against
from argosy.frameworks.trials import draw_trials
from argosy.importers.convert import measure_difference
from argosy.importers.formats.base import ForeignModel, Source, load
from argosy.runtimes.onnx import OnnxRuntime

xgboost: Any = pytest.importorskip("xgboost")
lightgbm: Any = pytest.importorskip("lightgbm")
sklearn_files: Any = pytest.importorskip("argosy.importers.formats.sklearn")

TOLERANCE = 1e-5
"""Relative to the largest magnitude of an output. float32 sums of a few trees differ by 1e-7, their exponentials by 1e-6."""
NUM_ROWS, WIDTH = 600, 6
RANDOM = np.random.default_rng(0)
# One decimal: rows lie on both sides of every threshold, and near to it. Some are missing, some zero.
ROWS = RANDOM.standard_normal((NUM_ROWS, WIDTH)).round(1).astype(np.float32)
ROWS[RANDOM.random(ROWS.shape) < 0.1] = np.nan
ROWS[RANDOM.random(ROWS.shape) < 0.1] = 0
DENSE = np.nan_to_num(ROWS)
SMOOTH = RANDOM.standard_normal(ROWS.shape).astype(np.float32)
VALUES = DENSE @ np.arange(WIDTH, dtype=np.float32) + 20
CLASSES = (DENSE[:, 0] > 0).astype(np.int64) + (DENSE[:, 1] > 0.5)
BINARY = (CLASSES > 0).astype(np.int64)


def answer(model: ForeignModel, inputs: dict[str, np.ndarray], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a model answers, and what its export does."""
    model.export_onnx(inputs, folder / "model.onnx")
    runtime = OnnxRuntime()
    runtime.load(folder, "model.onnx", {})
    return model.predict(inputs), runtime.infer(inputs)


XGBOOST = {
    "reg:squarederror": ({}, VALUES),
    "reg:absoluteerror": ({}, VALUES),
    "reg:quantileerror": ({"quantile_alpha": 0.3}, VALUES),
    "reg:gamma": ({}, np.abs(VALUES) + 1),
    "reg:tweedie": ({}, np.abs(VALUES)),
    "count:poisson": ({}, np.abs(VALUES).round()),
    "reg:logistic": ({}, BINARY),
    "binary:logistic": ({}, BINARY),
    "binary:logitraw": ({}, BINARY),
    "binary:hinge": ({}, BINARY),
    "rank:pairwise": ({}, BINARY),
    "multi:softprob": ({"num_class": 3}, CLASSES),
    "multi:softmax": ({"num_class": 3}, CLASSES),
}
XGBOOST_KINDS = {
    "dart": ({"booster": "dart", "rate_drop": 0.5}, VALUES),
    "forest": ({"num_parallel_tree": 3, "subsample": 0.5}, VALUES),
    "several targets": ({}, np.stack([VALUES, -VALUES], axis=1)),
}


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("objective", XGBOOST)
def test_xgboost_objective_answers_as_the_booster(objective: str, suffix: str, tmp_path: Path) -> None:
    options, target = XGBOOST[objective]
    booster = xgboost.train({"objective": objective, **options}, xgboost.DMatrix(ROWS, target), 6)
    booster.save_model(tmp_path / f"model.{suffix}")
    want, got = answer(load(Source("xgboost", tmp_path / f"model.{suffix}")), {"input": ROWS}, tmp_path)
    assert measure_difference(want, got) <= TOLERANCE
    names = {"label", "probabilities"} if objective.startswith(("binary:logistic", "multi")) else {"output"}
    assert got.keys() == names
    own = booster.predict(xgboost.DMatrix(ROWS))
    served = got["label" if objective == "multi:softmax" else "probabilities" if "label" in got else "output"]
    served = served[:, 1] if objective == "binary:logistic" else served
    np.testing.assert_allclose(served, own, rtol=TOLERANCE, atol=TOLERANCE * np.abs(own).max())


@pytest.mark.parametrize("kind", XGBOOST_KINDS)
def test_xgboost_booster_answers_as_itself(kind: str, tmp_path: Path) -> None:
    options, target = XGBOOST_KINDS[kind]
    xgboost.train(options, xgboost.DMatrix(ROWS, target), 6).save_model(tmp_path / "model.json")
    want, got = answer(load(Source("xgboost", tmp_path / "model.json")), {"input": ROWS}, tmp_path)
    assert measure_difference(want, got) <= TOLERANCE


def test_xgboost_categories_fall_as_in_training(tmp_path: Path) -> None:
    rows = DENSE.copy()
    rows[:, 0] = RANDOM.integers(0, 12, NUM_ROWS)
    kinds = ["c"] + ["q"] * (WIDTH - 1)
    data = xgboost.DMatrix(rows, rows[:, 0] % 3 + VALUES, feature_types=kinds, enable_categorical=True)
    xgboost.train({"max_cat_to_onehot": 1}, data, 6).save_model(tmp_path / "model.json")
    # Categories that training has not seen, none at all, and halves among them.
    rows[:, 0] = RANDOM.integers(-2, 30, NUM_ROWS) / 2
    rows[::7, 0] = np.nan
    want, got = answer(load(Source("xgboost", tmp_path / "model.json")), {"input": rows}, tmp_path)
    assert measure_difference(want, got) <= TOLERANCE


def test_xgboost_stops_at_the_best_round_if_its_estimator_did(tmp_path: Path) -> None:
    model = xgboost.XGBRegressor(n_estimators=60, early_stopping_rounds=2)
    model.fit(ROWS[:400], VALUES[:400], eval_set=[(ROWS[400:], RANDOM.standard_normal(200))], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(tmp_path / "model.json")
    _, got = answer(load(Source("xgboost", tmp_path / "model.json")), {"input": ROWS}, tmp_path)
    np.testing.assert_allclose(got["output"], model.predict(ROWS), rtol=TOLERANCE, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "target", "reason"),
    [
        pytest.param({"booster": "gblinear"}, VALUES, "its booster is gblinear", id="linear"),
        pytest.param({"multi_strategy": "multi_output_tree"}, np.stack([VALUES] * 2, axis=1), "leaves are vectors", id="vectors"),
    ],
)
def test_xgboost_model_without_trees_of_numbers_is_refused(options: Any, target: Any, reason: str, tmp_path: Path) -> None:
    xgboost.train(options, xgboost.DMatrix(ROWS, target), 3).save_model(tmp_path / "model.json")
    with pytest.raises(InputError, match=reason):
        load(Source("xgboost", tmp_path / "model.json"))


LIGHTGBM = {
    "regression": ({}, VALUES),
    "regression, of roots": ({"objective": "regression", "reg_sqrt": True}, VALUES),
    "regression_l1": ({}, VALUES),
    "huber": ({}, VALUES),
    "quantile": ({"alpha": 0.3}, VALUES),
    "poisson": ({}, np.abs(VALUES).round()),
    "gamma": ({}, np.abs(VALUES) + 1),
    "tweedie": ({}, np.abs(VALUES)),
    "binary": ({}, BINARY),
    "binary, steep": ({"objective": "binary", "sigmoid": 2.0}, BINARY),
    "binary, a forest": ({"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, BINARY),
    "multiclass": ({"num_class": 3}, CLASSES),
    "multiclassova": ({"num_class": 3}, CLASSES),
    "cross_entropy": ({}, BINARY * 0.8 + 0.1),
    "cross_entropy_lambda": ({}, BINARY * 0.8 + 0.1),
    "dart": ({"objective": "regression", "boosting": "dart"}, VALUES),
    "zeros are missing": ({"objective": "regression", "zero_as_missing": True}, VALUES),
}


def train_lightgbm(path: Path, options: dict[str, Any], rows: Any, target: Any, **data: Any) -> Any:
    settings = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, **options}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, target, **data), 6)
    booster.save_model(path)
    return booster


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("objective", LIGHTGBM)
def test_lightgbm_objective_answers_as_the_booster(objective: str, dtype: Any, tmp_path: Path) -> None:
    options, target = LIGHTGBM[objective]
    booster = train_lightgbm(tmp_path / "model.txt", {"objective": objective, **options}, ROWS.astype(np.float64), target)
    rows = ROWS.astype(dtype)
    want, got = answer(load(Source("lightgbm", tmp_path / "model.txt")), {"input": rows}, tmp_path)
    assert measure_difference(want, got) <= TOLERANCE
    own = booster.predict(rows)
    served = got["probabilities"] if "label" in got else got["output"]
    served = served[:, 1] if served.shape != own.shape else served
    np.testing.assert_allclose(served, own, rtol=TOLERANCE, atol=TOLERANCE * np.abs(own).max())


def test_lightgbm_categories_fall_as_in_training(tmp_path: Path) -> None:
    rows = DENSE.astype(np.float64)
    rows[:, 0] = RANDOM.integers(0, 12, NUM_ROWS)
    options = {"objective": "regression", "min_data_per_group": 1, "cat_smooth": 0.0}
    train_lightgbm(tmp_path / "model.txt", options, rows, rows[:, 0] % 3, categorical_feature=[0])
    rows[:, 0] = RANDOM.integers(-4, 30, NUM_ROWS) / 2
    rows[::7, 0] = np.nan
    want, got = answer(load(Source("lightgbm", tmp_path / "model.txt")), {"input": rows.astype(np.float32)}, tmp_path)
    assert measure_difference(want, got) <= TOLERANCE


def test_thresholds_between_two_floats_fall_to_the_right_side(tmp_path: Path) -> None:
    # Of two neighbours in float32, trained in float64: no rounding of what lies between is right but one.
    low = np.float32(0.1)
    pair = np.array([low, np.nextafter(low, np.float32(1))], np.float64)
    rows = np.repeat(pair, 50)[:, None]
    options = {"objective": "regression", "min_data_in_bin": 1, "min_data_in_leaf": 1, "learning_rate": 1.0}
    train_lightgbm(tmp_path / "model.txt", options, rows, np.repeat([0.0, 1.0], 50))
    want, got = answer(load(Source("lightgbm", tmp_path / "model.txt")), {"input": rows.astype(np.float32)}, tmp_path)
    assert set(np.unique(want["output"])) == {0.0, 1.0}
    # Leaves are compared, not sums: halves are exact.
    np.testing.assert_array_equal(got["output"], want["output"])


def test_lightgbm_model_of_linear_leaves_is_refused(tmp_path: Path) -> None:
    train_lightgbm(tmp_path / "model.txt", {"linear_tree": True, "objective": "regression"}, DENSE.astype(np.float64), VALUES)
    with pytest.raises(InputError, match="linear_tree"):
        load(Source("lightgbm", tmp_path / "model.txt"))


def make_estimators() -> dict[str, Any]:
    from sklearn import (
        cluster,
        decomposition,
        ensemble,
        linear_model,
        naive_bayes,
        neighbors,
        neural_network,
        preprocessing,
        svm,
        tree,
    )
    from sklearn.pipeline import make_pipeline

    texts = np.array(["low", "mid", "high"])[CLASSES]
    scaler = preprocessing.StandardScaler
    voters = [("line", linear_model.LogisticRegression()), ("tree", tree.DecisionTreeClassifier(max_depth=3))]
    return {
        "logistic": linear_model.LogisticRegression().fit(DENSE, CLASSES),
        "text labels": make_pipeline(scaler(), linear_model.LogisticRegression()).fit(DENSE, texts),
        "fractional labels": linear_model.LogisticRegression().fit(DENSE, CLASSES.astype(np.float64)),
        "boolean labels": ensemble.RandomForestClassifier(20, random_state=0).fit(DENSE, CLASSES > 0),
        "labels alone": svm.LinearSVC().fit(DENSE, CLASSES),
        "support vectors": svm.SVC().fit(DENSE, CLASSES),
        "forest": ensemble.RandomForestClassifier(10, random_state=0).fit(DENSE, CLASSES),
        "boosted": ensemble.GradientBoostingClassifier(n_estimators=5).fit(DENSE, CLASSES),
        "boosted histograms, missing values": ensemble.HistGradientBoostingClassifier(max_iter=5).fit(ROWS, CLASSES),
        "vote": ensemble.VotingClassifier(voters, voting="soft").fit(DENSE, CLASSES),
        "stack": ensemble.StackingClassifier([("forest", ensemble.RandomForestClassifier(5)), voters[0]]).fit(DENSE, CLASSES),
        "neighbours": neighbors.KNeighborsClassifier().fit(SMOOTH, CLASSES),
        "bayes": naive_bayes.GaussianNB().fit(DENSE, CLASSES),
        "perceptron": make_pipeline(scaler(), neural_network.MLPClassifier((8,), max_iter=300, tol=1e-2)).fit(DENSE, CLASSES),
        "ridge": linear_model.Ridge().fit(DENSE, VALUES),
        "two targets": linear_model.LinearRegression().fit(DENSE, np.stack([VALUES, -VALUES], axis=1)),
        "boosted histograms of numbers": ensemble.HistGradientBoostingRegressor(max_iter=5).fit(ROWS, VALUES),
        "k-means": cluster.KMeans(3, n_init=1, random_state=0).fit(DENSE),
        "outliers": ensemble.IsolationForest(n_estimators=10, random_state=0).fit(DENSE),
        "components": make_pipeline(scaler(), decomposition.PCA(2)).fit(DENSE),
        "lightgbm's": lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(DENSE, texts),
        "xgboost's": xgboost.XGBClassifier(n_estimators=5).fit(DENSE, CLASSES),
    }


def make_boosters() -> dict[str, Any]:
    random = np.random.default_rng(0)
    noise, held = random.permutation(CLASSES), {"eval_set": [(DENSE, random.permutation(CLASSES))]}
    stop = {"early_stopping_rounds": 1, "n_estimators": 50, "learning_rate": 0.5}
    sentinel = np.where(np.isnan(ROWS), np.float32(-999), ROWS)
    quiet = {"verbose": -1, "n_jobs": 1, "n_estimators": 50, "learning_rate": 0.5}
    return {
        "xgboost, stopped early": xgboost.XGBClassifier(**stop).fit(DENSE, noise, **held, verbose=False),
        "xgboost, what is missing": xgboost.XGBClassifier(n_estimators=5, missing=-999.0).fit(sentinel, CLASSES),
        "xgboost, nothing is missing": xgboost.XGBClassifier(n_estimators=5, missing=0.0).fit(DENSE, CLASSES),
        "lightgbm, stopped early": lightgbm.LGBMClassifier(**quiet).fit(
            DENSE, noise, **held, callbacks=[lightgbm.early_stopping(1, verbose=False)]
        ),
    }


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
# LightGBM 4.6 finds names of columns in rows that have none.
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
def test_estimators_of_boosters_answer_with_what_they_know_beside_the_trees(tmp_path: Path) -> None:
    for name, estimator in make_boosters().items():
        model = sklearn_files.wrap(estimator)
        rows = np.where(np.isnan(ROWS), np.float32(-999), ROWS) if "what is missing" in name else DENSE
        want, got = answer(model, model.arrange({"input": rows}), tmp_path)
        assert measure_difference(want, got) <= TOLERANCE, name
        np.testing.assert_allclose(got["probabilities"], estimator.predict_proba(rows), atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
def test_estimators_answer_as_themselves(tmp_path: Path) -> None:
    for name, estimator in make_estimators().items():
        # Rows of one decimal have several neighbours at one distance.
        rows = ROWS if "histograms" in name else SMOOTH if name == "neighbours" else DENSE
        model = sklearn_files.wrap(estimator)
        want, got = answer(model, model.arrange({"input": rows}), tmp_path)
        assert measure_difference(want, got) <= TOLERANCE, name
        own = estimator.predict(rows) if hasattr(estimator, "predict") else estimator.transform(rows)
        served = got["label"] if "label" in got else got["output"]
        if served.dtype.kind == "O":
            assert [item.decode() for item in served] == own.tolist(), name
        else:
            # Where two classes are as likely, either may be named.
            is_near = np.isclose(served, own, rtol=1e-4, atol=1e-4 * np.abs(own).max())
            assert is_near.mean() > 0.9 if name == "boolean labels" else is_near.all(), name


@pytest.mark.parametrize("kernel", ["poly", "linear"])
@pytest.mark.filterwarnings("ignore:The `probability` parameter:FutureWarning")
def test_support_vectors_whose_terms_cancel_may_differ_by_as_much_as_float32_moves_them(kernel: str, tmp_path: Path) -> None:
    from sklearn import svm

    # Classes at random: nearly every row is a support vector, and what is left of the sum of their terms is small.
    random = np.random.default_rng(23)
    rows, classes = random.random((90, 4)), random.integers(0, 3, 90)
    model = sklearn_files.wrap(svm.SVC(kernel=kernel, probability=True, random_state=0).fit(rows, classes))
    inputs = {"input": rows.astype(np.float32)}
    model.export_onnx(inputs, tmp_path / "model.onnx")
    runtime = OnnxRuntime()
    runtime.load(tmp_path, "model.onnx", {})

    def hold(answer: Run, **options: Any) -> None:
        hold_against(answer, model.predict, draw_trials(inputs, {}), TOLERANCE, **options)

    with pytest.raises(Differs):
        hold(runtime.infer)
    hold(runtime.infer, round_model=model.draw_roundings)

    def answer_wrongly(batch: dict[str, Any]) -> dict[str, Any]:
        answers = runtime.infer(batch)
        return answers | {"probabilities": answers["probabilities"] * np.float32(0.998)}

    with pytest.raises(Differs):
        hold(answer_wrongly, round_model=model.draw_roundings)


def test_skops_archive_is_loaded_and_one_that_names_other_types_is_not(tmp_path: Path) -> None:
    io: Any = pytest.importorskip("skops.io")
    estimator = make_estimators()["forest"]
    io.dump(estimator, tmp_path / "model.skops")
    want, got = answer(load(Source("skops", tmp_path / "model.skops")), {"input": DENSE}, tmp_path)
    assert measure_difference(want, got) <= TOLERANCE
    io.dump(Path("x"), tmp_path / "model.skops")
    with pytest.raises(InputError, match="types that are not trusted: pathlib"):
        load(Source("skops", tmp_path / "model.skops"))


def test_estimator_that_onnx_has_no_words_for_is_refused(tmp_path: Path) -> None:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.linear_model import LogisticRegression
    from sklearn.multioutput import MultiOutputClassifier

    class Own(RegressorMixin, BaseEstimator):
        def fit(self, x: Any, y: Any) -> Any:
            self.n_features_in_ = x.shape[1]
            return self

        def predict(self, x: Any) -> Any:
            return x[:, 0]

    with pytest.raises(ModelError, match="skl2onnx says: Unable to find a shape calculator"):
        sklearn_files.wrap(Own().fit(DENSE, VALUES)).export_onnx({"input": DENSE}, tmp_path / "model.onnx")
    several = sklearn_files.wrap(MultiOutputClassifier(LogisticRegression()).fit(DENSE, np.stack([BINARY, CLASSES], axis=1)))
    with pytest.raises(InputError, match="one for each of several targets"):
        several.predict({"input": DENSE})
    with pytest.raises(InputError, match="never fitted"):
        sklearn_files.wrap(LogisticRegression())
    with pytest.raises(InputError, match=r"it holds a builtins\.dict"):
        sklearn_files.wrap({})


@pytest.mark.timeout(60)
def test_tree_that_parts_what_is_missing_from_all_numbers_is_refused_for_float64_at_once(tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeRegressor

    rows = DENSE.astype(np.float64)
    rows[::3, 0] = np.nan
    target = np.isnan(rows[:, 0]).astype(float)
    fitted = DecisionTreeRegressor(max_depth=1, random_state=0).fit(rows, target)
    assert np.isinf(fitted.tree_.threshold[0])
    with pytest.raises(ModelError, match="for rows in float64"):
        sklearn_files.wrap(fitted).export_onnx({"input": rows}, tmp_path / "model.onnx")
