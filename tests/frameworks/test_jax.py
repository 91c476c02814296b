"""JAX: flax.nnx models, optax losses and optimizers, resumption, layers found at fault, bad inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, count_weights, get_framework
from argosy.frameworks.jax import RuleOptimizer
from argosy.frameworks.layers import Conv, Dense, Relu, draw_weights
from argosy.optim import SGD, Adam, CosineDecay, Momentum, RMSprop
from argosy.runtimes.jax import count_threads
from argosy.train.losses import LOSSES, get_loss
from tests.frameworks.jax_models import (
    FRAMEWORK,
    LAYERS,
    ROW,
    Apply,
    Deep,
    Embedding,
    Scaled,
    build_resumed,
    digest,
    make_labels,
    make_mlp,
    make_network,
    make_rows,
    take_steps,
)
from tests.scripts import ROOT

RULES = [
    pytest.param(SGD(learning_rate=0.1), id="sgd"),
    pytest.param(Momentum(learning_rate=0.1, nesterov=True), id="momentum"),
    pytest.param(RMSprop(form="text", weight_decay=0.1), id="rmsprop"),
    pytest.param(Adam(learning_rate=CosineDecay(0.1, steps=4), weight_decay=0.1, decoupled_decay=True, clip_norm=0.5), id="adam"),
]


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_an_optax_transformation_that_may_be_compiled(rule):
    weights = {"a": make_rows(3, 2), "b": make_rows(2, seed=1)}
    optimizer = optax.chain(RuleOptimizer(rule), optax.identity())
    moved, state = jax.tree.map(jnp.array, weights), optimizer.init(weights)
    reference, memory = weights, rule.init_state(weights)

    @jax.jit
    def step(moved, state, gradients):
        updates, state = optimizer.update(gradients, state, moved)
        return optax.apply_updates(moved, updates), state

    for number in range(6):
        gradients = {"a": make_rows(3, 2, seed=number), "b": make_rows(2, seed=number + 9)}
        moved, state = step(moved, state, gradients)
        reference, memory = rule.update(reference, gradients, memory)
    for name, expected in reference.items():
        np.testing.assert_allclose(moved[name], expected, atol=2e-6)  # Rounding of float32 over six steps.


def test_rule_says_that_it_needs_the_weights():
    optimizer = RuleOptimizer(SGD())
    with pytest.raises(InputError, match="expected the weights"):
        optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_a_step_equals_the_numpy_loss(loss):
    x = 4 * make_rows(9, 6)
    y = {
        "cross_entropy": make_labels(9, 5),
        "binary_cross_entropy": make_labels(45, 2).reshape(9, 5).astype(np.float32),
    }.get(loss, make_rows(9, 5, seed=3))
    value, outputs = FRAMEWORK.build_step(make_network((Dense(5),), (6,)), loss, SGD(), FitOptions())(Batch(x, y), 1)
    # float32 against float64: 1e-7 for each of a few sums.
    assert value == pytest.approx(get_loss(loss).compute(outputs, y), rel=1e-5)


def test_network_answers_as_the_same_one_in_torch():
    weights = draw_weights(LAYERS, ROW, 0)
    x = make_rows(5, *ROW)
    # The other framework's float32 kernels sum in another order.
    np.testing.assert_allclose(
        FRAMEWORK.predict(make_network(), x), get_framework("torch").predict(_in_torch(weights), x), rtol=0, atol=1e-5
    )
    assert count_weights(FRAMEWORK, make_network()) == (2 * 9 + 1) * 3 + 2 * 3 + (3 * 3 * 2 + 1) * 7 + 8 * 3
    images = make_network((Conv(3), Relu()), ROW)
    assert FRAMEWORK.predict(images, x).shape == (5, 3, 6, 4)


def _in_torch(weights):
    with torch.random.fork_rng(devices=[]):
        return get_framework("torch").build_network(LAYERS, ROW, weights)


def test_trainable_weights_are_named_in_the_order_of_the_layers():
    assert FRAMEWORK.list_trainable(make_network())[:4] == ("conv1.kernel", "conv1.bias", "batchnorm1.scale", "batchnorm1.bias")
    names = FRAMEWORK.list_trainable(Deep())
    assert names[:2] == ("blocks.0.kernel", "blocks.0.bias")
    assert names[-4:] == ("blocks.11.kernel", "blocks.11.bias", "head.kernel", "head.bias")


def test_only_parameters_of_a_floating_type_are_trained():
    model = Deep()
    before = FRAMEWORK.get_weights(model)
    step = FRAMEWORK.build_step(model, "mse", Adam(), FitOptions())
    for number in (1, 2):
        step(Batch(make_rows(8, 4), make_rows(8, 1)), number)
    step.sync()
    after = FRAMEWORK.get_weights(model)
    assert after.keys() == before.keys()
    assert after["count"] == 2
    kept = {name for name in before if np.array_equal(before[name], after[name])}
    assert kept == {"fixed", "table"}


def test_own_loss_and_optimizer_run_as_they_are():
    model, x, y = make_mlp(), make_rows(12, 4), make_rows(12, 1, seed=2)
    loss = partial(optax.losses.huber_loss, delta=0.5)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(optax.cosine_decay_schedule(0.01, 10)))
    graph, weights = nnx.split(make_mlp())
    state = optimizer.init(weights)
    step = FRAMEWORK.build_step(model, loss, optimizer, FitOptions())
    for number in range(1, 5):
        value, gradients = jax.value_and_grad(lambda w: loss(nnx.merge(graph, w)(x), y).mean())(weights)
        assert step(Batch(x, y), number)[0] == pytest.approx(float(value), rel=1e-6)
        updates, state = optimizer.update(gradients, state, weights)
        weights = optax.apply_updates(weights, updates)
    step.sync()
    for name, array in FRAMEWORK.get_weights(model).items():
        layer, weight = name.split(".")
        np.testing.assert_allclose(array, weights[layer][weight][...], atol=1e-6)
    assert FRAMEWORK.measure_loss(loss, np.array([[2.0]]), np.array([[0.0]])) == pytest.approx(0.875)


def test_optimizer_sees_the_model_as_nnx_shows_it():
    model = make_mlp()
    labels = {"dense1": "still", "dense2": "moving"}
    optimizer = optax.multi_transform(
        {"still": optax.set_to_zero(), "moving": optax.sgd(0.1)},
        lambda weights: jax.tree_util.tree_map_with_path(lambda path, _: labels[path[0].key], weights),
    )
    before = FRAMEWORK.get_weights(model)
    step = FRAMEWORK.build_step(model, "mse", optimizer, FitOptions())
    step(Batch(make_rows(8, 4), make_rows(8, 1)), 1)
    step.sync()
    moved = {name for name, array in FRAMEWORK.get_weights(model).items() if not np.array_equal(array, before[name])}
    assert moved == {"dense2.kernel", "dense2.bias"}


def test_losses_and_optimizers_are_described_as_data():
    part = FRAMEWORK.describe_loss(partial(optax.losses.sigmoid_focal_loss, gamma=3.0))
    assert part == ("sigmoid_focal_loss", {"gamma": 3.0}, True)
    assert FRAMEWORK.describe_loss(optax.losses.l2_loss) == ("l2_loss", {}, False)
    assert FRAMEWORK.describe_loss("mse") is None
    described = FRAMEWORK.describe_optimizer(optax.adamw(0.1))
    assert [part["name"].rpartition(".")[2] for part in described["parts"]] == ["scale_by_adam", "add_decayed_weights", "scale"]
    assert described["parts"][0]["b1"] == 0.9
    assert FRAMEWORK.describe_optimizer(RuleOptimizer(Adam())) == Adam().describe()
    assert FRAMEWORK.describe_optimizer(object()) is None


@pytest.mark.parametrize("size", [1, 5, 8, 40])
@pytest.mark.parametrize("optimizer", [Adam(clip_norm=0.1), optax.sgd(0.1, momentum=0.9)], ids=["ours", "own"])
def test_micro_batches_add_up_to_the_whole_batch(size, optimizer):
    x, y = make_rows(21, 4), make_labels(21)
    states = []
    for micro_batch_size in (None, size):
        step = FRAMEWORK.build_step(make_mlp(units=3), "cross_entropy", optimizer, FitOptions(micro_batch_size=micro_batch_size))
        values = [step(Batch(x, y), number) for number in (1, 2)]
        states.append((values, step.get_state()))
    (whole, expected), (pieces, got) = states
    for (loss, outputs), (want_loss, want_outputs) in zip(pieces, whole, strict=True):
        assert loss == pytest.approx(want_loss, rel=1e-5)
        np.testing.assert_allclose(outputs, want_outputs, atol=1e-5)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5)


def test_another_process_goes_on_bit_for_bit(tmp_path):
    step = build_resumed()
    x, y = make_rows(16, *ROW), make_labels(16)
    take_steps(step, (1, 2, 3), x, y)
    np.savez(tmp_path / "state.npz", **step.get_state())
    losses = take_steps(step, (4, 5, 6), x, y)
    code = f"from tests.frameworks.jax_models import go_on; go_on({str(tmp_path / 'state.npz')!r})"
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == f"{digest(step.get_state())} {losses}"


def test_random_numbers_follow_from_seed_and_step_alone():
    x, y = make_rows(16, *ROW), make_labels(16)
    first, second = build_resumed(), build_resumed()
    state = first.get_state()
    assert take_steps(first, (1, 2), x, y) == take_steps(second, (1, 2), x, y)
    first.set_state(state)
    assert first(Batch(x, y), 7)[0] != second(Batch(x, y), 1)[0]
    first.set_state(state)
    second.set_state(state)
    assert first(Batch(x, y), 7)[0] == second(Batch(x, y), 7)[0]
    # Dropout draws anew for each piece of a batch.
    pieces = build_resumed(micro_batch_size=8)
    twice = np.concatenate([x[:8], x[:8]]), np.concatenate([y[:8], y[:8]])
    outputs = pieces(Batch(*twice), 1)[1]
    assert not np.array_equal(outputs[:8], outputs[8:])


def test_model_is_touched_by_sync_alone_and_stays_usable():
    model = make_mlp()
    before = FRAMEWORK.get_weights(model)
    step = FRAMEWORK.build_step(model, "mse", SGD(learning_rate=0.1), FitOptions())
    for number in (1, 2, 3):
        step(Batch(make_rows(8, 4), make_rows(8, 1)), number)
    assert digest(FRAMEWORK.get_weights(model)) == digest(before)
    step.sync()
    synced = FRAMEWORK.get_weights(model)
    assert digest(synced) != digest(before)
    step(Batch(make_rows(8, 4), make_rows(8, 1)), 4)
    assert digest(FRAMEWORK.get_weights(model)) == digest(synced)


def test_state_of_another_model_or_optimizer_is_refused():
    step = FRAMEWORK.build_step(make_mlp(), "mse", Adam(), FitOptions())
    for other in (FRAMEWORK.build_step(make_mlp(), "mse", SGD(), FitOptions()), build_resumed()):
        with pytest.raises(InputError) as caught:
            step.set_state(other.get_state())
        assert caught.value.key == "bad_checkpoint"


def test_random_keys_and_bfloat16_survive_a_file(tmp_path):
    def build():
        model = nnx.Linear(4, 1, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        return FRAMEWORK.build_step(
            model, "mse", optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.sgd(0.1)), FitOptions()
        )

    step, other = build(), build()
    x, y = make_rows(8, 4), make_rows(8, 1)
    assert step(Batch(x, y), 1)[1].dtype == np.float32
    np.savez(tmp_path / "state.npz", **step.get_state())
    step(Batch(x, y), 2)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        other.set_state(dict(file))
    other(Batch(x, y), 2)
    assert digest(step.get_state()) == digest(other.get_state())


@pytest.mark.parametrize(
    ("function", "what", "layer"),
    [
        pytest.param(lambda x: jnp.log(x - 1e6), "loss", "middle", id="loss"),
        pytest.param(lambda x: x * 1e38 * 1e38, "loss", "middle", id="overflow"),
        # The slope of the root is infinite at zero; so is that of the layer before.
        pytest.param(lambda x: jnp.sqrt(x * 0.0), "gradient", "first", id="gradient"),
    ],
)
def test_layer_that_is_not_finite_is_named_and_weights_stay(function, what, layer):
    step = FRAMEWORK.build_step(Scaled(function), "mse", Adam(learning_rate=0.25), FitOptions())
    before = digest(step.get_state())
    for number in (1, 2):
        with pytest.raises(ModelError) as caught:
            step(Batch(make_rows(8, 4), make_rows(8, 1)), number)
        assert caught.value.key == "not_finite"
        assert f"step {number}: the {what} is not finite in layer {layer}" in caught.value.message
        assert "0.25" in caught.value.hint
        assert digest(step.get_state()) == before


def test_loss_that_is_not_finite_of_finite_outputs_blames_the_last_layer():
    step = FRAMEWORK.build_step(make_mlp(), lambda outputs, y: jnp.log(-jnp.abs(outputs)), optax.sgd(0.1), FitOptions())
    with pytest.raises(ModelError, match="loss is not finite in layer dense2"):
        step(Batch(make_rows(8, 4), make_rows(8, 1)), 1)


@pytest.mark.parametrize("rule", [SGD(learning_rate=1e-30), SGD(learning_rate=0.1, clip_norm=1.0)], ids=["plain", "clipped"])
def test_huge_gradients_are_followed_though_their_squares_overflow(rule):
    model, x = make_network((Dense(1),), (4,)), make_rows(8, 4)
    weights = {name: array.astype(np.float64) for name, array in FRAMEWORK.get_weights(model).items()}
    step = FRAMEWORK.build_step(model, lambda outputs, y: outputs * 1e30, rule, FitOptions())
    step(Batch(x, make_rows(8, 1)), 1)
    gradients = {"dense1.kernel": 1e30 * x.astype(np.float64).mean(axis=0)[:, None], "dense1.bias": np.array([1e30])}
    expected, _ = rule.update(weights, gradients, rule.init_state(weights))
    for name, array in expected.items():
        np.testing.assert_allclose(step.get_state()[f"weights/{name}"], array, rtol=1e-5)


def test_float64_model_is_fitted_and_run_in_float64():
    model = make_mlp("float64")
    assert FRAMEWORK.float_dtype(model) == np.float64
    x, y = make_rows(8, 4, dtype="float64"), make_rows(8, 1, dtype="float64")
    step = FRAMEWORK.build_step(model, "mse", Adam(), FitOptions())
    _, outputs = step(Batch(x, y), 1)
    step.sync()
    assert outputs.dtype == FRAMEWORK.predict(model, x).dtype == np.float64
    assert {array.dtype for array in FRAMEWORK.get_weights(model).values()} == {np.dtype(np.float64)}
    assert jnp.zeros(1).dtype == np.float32, "the caller's precision must not change"


def test_predict_joins_its_pieces():
    model, x = make_mlp(), make_rows(600, 4)
    x.flags.writeable = False
    weights = FRAMEWORK.get_weights(model)
    hidden = np.maximum(x.astype(np.float64) @ weights["dense1.kernel"] + weights["dense1.bias"], 0)
    expected = hidden @ weights["dense2.kernel"] + weights["dense2.bias"]
    np.testing.assert_allclose(FRAMEWORK.predict(model, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        pytest.param(make_mlp, make_rows(2, 5), "shape (2, 5)", id="wrong-width"),
        pytest.param(make_mlp, make_rows(2, 4, dtype="float64"), "it is float64, expected float32", id="float64"),
        pytest.param(Embedding, np.full((2, 3), 2**40), "integers beyond int32", id="large-integers"),
        pytest.param(
            lambda: Apply(lambda x: (x, x[:1])), make_rows(2, 4), "a tensor of shape (1, 4)", id="one-output-of-no-rows"
        ),
        pytest.param(lambda: Apply(jnp.ravel), make_rows(2, 4), "a tensor of shape (8,)", id="rows-lost"),
    ],
)
def test_predict_says_what_a_model_did_not_take_or_give(model, x, words):
    with pytest.raises(InputError) as caught:
        FRAMEWORK.predict(model(), x)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("model", "loss", "optimizer", "options", "words"),
    [
        pytest.param(make_mlp, "mse", SGD(), FitOptions(precision="bfloat16"), "`precision` is 'bfloat16'", id="precision"),
        pytest.param(lambda: Apply(jnp.ravel), "mse", SGD(), FitOptions(), "with weights to train", id="no-weights"),
        pytest.param(make_mlp, "mse", nnx.relu, FitOptions(), "a transformation of optax", id="optimizer"),
        pytest.param(make_mlp, "hinge", SGD(), FitOptions(), "known: binary_cross_entropy, cross_entropy", id="loss"),
    ],
)
def test_step_refuses_what_it_cannot_follow(model, loss, optimizer, options, words):
    with pytest.raises(InputError) as caught:
        FRAMEWORK.build_step(model(), loss, optimizer, options)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        pytest.param({"dense9.bias": np.zeros(1)}, "a name of this model", id="name"),
        pytest.param({"dense2.bias": np.zeros(1)}, "float64 of shape (1,), expected float32 of shape (1,)", id="type"),
        pytest.param({"dense2.bias": np.zeros(2, np.float32)}, "expected float32 of shape (1,)", id="shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, words):
    with pytest.raises(InputError) as caught:
        FRAMEWORK.set_weights(make_mlp(), weights)
    assert words in caught.value.message.replace("'", "")


def test_names_that_would_be_two_weights_are_refused():
    model = nnx.Dict({"a": nnx.Dict({"b": nnx.Param(jnp.ones(1))}), "a.b": nnx.Param(jnp.ones(1))})
    with pytest.raises(InputError, match="whose names hold no dots"):
        FRAMEWORK.get_weights(model)


def test_session_takes_the_number_of_threads_that_there_is():
    FRAMEWORK.predict(make_mlp(), make_rows(1, 4))
    with FRAMEWORK.session(0, count_threads()):
        pass
    with pytest.raises(InputError, match="set PJRT_NPROC"), FRAMEWORK.session(0, count_threads() + 1):
        pass
