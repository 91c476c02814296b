"""Operators of ai.onnx.ml, and those on text: most read a table, a row at a time."""

from __future__ import annotations

from argosy.rows.dims import fixed
from argosy.rows.values import Node, Value, broadcast, handles, mixed, rows_of, unknown

__all__: list[str] = []

_ML = "ai.onnx.ml"


def _check_table(value: Value) -> None:
    if value.axis > 0:
        unknown("its rows are not the first axis")
    if value.is_rows and value.rank == 1:
        mixed("it takes its vector for one row")


@handles("Binarizer", "CategoryMapper", "LabelEncoder", domain=_ML)
def _map(node: Node) -> Value:
    return node.take(0)._replace(content=None)


@handles("Imputer", "Normalizer", "Scaler", domain=_ML)
def _scale(node: Node) -> Value:
    value = node.take(0)
    _check_table(value)
    return value._replace(content=None)


@handles("LinearRegressor", "SVMRegressor", "TreeEnsembleRegressor", "TreeEnsemble", domain=_ML)
def _regress(node: Node) -> Value:
    value = node.take(0)
    _check_table(value)
    targets = node.get("targets", node.get("n_targets", 1))
    return rows_of(value, (value.known_shape[0], fixed(targets)), 0) if value.rank > 1 else Value(None)


@handles("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier", domain=_ML)
def _classify(node: Node) -> list[Value]:
    value = node.take(0)
    _check_table(value)
    if value.rank < 2:
        return [Value(None), Value(None)]
    labels = next((len(found) for name, found in node.attributes.items() if name.startswith("class") and "labels" in name), 0)
    # Scores of a support vector machine may be one for each pair of classes, those of a line one for each of its own.
    lines = len(node.get("intercepts", ())) if node.op == "LinearClassifier" else labels
    is_known = node.op != "SVMClassifier" and labels > 1 and (lines == labels or (lines, labels) == (1, 2))
    width = fixed(labels) if is_known else node.fresh(1, 1)
    return [rows_of(value, value.known_shape[:1], 0), rows_of(value, (value.known_shape[0], width), 0)]


@handles("OneHotEncoder", domain=_ML)
def _encode(node: Node) -> Value:
    value = node.take(0)
    count = len(node.get("cats_int64s", ()) or node.get("cats_strings", ()))
    return rows_of(value, (*value.known_shape, fixed(count)), value.axis)


@handles("FeatureVectorizer", domain=_ML)
def _join(node: Node) -> Value:
    values = [node.take(index) for index in range(len(node.inputs))]
    for value in values:
        _check_table(value)
    if not any(value.is_rows for value in values):
        return Value(None)
    if len({value.axis for value in values}) > 1:
        unknown("it sets rows beside what has none")
    return rows_of(values[0], (values[0].known_shape[0], node.fresh(0, 1)), 0)


@handles("ArrayFeatureExtractor", domain=_ML)
def _extract(node: Node) -> Value:
    value, places = node.take(0), node.take(1)
    if places.is_rows:
        unknown("what it takes depends on data")
    if value.is_rows and value.axis == value.rank - 1:
        mixed("it picks rows of the batch")
    if not value.is_rows:
        return Value(None, is_counted=value.is_counted or places.is_counted)
    return rows_of(value, (*value.known_shape[:-1], node.fresh(0, value.rank - 1)), value.axis)


# text


@handles("StringNormalizer")
def _normalise_text(node: Node) -> Value:
    value = node.take(0)
    if node.get("stopwords") and value.is_rows:
        mixed("it leaves words of all rows out")
    return value._replace(content=None)


@handles("TfIdfVectorizer")
def _count_words(node: Node) -> Value:
    value = node.take(0)
    _check_table(value)
    width = fixed(max(node.get("ngram_indexes", [0]), default=0) + 1)
    return rows_of(value, (*value.known_shape[:-1], width), value.axis)


@handles("StringConcat")
def _append(node: Node) -> Value:
    return broadcast([node.take(0), node.take(1)])


@handles("RegexFullMatch")
def _match(node: Node) -> Value:
    return node.take(0)._replace(content=None)


@handles("StringSplit")
def _split_text(node: Node) -> list[Value]:
    value = node.take(0)
    # As wide as the longest of all rows, the others filled up: what comes of that, the operators after it decide.
    if value.is_rows:
        unknown("it is as wide as the longest row needs")
    return [Value(None), Value(value.shape)]


@handles("Tokenizer", domain="com.microsoft")
def _tokenise(node: Node) -> Value:
    if node.take(0).is_rows:
        unknown("it is as wide as the longest row needs")
    return Value(None)
