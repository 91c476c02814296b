"""Make the tables of src/argosy/train/optim.md: `python -m tests.train.measure_optim`."""

from __future__ import annotations

import numpy as np
import torch

from argosy.optim import SGD, Adam
from argosy.train.recipes import DIGITS, run_recipe
from argosy.train.run import count_steps
from tests.train.test_torch import fit_in_numpy, fit_in_torch, make_problem

SEEDS = range(5)


def measure_rules() -> None:
    print("| rule | torch float32 | torch float64 |\n|---|---|---|")
    x, targets = make_problem()
    rules = {"SGD(learning_rate=0.1)": SGD(learning_rate=0.1), "Adam(learning_rate=0.05)": Adam(learning_rate=0.05)}
    rules["Adam(learning_rate=0.05, epsilon=1e-3)"] = Adam(learning_rate=0.05, epsilon=1e-3)
    for name, rule in rules.items():
        worst = {torch.float32: 0.0, torch.float64: 0.0}
        for loss, y in targets.items():
            reference = fit_in_numpy(rule, loss, x, y)
            for dtype in worst:
                difference = np.abs(fit_in_torch(rule, loss, x, y, dtype) - reference).max()
                worst[dtype] = max(worst[dtype], float(difference))
        print(f"| `{name}` | {worst[torch.float32]:.1e} | {worst[torch.float64]:.1e} |")


def measure_digits() -> None:
    steps = count_steps(1438, batch_size=DIGITS.batch_size, epochs=DIGITS.epochs, validation_split=DIGITS.validation_split)
    rules = {
        "Adam, 0.001 falling to 0": Adam(decay_steps=steps),
        "Adam, 0.001": Adam(),
        "Adam, 0.003 falling to 0": Adam(learning_rate=0.003, decay_steps=steps),
        "SGD, 0.05 falling to 0": SGD(learning_rate=0.05, decay_steps=steps),
        "SGD, 0.01": SGD(learning_rate=0.01),
    }
    print("\n| rule | test accuracy, seeds 0 to 4 | lowest | training loss | s |\n|---|---|---|---|---|")
    for name, rule in rules.items():
        runs = [run_recipe("digits", optimizer=rule, seed=seed, progress=False) for seed in SEEDS]
        accuracies = [run.test["accuracy"] for run in runs]
        loss = np.mean([run.result.history[-1].loss for run in runs])
        seconds = np.median([sum(epoch.duration_s for epoch in run.result.history) for run in runs])
        shown = " ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        print(f"| {name} | {shown} | {min(accuracies):.4f} | {loss:.4f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    measure_rules()
    measure_digits()
