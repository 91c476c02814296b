"""Send ruined and good versions of small trained models through the guard of compression, and count what it says.

    python benchmarks/guard.py

*Good* is what a correct compression of weights, or of weights and activations, does: rounding to float16, bfloat16 or int8 with
right scales, and noise a thousandth of each weight. *Ruined* is what a faulty one does, by construction; see `ruin`. Each is
judged on 300 rows that were not trained on, drawn anew for each, by the default guard; of vectors, besides, by a mean cosine of
0.99, or by a divergence, which a user would have to name, and which are not counted with the others. Nothing is left out for what
the guard says.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from argosy.compress.judge import Evidence, Guard, Score, judge_outputs
from argosy.compress.kind import Kind, Meaning
from machine import describe_machine

NUM_ROWS = 300
Array = NDArray[np.float32]


class Case(NamedTuple):
    """A trained model, and how it is judged."""

    name: str
    model: torch.nn.Module
    rows: Array
    targets: NDArray[Any] | None
    kind: Kind
    guard: Guard = Guard()


class Changed(NamedTuple):
    """A version of a model."""

    what: str
    answer: Callable[[Array], Array]


def fit(model: torch.nn.Module, x: Array, y: NDArray[Any], loss: Callable[..., torch.Tensor], steps: int = 300) -> None:
    """Train with Adam."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(steps):
        picked = torch.randint(len(x), (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss(model(inputs[picked]), targets[picked]).backward()
        optimizer.step()


def make_mlp(*widths: int) -> torch.nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[torch.nn.Module] = []
    for wide, next_wide in itertools.pairwise(widths):
        layers += [torch.nn.Linear(wide, next_wide), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def make_cases() -> list[Case]:
    """Train all models."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    digits = load_digits()
    images, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    order = random.permutation(len(images))
    (x, y), (test_x, test_y) = ((images[part], labels[part]) for part in (order[:1000], order[1000:]))
    cross_entropy = torch.nn.functional.cross_entropy

    mlp = make_mlp(64, 64, 32, 10)
    fit(mlp, x, y, cross_entropy)
    cnn = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)),
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )
    fit(cnn, x, y, cross_entropy)
    noisy_y, noisy_test_y = (
        np.where(random.random(len(part)) < 0.5, random.integers(0, 10, len(part)), part) for part in (y, test_y)
    )
    weak = make_mlp(64, 32, 10)
    fit(weak, x, noisy_y, cross_entropy, steps=200)
    vectors = torch.nn.Sequential(make_mlp(64, 64, 24), _Normalise())
    fit(torch.nn.Sequential(vectors, torch.nn.Linear(24, 10)), x, y, cross_entropy)

    around = torch.nn.Sequential(vectors, _Around())

    px = random.normal(size=(9000, 8)).astype(np.float32)
    units = np.array([1.0, 1000.0, 0.01, 5.0], np.float32)
    values = np.stack([px[:, 0] * px[:, 1], px[:, 2] + 3, np.sin(px[:, 3] * 2), np.abs(px[:, 4]) - px[:, 5]], axis=1)
    price = make_mlp(8, 64, 64, 4)
    fit(price, px[:5000], values[:5000], torch.nn.functional.mse_loss, steps=1000)
    with torch.no_grad():
        last = price[-1]
        last.weight *= torch.from_numpy(units)[:, None]
        last.bias *= torch.from_numpy(units)
    fraud_y = (px[:, 0] + px[:, 1] * px[:, 2] > 2.6).astype(np.float32)[:, None]
    fraud = make_mlp(8, 32, 32, 1)
    fit(fraud, px[:5000], fraud_y[:5000], torch.nn.functional.binary_cross_entropy_with_logits, steps=1000)
    even_y = (test_y % 2).astype(np.float32)[:, None]
    even = make_mlp(64, 48, 1)
    fit(even, x, (y % 2).astype(np.float32)[:, None], torch.nn.functional.binary_cross_entropy_with_logits)
    tail_y = (px[:, :3] + px[:, 3:6] * px[:, 5:]) * 1.7
    tail = make_mlp(8, 64, 64, 3)
    fit(tail, px[:5000], tail_y[:5000], torch.nn.functional.mse_loss, steps=1000)
    many_zeros = np.maximum(px[:, :1] * 20 + px[:, 1:2] * px[:, 2:3] * 10 - 30, 0)
    zeros = make_mlp(8, 64, 64, 1)
    fit(zeros, px[:5000], many_zeros[:5000], torch.nn.functional.mse_loss, steps=1000)
    found_y = np.concatenate([px[:, :4], (px[:, 4:7] + px[:, 1:4] * px[:, :1] > 2.2) * 2.0 - 1.0], axis=1, dtype=np.float32)
    found = make_mlp(8, 64, 64, 7)
    fit(found, px[:5000], found_y[:5000], torch.nn.functional.mse_loss, steps=1000)
    found = torch.nn.Sequential(found, _Found())
    return [
        Case("classes", mlp, test_x, test_y, "classes"),
        Case("classes, convolutions", cnn, test_x, test_y, "classes"),
        Case("classes, no targets", cnn, test_x, None, "classes"),
        Case("classes, half of the labels made up", weak, test_x, noisy_test_y, "classes"),
        Case("probabilities", torch.nn.Sequential(mlp, torch.nn.Softmax(dim=1)), test_x, test_y, "classes"),
        Case("values in four units", price, px[5000:], values[5000:] * units, "values"),
        Case("values, no targets", price, px[5000:], None, "values"),
        Case("yes and no, yes for 2.8 % of the rows", fraud, px[5000:], fraud_y[5000:], "yes_no"),
        Case("yes and no", even, test_x, even_y, "yes_no"),
        Case("yes and no, no targets", even, test_x, None, "yes_no"),
        Case("values with long tails", torch.nn.Sequential(tail, _Exponent()), px[5000:], None, "values"),
        Case("values, most of them zero", zeros, px[5000:], many_zeros[5000:], "values"),
        Case("boxes in pixels beside scores", found, px[5000:], None, "unknown"),
        Case("boxes in pixels beside scores, by cosine", found, px[5000:], None, "unknown", Guard("cosine")),
        Case("vectors", vectors, test_x, None, "unknown"),
        Case("vectors, by cosine", vectors, test_x, None, "unknown", Guard("cosine")),
        Case("vectors, by kl", vectors, test_x, None, "unknown", Guard("kl")),
        Case("vectors around one direction, by cosine", around, test_x, None, "unknown", Guard("cosine")),
    ]


class _Normalise(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x, dim=1)


class _Around(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x + 2, dim=1)


class _Exponent(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


class _Found(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([320 + 100 * x[:, :4], torch.sigmoid(5 * x[:, 4:])], dim=1)


def run(model: torch.nn.Module) -> Callable[[Array], Array]:
    """Give the function that a model is."""

    def answer(rows: Array) -> Array:
        with torch.no_grad():
            return model(torch.from_numpy(rows)).numpy()

    return answer


def list_weights(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Matrices and kernels, in order; their first axis is the output channels."""
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def change(model: torch.nn.Module, place: int, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    """Give the model with one of its weights edited; -1 stands for all of them."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        weights = list_weights(copied)
        for weight in weights if place < 0 else [weights[place]]:
            weight.copy_(edit(weight.clone()))
    return run(copied)


def round_int8(weight: torch.Tensor, *, shift: int = 0) -> torch.Tensor:
    """Round with a scale for each output channel; with a shift, each is scaled back by a scale of another channel."""
    flat = weight.reshape(len(weight), -1)
    scale = flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return (torch.round(flat / scale) * scale.roll(shift, 0)).reshape(weight.shape)


def quantise_activations(model: torch.nn.Module, rows: Array, *, unit: float) -> Callable[[Array], Array]:
    """Int8 weights, and what goes into each layer in int8, with ranges of rows in another unit."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in list_weights(copied):
            weight.copy_(round_int8(weight.clone()))
    layers = [layer for layer in copied.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    ranges: dict[torch.nn.Module, tuple[float, float]] = {}

    def look(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        ranges[layer] = (min(0.0, float(inputs[0].min())), max(0.0, float(inputs[0].max())))

    def clip(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        low, high = ranges[layer]
        scale = max((high - low) / 255, 1e-30)
        zero = round(-low / scale)
        return (torch.clamp(torch.round(inputs[0] / scale) + zero, 0, 255) - zero) * scale

    watches = [layer.register_forward_pre_hook(look) for layer in layers]
    run(copied)(rows * np.float32(unit))
    for watch in watches:
        watch.remove()
    for layer in layers:
        layer.register_forward_pre_hook(clip)
    return run(copied)


def ruin(case: Case, calibration: Array, random: np.random.Generator) -> Iterator[Changed]:
    """Ruined versions: scales off, weights zeroed, turned round or mixed up, ranges of other units, one output, no numbers."""
    model = case.model
    last = len(list_weights(model)) - 1
    for place in range(last + 1):
        for factor in (0.1, 0.5, 2.0, 10.0):
            yield Changed(f"scales of layer {place} times {factor}", change(model, place, lambda w, f=factor: w * f))
        yield Changed(f"layer {place} is zeros", change(model, place, torch.zeros_like))
        yield Changed(f"layer {place} has its sign turned", change(model, place, torch.neg))
        if len(list_weights(model)[place]) > 1:
            num_channels = len(list_weights(model)[place])
            mixed = torch.from_numpy(random.permutation(num_channels))
            if torch.equal(mixed, torch.arange(num_channels)):
                mixed = mixed.flip(0)
            yield Changed(f"channels of layer {place} are mixed up", change(model, place, lambda w, m=mixed: w[m]))
    yield Changed("scales of every layer times 1.5", change(model, -1, lambda w: w * 1.5))
    for unit in (0.01, 0.1, 255.0, 1000.0):
        yield Changed(f"calibrated on rows times {unit:g}", quantise_activations(model, calibration, unit=unit))
    whole = run(model)
    width = whole(case.rows[:1]).shape[1]
    for column in random.permutation(width)[:3].tolist() if width > 1 else ():
        for word, edit in (
            ("is zeros", lambda values: values * 0),
            ("has its sign turned", np.negative),
            ("is three times too large", lambda values: values * 3),
            ("stands for its mean", lambda values: values * 0 + values.mean()),
            ("is zero where it is small", lambda values: np.where(np.abs(values) < np.median(np.abs(values)), 0, values)),
        ):
            if word == "is zero where it is small" and case.kind != "values":
                continue  # The small ones of other answers, such as unlikely scores, are as good as zero.
            yield Changed(f"output {column} {word}", _edit_column(whole, column, edit))
    for word, rewrite in (
        ("one answer for all rows, their mean", lambda outputs: np.broadcast_to(outputs.mean(axis=0), outputs.shape)),
        ("each row has the answer of another", lambda outputs: np.roll(outputs, 1, axis=0)),
        ("only four answers are left", lambda outputs: outputs[np.square(outputs[:, None] - outputs[:4]).sum(-1).argmin(1)]),
    ):
        yield Changed(word, lambda rows, rewrite=rewrite: rewrite(whole(rows)))
    for share in (0.01, 0.03):
        yield Changed(f"no numbers for {share:.0%} of the rows", _spoil(whole, share, random))


def _edit_column(whole: Callable[[Array], Array], column: int, edit: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def answer(rows: Array) -> Array:
        outputs = whole(rows).copy()
        outputs[:, column] = edit(outputs[:, column])
        return outputs

    return answer


def _spoil(whole: Callable[[Array], Array], share: float, random: np.random.Generator) -> Callable[[Array], Array]:
    def answer(rows: Array) -> Array:
        outputs = whole(rows).copy()
        outputs[random.permutation(len(rows))[: max(1, int(share * len(rows)))]] = np.nan
        return outputs

    return answer


def keep(case: Case, calibration: Array, random: np.random.Generator) -> Iterator[Changed]:
    """Good versions."""
    model = case.model
    yield Changed("float16", change(model, -1, lambda w: w.half().float()))
    yield Changed("bfloat16", change(model, -1, lambda w: w.bfloat16().float()))
    yield Changed("int8 weights", change(model, -1, round_int8))
    yield Changed("int8 weights and activations", quantise_activations(model, calibration, unit=1.0))
    for _ in range(2):
        generator = torch.Generator().manual_seed(int(random.integers(1 << 31)))
        noise = lambda w, g=generator: w * (1 + 1e-3 * torch.randn(w.shape, generator=g))  # noqa: E731 - an edit among others
        yield Changed("a thousandth of noise", change(model, -1, noise))


def judge(case: Case, changed: Changed, random: np.random.Generator) -> Score:
    """Have the guard judge a version on rows drawn anew."""
    picked = random.permutation(len(case.rows))[:NUM_ROWS]
    rows = case.rows[picked]
    before, after = ([{"y": row[None]} for row in answer(rows)] for answer in (run(case.model), changed.answer))
    targets = {} if case.targets is None else {"y": case.targets[picked]}
    meaning = Meaning(case.kind, "it was made so")
    return judge_outputs(Evidence(before, after, targets, "evaluation"), meaning, case.guard)


def main() -> None:
    """Print the counts, and every mistake."""
    print(describe_machine())
    random = np.random.default_rng(1)
    totals: Counter[str] = Counter()
    mistakes: list[str] = []
    print("| model | ruined | of these accepted | good | of these refused |\n|---|---|---|---|---|")
    for case in make_cases():
        counts: Counter[str] = Counter()
        calibration = case.rows[:64]
        for kind, versions in (("ruined", ruin(case, calibration, random)), ("good", _repeat(case, calibration, random))):
            for changed in versions:
                score = judge(case, changed, random)
                is_accepted = case.guard.accepts(score)
                counts[kind] += 1
                if is_accepted == (kind == "ruined"):
                    counts[f"{kind}, mistaken"] += 1
                    mistakes.append(f"{case.name}, {changed.what}: {score.metric} {score.before:.4f} -> {score.after:.4f}")
                    mistakes[-1] += f", loss {score.loss:.4f} {score.ruin}"
        print(tell(case.name, counts))
        totals.update({} if case.guard.metric else counts)
    print(tell("all by the default guard", totals))
    print("\n".join(mistakes))


def tell(name: str, counts: Counter[str]) -> str:
    """A line of the table."""
    kinds = ("ruined", "ruined, mistaken", "good", "good, mistaken")
    return f"| {' | '.join([name, *(str(counts[kind]) for kind in kinds)])} |"


def _repeat(case: Case, calibration: Array, random: np.random.Generator) -> Iterator[Changed]:
    """Good versions four times over, as each is judged on other rows."""
    for _ in range(4):
        yield from keep(case, calibration, random)


if __name__ == "__main__":
    main()
