"""What `perturbkernel run` does once its arguments are read."""

import argparse
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from perturbkernel import report as reports
from perturbkernel.cli import options
from perturbkernel.cli.progress import progress
from perturbkernel.cli.run.inputs import (
    SYNTHETIC,
    SYNTHETIC_POINTS,
    check_classes,
    check_options,
    draw,
    load,
    load_carrier,
)
from perturbkernel.data.dataset import Dataset
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning.experiment import PerturbationLearning, learn_from_perturbations
from perturbkernel.learning.record import configuration_of, metrics_of, report_of
from perturbkernel.training.dynamics import Dynamics, GradientFlow, HeavyBall
from perturbkernel.training.fit import KernelLearner
from perturbkernel.training.losses import LOSSES

_MOMENTUM = 0.9  # of the paper's experiments
_TIME = 10.0
# What the progress bar counts: training f, perturbing, ...; more where results are kept.
_STAGES, _STAGES_WITH_RESULTS = 5, 8


class _Inputs(NamedTuple):
    """What an experiment is made from."""

    train: Dataset
    test: Dataset
    carrier: str | np.ndarray | None
    key: jax.Array
    fresh_key: jax.Array
    attack_key: jax.Array


def run(args: argparse.Namespace) -> int:
    """Carries the experiment out, prints what it shows, and returns the exit status."""
    began = time.perf_counter()
    check_options(args)
    learner, learner_g = learner_of(args), learner_of(args, "_g")
    inputs = _read(args)
    stages = _STAGES if args.out is None else _STAGES_WITH_RESULTS
    stages += args.robust is not None
    with progress(stages, "stage", args.quiet) as bar:

        def on_stage(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        r = _learn(args, inputs, learner, learner_g, on_stage)
        fresh = _fresh(args, inputs)
        settings = {
            "fresh": fresh,
            "control_draws": args.control_draws,
            "robust": _robust(args, inputs.attack_key),
            "on_stage": on_stage,
        }
        if args.out is None:
            metrics = metrics_of(r, inputs.test, **settings)
            configuration = {**configuration_of(r, inputs.test), **_asked(args, r)}
        else:
            result = report_of(r, inputs.test, asked=_asked(args, r), **settings)
            configuration, metrics = result.configuration, result.metrics
            on_stage("figures and page")
            metrics["seconds"] = round(time.perf_counter() - began, 1)
            reports.save(result, args.out)
    print(reports.text(configuration, metrics))
    if args.out is not None:
        print(f"\nreport: {Path(args.out) / 'report.html'}")
    return 0


def _robust(args: argparse.Namespace, key: jax.Array) -> dict[str, Any] | None:
    """The arguments of `robust_of` that were asked for, or None."""
    if args.robust is None:
        return None
    return {
        "points": args.robust_points,
        "certified": args.certified,
        "sizes": args.robust,
        "norms": args.robust_norm,
        "attack": args.robust_attack,
        "bounds": None if args.bounds is None else tuple(args.bounds),
        "key": key,
    }


def _asked(args: argparse.Namespace, r: PerturbationLearning) -> dict[str, Any]:
    """What a report says of the command besides what the experiment itself tells."""
    asked = {
        "command": shlex.join(["perturbkernel", *args.argv]),
        "seed": args.seed,
        "precision": args.precision,
    }
    if args.carrier is not None:
        there = ", perturbed there" if args.at == "carrier" else ""
        asked["carrier"] = f"carrier {args.carrier}, {len(r.carrier)} points{there}"
    return asked


def learner_of(args: argparse.Namespace, suffix: str = "") -> KernelLearner:
    """The learner of f; with suffix "_g" that of g, which takes what is not given from f."""
    loss = _option(args, "loss", suffix)
    dynamics = _dynamics(args, suffix)
    ridge = _option(args, "ridge", suffix)
    if not (LOSSES[loss].has_minimum or ridge) and math.isinf(dynamics.effective_time):
        raise ValueError(
            f"--time inf needs --loss squared, or a --ridge: the {loss} loss has no minimum to "
            "train to"
        )
    kernel = TwoLayerNTK(_option(args, "slope", suffix), _option(args, "train_bias", suffix))
    return KernelLearner(kernel, loss, dynamics, ridge=ridge)


def _option(args: argparse.Namespace, name: str, suffix: str) -> Any:
    """An option of the network with this suffix, or of f where it is not given."""
    own = getattr(args, name + suffix)
    return getattr(args, name) if own is None else own


def _dynamics(args: argparse.Namespace, suffix: str) -> Dynamics:
    """Gradient flow, or heavy ball where a learning rate is given.

    Time, learning rate and steps go together: if one of them is given for g, none is taken from f.
    """
    names = ("time", "learning_rate", "steps")
    own = any(getattr(args, name + suffix) is not None for name in names)
    given = suffix if own else ""
    duration = getattr(args, "time" + given)
    rate = getattr(args, "learning_rate" + given)
    steps = getattr(args, "steps" + given)
    dash = given.replace("_", "-")
    if rate is None and getattr(args, "momentum" + suffix) is not None:
        option = "--momentum" + suffix.replace("_", "-")
        raise ValueError(f"{option} is of heavy ball: --learning-rate and --steps")
    if rate is None and steps is None:
        return GradientFlow(_TIME if duration is None else duration)
    if duration is not None:
        raise ValueError(
            f"--time{dash} is for gradient flow; with --learning-rate{dash} give --steps{dash} "
            "instead"
        )
    if rate is None or steps is None:
        raise ValueError(f"heavy ball needs both --learning-rate{dash} and --steps{dash}")
    momentum = _option(args, "momentum", suffix)
    return HeavyBall(rate, steps, _MOMENTUM if momentum is None else momentum)


def _read(args: argparse.Namespace) -> _Inputs:
    """Data and carrier, checked against the options."""
    key = jax.random.key(args.seed)
    train, test = load(args, key)
    check_classes(args, train)
    carrier = load_carrier(args, train)
    # The keys of the examples: those of `--seed 0` are key(0) for the split, key(1) for the rest.
    experiment_key = jax.random.key((args.seed + 1) % options.SEEDS)
    fresh_key = jax.random.fold_in(key, 2)
    attack_key = jax.random.fold_in(key, 3)
    return _Inputs(train, test, carrier, experiment_key, fresh_key, attack_key)


def _learn(
    args: argparse.Namespace,
    inputs: _Inputs,
    learner: KernelLearner,
    learner_g: KernelLearner,
    on_stage: Callable[[str], None],
) -> PerturbationLearning:
    """Trains f, perturbs, trains g."""
    return learn_from_perturbations(
        learner,
        inputs.train,
        size=args.size,
        scenario=args.scenario,
        carrier=inputs.carrier,
        carrier_points=args.carrier_points,
        at=args.at,
        targets=args.targets,
        learner_g=learner_g,
        norm=args.norm,
        direction=args.direction,
        bounds=None if args.bounds is None else tuple(args.bounds),
        on_stage=on_stage,
        key=inputs.key,
    )


def _fresh(args: argparse.Namespace, inputs: _Inputs) -> Dataset:
    """Points on which f and g are compared: new ones of synthetic data, else the test points."""
    if args.data in SYNTHETIC:
        return draw(args, SYNTHETIC_POINTS, inputs.fresh_key)
    return inputs.test
