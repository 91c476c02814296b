"""Pipelines of scikit-learn that take texts, and estimators of float64: each answers as itself, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import argosy
from argosy.confine.confine import describe_confinement
from argosy.errors import InputError, ModelError
from argosy.importers.foreign import import_foreign
from argosy.importers.golden_run import open_session
from argosy.runtimes.onnx import OnnxRuntime
from argosy.store.local import Store, Version

pytestmark = pytest.mark.skipif(not describe_confinement().is_confined, reason="this kernel cannot confine a process")

joblib: Any = pytest.importorskip("joblib")
pytest.importorskip("skl2onnx")
text: Any = pytest.importorskip("sklearn.feature_extraction.text")
linear: Any = pytest.importorskip("sklearn.linear_model")
sklearn_files: Any = pytest.importorskip("argosy.importers.formats.sklearn")
ensemble: Any = pytest.importorskip("sklearn.ensemble")
make_pipeline: Any = pytest.importorskip("sklearn.pipeline").make_pipeline
trees: Any = pytest.importorskip("sklearn.tree")
make_union: Any = pytest.importorskip("sklearn.pipeline").make_union

TEXTS = [
    "red apple a day",
    "green pear, don't eat",
    "fast car in Zürich",
    "blue car X drive",
    "un café très bon",
    "the plot was bad",
]
TOPICS = ["food", "food", "car", "car", "food", "film"]
OTHERS = ["RED apple", "x y z", "", "Café TRÈS bon", "blue a car", "fast-car_in, zürich", "...", "CAFÉ", "日本 語", "don't"]


def bring(folder: Path, model: Any, **options: Any) -> tuple[Store, Version]:
    joblib.dump(model, folder / "model.joblib")
    store = Store(folder / "home")
    return store, import_foreign(store, folder / "model.joblib", "model", allow_pickle=True, **options)


def export(model: Any, sample: Any, folder: Path) -> Any:
    """What the importer does in its own process, which takes a second to begin."""
    found = sklearn_files.wrap(model)
    inputs = found.arrange({"input": sample})
    found.export_onnx(inputs, folder / "model.onnx")
    runtime = OnnxRuntime()
    runtime.load(folder, "model.onnx", {})
    return lambda rows: runtime.infer({"input": rows})


def load(store: Store, version: Version) -> Any:
    runtime = OnnxRuntime()
    runtime.load(store.open_artifact(version), version.manifest.entry, {})
    return lambda rows: runtime.infer({"input": rows})


def encode(texts: list[str]) -> Any:
    out = np.empty(len(texts), object)
    out[:] = [item.encode() for item in texts]
    return out


VECTORIZERS = {
    "tfidf": lambda: text.TfidfVectorizer(),
    "case kept": lambda: text.TfidfVectorizer(lowercase=False),
    "counts of pairs": lambda: text.CountVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b"),
    "union": lambda: make_union(text.TfidfVectorizer(), text.CountVectorizer(token_pattern=r"[\w-]{3,}", binary=True)),
    "stop words": lambda: text.TfidfVectorizer(stop_words="english", sublinear_tf=True),
}


@pytest.mark.parametrize("name", VECTORIZERS)
def test_pipeline_of_texts_answers_as_itself(name: str, tmp_path: Path) -> None:
    model = make_pipeline(VECTORIZERS[name](), linear.LogisticRegression()).fit(TEXTS, TOPICS)
    answers = export(model, encode(TEXTS), tmp_path)(encode(OTHERS))
    assert [item.decode() for item in answers["label"]] == model.predict(OTHERS).tolist()
    np.testing.assert_allclose(answers["probabilities"], model.predict_proba(OTHERS), atol=1e-6)


def test_texts_are_served_and_need_no_sample(tmp_path: Path) -> None:
    model = make_pipeline(text.CountVectorizer(), linear.LogisticRegression()).fit(TEXTS, TOPICS)
    store, version = bring(tmp_path, model)
    (given,), (label, probabilities) = version.manifest.signature.inputs, version.manifest.signature.outputs
    assert (given.datatype, given.shape, label.datatype, probabilities.datatype) == ("BYTES", (-1,), "BYTES", "FP32")
    assert version.manifest.golden_is_synthetic
    with argosy.serve("model", home=store.home) as server, server.client() as client:
        answer = client.predict("model", {"input": OTHERS})
    assert [item.decode() for item in answer["label"]] == model.predict(OTHERS).tolist()


def test_letters_are_lower_cased_in_a_locale_that_every_machine_has(tmp_path: Path) -> None:
    for words, locale in ((["red apple", "blue car"], b"C"), (["café", "blue car"], b"C.UTF-8")):
        model = make_pipeline(text.TfidfVectorizer(), linear.LogisticRegression()).fit(words, [0, 1])
        export(model, encode(words), tmp_path)
        graph = onnx.load(str(tmp_path / "model.onnx")).graph
        (node,) = [node for node in graph.node if node.op_type == "StringNormalizer"]
        assert [attribute.s for attribute in node.attribute if attribute.name == "locale"] == [locale]


REFUSED = {
    "hashed": (lambda: text.HashingVectorizer(n_features=64), "HashingVectorizer"),
    "accents": (lambda: text.TfidfVectorizer(strip_accents="unicode"), "strip_accents"),
    "parts of words": (lambda: text.TfidfVectorizer(analyzer="char_wb"), "tokenizer='word'"),
    "letters": (lambda: text.TfidfVectorizer(analyzer="char"), "white space"),
    "pairs without stop words": (lambda: text.TfidfVectorizer(stop_words="english", ngram_range=(1, 2)), "stop_words"),
    "own tokens": (lambda: text.TfidfVectorizer(tokenizer=str.split, token_pattern=None), "Custom tokenizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnx_has_no_words_for_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    model = make_pipeline(make(), linear.LogisticRegression()).fit(TEXTS, TOPICS)
    with pytest.raises(ModelError, match=reason) as caught:
        export(model, encode(TEXTS), tmp_path)
    assert caught.value.key == "export_failed"


def test_refusal_of_an_import_has_the_reason(tmp_path: Path) -> None:
    model = make_pipeline(text.HashingVectorizer(n_features=64), linear.LogisticRegression()).fit(TEXTS, TOPICS)
    with pytest.raises(InputError, match=r"shape calculator for type .*HashingVectorizer") as caught:
        bring(tmp_path, model, sample=TEXTS)
    assert caught.value.key == "not_convertible"


def test_words_whose_small_form_depends_on_their_place_are_refused(tmp_path: Path) -> None:
    model = make_pipeline(text.TfidfVectorizer(), linear.LogisticRegression()).fit(["δρόμος μου", "οδός μου"], [0, 1])
    with pytest.raises(ModelError, match="lower-cases otherwise"):
        export(model, encode(["δρόμος μου"]), tmp_path)


def test_only_what_was_never_fitted_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never fitted"):
        sklearn_files.wrap(make_pipeline(text.TfidfVectorizer(), linear.LogisticRegression()))
    model = make_pipeline(text.TfidfVectorizer(), linear.LogisticRegression()).fit(TEXTS, TOPICS)
    with pytest.raises(InputError, match="is float64, expected BYTES"):
        export(model, np.zeros(3), tmp_path)


def test_missing_locale_of_an_onnx_file_is_named(tmp_path: Path) -> None:
    node = helper.make_node(
        "StringNormalizer", ["x"], ["y"], case_change_action="LOWER", is_case_sensitive=0, locale="xx_YY.UTF-8"
    )
    tensors = [helper.make_tensor_value_info(name, TensorProto.STRING, [None]) for name in "xy"]
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx"))
    with pytest.raises(InputError, match=r"locale xx_YY\.UTF-8, which this machine does not have") as caught:
        open_session(tmp_path / "m.onnx")
    assert "C.UTF-8" in caught.value.hint


RANDOM = np.random.default_rng(0)
WIDE = RANDOM.standard_normal((400, 4)) * [1, 10, 1e3, 1] + [0, 0, 1e4, 5]
"""Far from zero, so that neighbours in float64 are one number in float32."""
CLASSES = (WIDE[:, 0] > 0).astype(int) + (WIDE[:, 1] > 3)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        pytest.param(lambda: ensemble.HistGradientBoostingClassifier(max_iter=10), np.float64, id="histograms"),
        pytest.param(lambda: ensemble.HistGradientBoostingClassifier(max_iter=10), np.float32, id="histograms, floats"),
        pytest.param(lambda: ensemble.RandomForestClassifier(60, random_state=0), np.float64, id="forest"),
    ],
)
def test_estimator_of_doubles_gives_its_own_labels(make: Any, dtype: Any, tmp_path: Path) -> None:
    model = make().fit(WIDE, CLASSES)
    rows = WIDE.astype(dtype)
    store, version = bring(tmp_path, model, sample=rows[:8])
    answers = load(store, version)(rows.astype(version.manifest.signature.inputs[0].dtype))
    np.testing.assert_array_equal(answers["label"], model.predict(rows))
    np.testing.assert_allclose(answers["probabilities"], model.predict_proba(rows), atol=1e-5)
    assert answers["probabilities"].max() <= 1 and answers["probabilities"].min() >= 0


def test_estimator_whose_float32_sums_lose_too_much_takes_doubles(tmp_path: Path) -> None:
    decomposition: Any = pytest.importorskip("sklearn.decomposition")
    model = make_pipeline(decomposition.PCA(3), linear.LinearRegression()).fit(WIDE, WIDE @ np.arange(4.0))
    _, version = bring(tmp_path, model)
    assert version.manifest.signature.inputs[0].datatype == "FP64"
    assert "differently" in version.manifest.lineage["export"]["reason"]


def test_clusters_of_doubles_take_doubles_whatever_the_sample_was_written_in(tmp_path: Path) -> None:
    cluster: Any = pytest.importorskip("sklearn.cluster")
    model = cluster.KMeans(3, n_init=1, random_state=0).fit(WIDE)
    store, version = bring(tmp_path, model, sample=WIDE[:8].tolist())
    assert version.manifest.signature.inputs[0].datatype == "FP64"
    np.testing.assert_array_equal(load(store, version)(WIDE)["label"], model.predict(WIDE))


def test_reason_is_why_it_does_not_convert_and_not_that_it_takes_no_other_type(tmp_path: Path) -> None:
    cluster: Any = pytest.importorskip("sklearn.cluster")
    with pytest.raises(InputError, match=r"shape calculator for type .*BisectingKMeans"):
        bring(tmp_path, cluster.BisectingKMeans(3, random_state=0).fit(WIDE), sample=WIDE[:8])


def test_neighbouring_floats_fall_to_the_side_of_the_threshold(tmp_path: Path) -> None:
    low = np.float32(0.1)
    pair = np.array([low, np.nextafter(low, np.float32(1))], np.float64)
    rows = np.repeat(pair, 50)[:, None]
    for make in (ensemble.HistGradientBoostingClassifier, trees.DecisionTreeClassifier):
        model = make(**({"min_samples_leaf": 1} if "Hist" in make.__name__ else {})).fit(rows, np.repeat([0, 1], 50))
        answers = export(model, rows.astype(np.float32)[:8], tmp_path)(rows.astype(np.float32))
        np.testing.assert_array_equal(answers["label"], model.predict(rows.astype(np.float32)))


def test_pipeline_that_ends_in_a_classifier_without_probabilities_converts(tmp_path: Path) -> None:
    svm: Any = pytest.importorskip("sklearn.svm")
    model = make_pipeline(text.TfidfVectorizer(), svm.LinearSVC()).fit(TEXTS, TOPICS)
    answers = export(model, encode(TEXTS), tmp_path)(encode(OTHERS))
    assert [item.decode() for item in answers["label"]] == model.predict(OTHERS).tolist()
