"""Programs of any form: trees of inputs and outputs, weights of losses and rows, steps of one's own, several optimizers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from argosy.errors import InputError
from argosy.frameworks.torch import FRAMEWORK
from argosy.optim import SGD, Adam, Group
from argosy.train.average import Ema
from argosy.train.run import train
from argosy.train.source import Batch

F = torch.nn.functional
RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(2, 90, 3)).astype(np.float32)
KIND = (A.sum(1) > 0).astype(np.int64)
VALUE = (B @ np.array([1.0, -2.0, 0.5]))[:, None]


def weights_of(model):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in model.state_dict().values()])


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make()


class Two(torch.nn.Module):
    """Two inputs; a dict of two outputs."""

    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)

    def forward(self, a, b):
        return {"kind": self.one(a), "value": self.other(b)}


class Pair(Two):
    def forward(self, a, b):
        return self.one(a), self.other(b)


def quick(model, data, **options):
    return train(model, data, progress=False, **{"epochs": 2, "batch_size": 30, **options})


def plain_loop(model, loss_of, optimizer, *, epochs=2, size=30):
    for _ in range(epochs):
        for start in range(0, 90, size):
            rows = slice(start, start + size)
            optimizer.zero_grad()
            loss_of(model, rows).backward()
            optimizer.step()


def two_losses(model, rows, factor=0.25):
    outputs = model(torch.from_numpy(A[rows]), torch.from_numpy(B[rows]))
    kind, value = outputs.values() if isinstance(outputs, dict) else outputs
    value_loss = F.mse_loss(value, torch.from_numpy(VALUE[rows].astype(np.float32)))
    return F.cross_entropy(kind, torch.from_numpy(KIND[rows])) + factor * value_loss


LOADER_ROWS = [{"a": A[row], "b": B[row], "kind": KIND[row], "value": VALUE[row].astype(np.float32)} for row in range(90)]


@pytest.mark.parametrize(
    ("make", "data", "options"),
    [
        pytest.param(Two, (({"a": A, "b": B}), {"kind": KIND, "value": VALUE}), {}, id="dicts"),
        pytest.param(Two, ((A, B), {"kind": KIND, "value": VALUE}), {}, id="tuple-in"),
        pytest.param(Pair, ((A, B), (KIND, VALUE)), {"loss": ("cross_entropy", "mse"), "loss_weights": (1, 0.25)}, id="tuples"),
        pytest.param(
            Two, {"a": A, "b": B, "kind": KIND, "value": VALUE}, {"targets": ("kind", "value")}, id="columns"
        ),
        pytest.param(
            Two,
            torch.utils.data.DataLoader(LOADER_ROWS, batch_size=30),  # type: ignore[arg-type]
            {"targets": ["kind", "value"], "batch_size": None, "validation_data": ((A, B), {"kind": KIND, "value": VALUE})},
            id="loader",
        ),
    ],
)  # fmt: skip
def test_several_inputs_and_outputs_train_as_a_loop_by_hand(make, data, options):
    ours, theirs = seeded(make), seeded(make)
    plain_loop(theirs, two_losses, torch.optim.SGD(theirs.parameters(), lr=0.1))
    losses = {"loss": {"kind": "cross_entropy", "value": "mse"}, "loss_weights": {"value": 0.25}}
    result = quick(ours, data, **{**losses, "optimizer": SGD(learning_rate=0.1), "shuffle": False, **options})
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    assert len(result.history[0].metrics) == 2
    if make is Two:
        assert result.settings.metrics == ("kind_accuracy", "value_mae")
        assert result.describe_lineage()["training"]["loss_weights"] == {"kind": 1.0, "value": 0.25}
        assert set(result.evaluate((A, B), {"kind": KIND, "value": VALUE})) == {"loss", "kind_accuracy", "value_mae"}


def test_function_of_all_outputs_is_a_loss_and_is_told_by_its_code():
    def both(outputs, targets):
        return F.cross_entropy(outputs["kind"], targets["kind"]) + 0.25 * F.mse_loss(outputs["value"], targets["value"])

    ours, theirs = seeded(Two), seeded(Two)
    plain_loop(theirs, two_losses, torch.optim.SGD(theirs.parameters(), lr=0.1))
    data = (A, B), {"kind": KIND, "value": VALUE}
    result = quick(ours, data, loss=both, optimizer=SGD(learning_rate=0.1), shuffle=False, validation_data=data)
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    assert result.history[-1].validation_loss == pytest.approx(float(two_losses(ours, slice(None)).detach()), rel=1e-5)
    assert result.settings.loss["name"].endswith("both") and result.settings.loss["digest"].startswith("sha256:")


def by_row(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def weighted_itself(outputs, targets, weights):
    return (by_row(outputs, targets) * weights).mean()


@pytest.mark.parametrize(
    "loss",
    ["cross_entropy", torch.nn.CrossEntropyLoss(), F.cross_entropy, by_row, weighted_itself],
    ids=["ours", "torch's", "functional", "by-row", "weighted-itself"],
)
@pytest.mark.parametrize("size", [None, 7])
def test_weights_of_rows_and_classes_multiply_the_loss_of_a_row(loss, size):
    w = RANDOM.random(90)
    total = torch.from_numpy((w * np.where(KIND == 1, 3.0, 1.0)).astype(np.float32))

    def loss_of(model, rows):
        return (by_row(model(torch.from_numpy(A[rows])), torch.from_numpy(KIND[rows])) * total[rows]).mean()

    ours, theirs = (seeded(lambda: torch.nn.Linear(3, 2)) for _ in range(2))
    plain_loop(theirs, loss_of, torch.optim.SGD(theirs.parameters(), lr=0.1))
    options = {"optimizer": SGD(learning_rate=0.1), "shuffle": False, "micro_batch_size": size}
    result = quick(ours, (A, KIND, w), loss=loss, class_weights={1: 3.0}, validation_data=(A, KIND, w), **options)
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    with torch.no_grad():
        plain = float((by_row(ours(torch.from_numpy(A)), torch.from_numpy(KIND)) * torch.from_numpy(w)).mean())
    assert result.history[-1].validation_loss == pytest.approx(plain, rel=1e-5)


def test_classes_that_are_one_hot_are_weighted_as_those_by_number():
    def fit(weights, **options):
        model = seeded(lambda: torch.nn.Linear(3, 2))
        given = np.eye(2, dtype=np.float32)[KIND]
        return weights_of(quick(model, (A, given, weights), loss=torch.nn.CrossEntropyLoss(reduction="none"), **options).model)

    by_row = np.where(KIND == 1, 5.0, 1.0)
    np.testing.assert_array_equal(fit(np.ones(90), class_weights={1: 5.0}), fit(by_row))


@pytest.mark.parametrize(
    ("make", "data", "loss", "words"),
    [
        pytest.param(Two, ((A, B), {"kind": B, "value": VALUE}), "mse", "with a single loss", id="several"),
        pytest.param(lambda: torch.nn.Linear(3, 3), (A, B), torch.nn.MSELoss(reduction="none"), "one-hot", id="no-classes"),
    ],
)
def test_weights_of_classes_want_one_class_a_row(make, data, loss, words):
    with pytest.raises(InputError, match=words):
        quick(make(), data, loss=loss, class_weights={1: 2.0})


def test_labels_may_be_names_and_are_published(store):
    names = np.array(["cat", "dog"])[KIND]
    model = seeded(lambda: torch.nn.Linear(3, 2))
    result = quick(model, (A, names), class_weights={"dog": 2.0}, validation_split=0.1)
    assert result.labels == ("cat", "dog")
    other = seeded(lambda: torch.nn.Linear(3, 2))
    quick(other, (A, KIND), class_weights={1: 2.0}, validation_split=0.1)
    np.testing.assert_array_equal(weights_of(model), weights_of(other))
    assert result.evaluate(A, names) == result.evaluate(A, KIND)
    assert result.publish("pets", store).manifest.signature.outputs[0].labels == ("cat", "dog")
    with pytest.raises(InputError, match="'cow' is no class; there are cat, dog"):
        result.evaluate(A[:1], ["cow"])
    loader = torch.utils.data.DataLoader([(a, str(name)) for a, name in zip(A, names, strict=True)], batch_size=30)
    with pytest.raises(InputError, match="give their names as `labels`"):
        train(model, loader, progress=False)
    third = seeded(lambda: torch.nn.Linear(3, 2))
    train(third, loader, labels=("cat", "dog"), class_weights={"dog": 2.0}, epochs=2, progress=False)
    assert json.dumps(result.describe_lineage()["training"]["class_weights"]) == '{"dog": 2.0}'


@pytest.mark.parametrize("make", [Two, Pair], ids=["by-name", "in-order"])
def test_names_of_classes_are_published_for_the_outputs_that_have_them(make, store):
    names = np.array(["cat", "dog"])[KIND]
    loss = ("cross_entropy", "mse") if make is Pair else {"kind": "cross_entropy", "value": "mse"}
    targets = (names, VALUE) if make is Pair else {"kind": names, "value": VALUE}
    result = quick(seeded(make), ((A, B), targets), loss=loss, epochs=1)
    outputs = result.publish("pets", store).manifest.signature.outputs
    assert {spec.name: spec.labels for spec in outputs} == {outputs[0].name: ("cat", "dog"), outputs[1].name: None}
    assert [spec.name for spec in outputs] == (["output_0", "output_1"] if make is Pair else ["kind", "value"])


def test_names_of_classes_that_share_one_output_are_left_to_the_lineage(store):
    result = quick(seeded(lambda: torch.nn.Linear(3, 1)), (A, np.array(["cat", "dog"])[KIND]), loss="binary_cross_entropy")
    manifest = result.publish("pets", store).manifest
    assert manifest.signature.outputs[0].labels is None
    assert manifest.lineage["training"]["labels"] == {"": ["cat", "dog"]}


def test_metrics_of_ones_own_are_measured_on_validation_rows():
    def recall(outputs, targets):
        return ((outputs.argmax(1) == 1) & (targets == 1)).sum() / (targets == 1).sum()

    model = seeded(lambda: torch.nn.Linear(3, 2))
    loader = torch.utils.data.DataLoader([*zip(A, KIND, strict=True)], batch_size=7)
    data = (A, KIND)
    options = {"metrics": {"recall": recall, "accuracy": "accuracy"}}
    result = quick(model, data, validation_data=loader, **options)
    last = result.history[-1]
    assert last.validation_metrics["recall"] == pytest.approx(recall(result.predict(A), KIND))
    assert last.validation_metrics["accuracy"] == pytest.approx(result.evaluate(A, KIND)["accuracy"])
    assert last.validation_loss == pytest.approx(result.evaluate(A, KIND)["loss"])
    assert "recall" not in last.metrics and last.metrics.keys() == {"accuracy"}
    assert result.settings.own_metrics["recall"]["digest"].startswith("sha256:")
    for value in ("0.5", None, [1.0, 2.0]):
        with pytest.raises(InputError, match="functions of outputs and targets that give a number"):
            quick(model, data, validation_data=loader, metrics={"score": lambda outputs, targets, value=value: value})


class Gan(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        self.discriminator = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def forward(self, noise):
        return self.generator(noise)


def adversaries(model, batch, fit):
    real = batch
    ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
    fake = model.generator(torch.randn(len(real), 2))
    loss = F.binary_cross_entropy_with_logits
    told = loss(model.discriminator(real), ones) + loss(model.discriminator(fake.detach()), zeros)
    fit.minimize(told, "discriminator")
    fooled = fit.minimize(lambda model: loss(model.discriminator(model.generator(torch.randn(len(real), 2))), ones), "generator")
    fit.log(discriminator=told, generator=fooled)
    return told.detach() + fooled


def test_adversaries_train_by_two_optimizers_and_resume_bit_for_bit(tmp_path):
    real = RANDOM.normal(4.0, 0.5, size=(256, 1)).astype(np.float32)
    optimizers = {"generator": Adam(learning_rate=0.01), "discriminator": Adam(learning_rate=0.01, betas=(0.5, 0.999))}

    def run(epochs, folder, resume=False):
        model = seeded(Gan)
        options = {"optimizer": optimizers, "checkpoints": tmp_path / folder, "resume": resume}
        return quick(model, real, step=adversaries, epochs=epochs, batch_size=64, **options)

    result = run(60, "whole")
    made = result.predict(RANDOM.normal(size=(500, 2)).astype(np.float32))
    assert abs(float(made.mean()) - 4.0) < 1.0
    assert result.history[-1].metrics.keys() == {"discriminator", "generator"}
    run(7, "broken")
    np.testing.assert_array_equal(weights_of(run(60, "broken", resume=True).model), weights_of(result.model))
    lineage = result.describe_lineage()["training"]
    assert lineage["step"]["digest"].startswith("sha256:") and lineage["optimizer"].keys() == {"generator", "discriminator"}


def test_contrastive_pairs_train_by_a_returned_loss():
    def step(model, batch, fit):
        left, right = (F.normalize(model(part)) for part in batch)
        assert fit.number >= 1 and fit.epoch >= 1
        scores = left @ right.T / 0.1
        return F.cross_entropy(scores, torch.arange(len(scores)))

    pairs = (A, A + 0.05 * B)
    result = quick(seeded(lambda: torch.nn.Linear(3, 4)), pairs, step=step, optimizer=Adam(learning_rate=0.02), epochs=10)
    assert result.history[-1].loss < result.history[0].loss
    assert result.settings.loss is None and result.settings.metrics == ()


def test_batches_of_different_lengths_reach_the_model_padded():
    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(20, 4, padding_idx=0)
            self.head = torch.nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.embedding(ids).sum(1))

    def pad(rows):
        ids, labels = zip(*rows, strict=True)
        return torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True), torch.tensor(labels)

    rows = [(torch.from_numpy(RANDOM.integers(1, 20, 2 + n % 5)), n % 2) for n in range(40)]
    loader = torch.utils.data.DataLoader(rows, batch_size=8, collate_fn=pad, shuffle=True)
    result = train(seeded(Bag), loader, epochs=3, validation_data=loader, progress=False)
    assert result.num_steps == 15 and result.history[-1].validation_loss is not None


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from zip(A[:50], KIND[:50], strict=True)


def test_loader_without_a_length_is_read_to_its_end():
    result = train(
        seeded(lambda: torch.nn.Linear(3, 2)), torch.utils.data.DataLoader(Endless(), batch_size=20), epochs=2, progress=False
    )
    assert result.num_steps == 6 and result.data["batches"] is None


def test_groups_have_rates_and_decays_of_their_own():
    ours, theirs = seeded(Pair), seeded(Pair)
    groups = [
        {"params": [theirs.one.bias, theirs.other.bias], "weight_decay": 0.0, "lr": 0.1},
        {"params": [theirs.one.weight], "lr": 0.01},
        {"params": [theirs.other.weight], "lr": 0.1},
    ]
    plain_loop(theirs, two_losses, torch.optim.SGD(groups, lr=0.1, weight_decay=0.3))
    rule = SGD(learning_rate=0.1, weight_decay=0.3, groups=(Group("*.bias", weight_decay=0.0), Group("one", 0.1)))
    losses = {"loss": ("cross_entropy", "mse"), "loss_weights": (1, 0.25)}
    result = quick(ours, ((A, B), (KIND, VALUE)), optimizer=rule, shuffle=False, **losses)
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    assert result.settings.optimizer["groups"][1] == {"pattern": "one", "rate_factor": 0.1, "weight_decay": None}


def test_frozen_layers_stay_with_their_statistics(blobs):
    model = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = quick(model, blobs, freeze=["0", "1"])
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["2.weight", "2.bias"]
    assert all(weight.requires_grad for weight in model.parameters())
    lineage = result.describe_lineage()
    assert lineage["training"]["frozen"] == ("0", "1") and lineage["weights"]["trained"] == 27
    with pytest.raises(InputError, match="`freeze` is 'head'"):
        quick(model, blobs, freeze="head")


def test_averaged_weights_are_validated_kept_and_given_back(blobs, make_model, tmp_path):
    def run(epochs, folder, resume=False):
        options = {"average": Ema(decay=0.9), "validation_split": 0.2, "checkpoints": tmp_path / folder, "resume": resume}
        return quick(make_model(), blobs, epochs=epochs, **options)

    result, plain = run(4, "whole"), quick(make_model(), blobs, epochs=4, validation_split=0.2)
    assert [epoch.loss for epoch in result.history] == [epoch.loss for epoch in plain.history]
    assert not np.array_equal(weights_of(result.model), weights_of(plain.model))
    run(2, "broken")
    again = run(4, "broken", resume=True)
    np.testing.assert_array_equal(weights_of(again.model), weights_of(result.model))
    assert again.history[-1].validation_loss == result.history[-1].validation_loss


def test_average_is_that_of_the_weights_after_each_step(make_model, blobs):
    model, seen = make_model(), []
    quick(model, blobs, average=Ema(decay=0.5), epochs=1, on_step=lambda taken: seen.append(FRAMEWORK.get_weights(model)))
    expected = FRAMEWORK.get_weights(make_model())
    for count, weights in enumerate(seen, 1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = {name: decay * mean + (1 - decay) * weights[name] for name, mean in expected.items()}
    for name, mean in FRAMEWORK.get_weights(model).items():
        np.testing.assert_allclose(mean, expected[name], atol=1e-6)


def test_functions_are_called_at_steps_epochs_and_the_end(blobs, make_model):
    steps, ends = [], []
    result = quick(make_model(), blobs, epochs=9, on_step=lambda step: steps.append(step) or step.number == 6, on_end=ends.append)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6] and steps[-1].epoch == 2
    assert result.num_steps == 6 and len(result.history) == 2 and ends == [result]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"loss": lambda o, y: o.detach().sum()}, "a number without a gradient", id="no-gradient"),
        pytest.param({"loss": lambda o, y: o}, "a tensor of shape (30, 3)", id="no-scalar"),
        pytest.param({"loss": lambda o, y: 3.0}, "builtins.float", id="a-float"),
        pytest.param({"loss": {"kind": "mse"}}, "losses for what the model gives: one tensor of shape", id="form"),
        pytest.param({"step": lambda m, b, f: m(b[0])}, "a tensor of shape (30, 3)", id="step-gives-no-scalar"),
        pytest.param({"step": lambda m, b, f: None}, "builtins.NoneType", id="step-gives-nothing"),
        pytest.param({"step": lambda m, b, f: f.minimize(m(b[0]).sum(), "head")}, "expected None", id="no-such-optimizer"),
        pytest.param({"step": lambda m, b, f: m(b[0]).sum(), "optimizer": {"0": SGD()}}, "no optimizer for 3", id="left-out"),
        pytest.param({"step": lambda m, b, f: m(b[0]).sum(), "micro_batch_size": 8}, "as it sees fit", id="pieces-of-a-step"),
        pytest.param({"optimizer": {"0": SGD(), "3": SGD()}}, "with a step of one's own", id="optimizers-without-step"),
        pytest.param({"class_weights": {1: -1.0}}, "`class_weights` is -1.0", id="class-weights"),
        pytest.param({"targets": "y"}, "expected a dict by column", id="columns-of-no-dict"),
        pytest.param({"class_weights": {1: 2.0}, "loss": lambda o, y: o.sum()}, "a loss that gives a scalar", id="unweighable"),
        pytest.param({"labels": ["a", "a", "b"]}, "different names", id="labels"),
        pytest.param({"labels": {"kind": ["a", "b", "c"]}}, "names for outputs that have losses", id="labels-of-nothing"),
        pytest.param({"metrics": {"kind": ["accuracy"]}}, "names of outputs that have losses", id="metrics-of-nothing"),
        pytest.param({"class_weights": {"cat": 2.0}}, "or by name: none", id="class-of-no-name"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_and_the_model_is_as_it_was(options, words, blobs, make_model):
    model = make_model()
    with pytest.raises(InputError) as caught:
        quick(model, blobs, **options)
    assert words in caught.value.message
    np.testing.assert_array_equal(weights_of(model), weights_of(make_model()))


def test_schema_that_changes_between_batches_is_named():
    rows = [(A[0], 0)] * 4 + [(A[0].astype(np.float64), 0)] * 4
    loader = torch.utils.data.DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"batch 1 of .* has inputs float64 of 2 axes; .*; the first had inputs float32 of 2 axes"
    ):
        train(torch.nn.Linear(3, 2), loader, progress=False)


def test_rows_of_a_batch_are_counted():
    assert [Batch(A).num_rows, Batch({"a": A}).num_rows, Batch((3, A)).num_rows, Batch("x").num_rows] == [90, 90, 90, 1]
