"""How finite networks approach the kernel limit: every error of the theory against width, with its
rate.

At fixed data and time (d = n = 20, T = 1, slope 0, bias not trained) networks f and g of growing
width are drawn, trained with the identity loss and held against the closed form. A cell is one
width and a few seeds.

    results = [(config, measure(config)) for config in cells("small", seeds=20)]
    summarise(results)["quantities"]["kernel"]["rate"]  # -0.5, its interval, the theory's rate
    draw(results).savefig("width.png")

With the identity loss neurons do not see each other (theory: S1): everything here is a sum over
neurons, drawn, trained and added up BLOCK at a time, so that no width needs memory and all widths
share one compilation. Float64 throughout, whatever JAX's setting: lazy errors are small
differences. Theory: 3.4, 5.3, 8.8, 8.9.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import data, theory
from perturbkernel.attacks.norms import normalise
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.draws import draw_targets
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.metrics import cosine
from perturbkernel.reproduce.records import Arrays, Config
from perturbkernel.reproduce.studies.settings import from_config
from perturbkernel.reproduce.studies.width.blocks import (
    BLOCK,
    First,
    output_change,
    train_first,
    train_second,
)
from perturbkernel.reproduce.studies.width.blocks import Setting as Setting
from perturbkernel.reproduce.studies.width.figure import draw as draw
from perturbkernel.reproduce.studies.width.summary import summarise as summarise
from perturbkernel.reproduce.studies.width.summary import text as text
from perturbkernel.training.dynamics import GradientFlow, HeavyBall
from perturbkernel.training.fit import fit

#: About how many neurons a cell draws: seconds of work.
CELL = 2**17
WIDTHS = {
    "small": tuple(2**k for k in range(8, 14)),
    "paper": tuple(2**k for k in range(8, 17)),
}
#: Steps at which training is looked at for the effective time, and the width.
STEPS = (1, 2, 5, 10, 20, 50, 100)
TIME_WIDTH = {"small": 2**13, "paper": 2**15}


def cells(scale: str, seeds: int) -> list[Config]:
    """The work as JSON-able configs: `seeds` independent pairs of networks at every width.

    Args:
        scale: "small", widths 256 to 8,192; "paper", to 65,536.
        seeds: at least 3 for intervals, 20 or more for good ones.

    Raises ValueError or TypeError for another scale or no seeds.
    """
    check_choice(scale, "scale", tuple(WIDTHS))
    check_count(seeds, "seeds")
    setting = dataclasses.asdict(Setting())

    def split(part: str, width: int, seeds: int, **more) -> list[Config]:
        step = max(1, CELL // width)
        found = []
        for first in range(0, seeds, step):
            count = min(step, seeds - first)
            here = {"part": part, "width": width, "first": first, "seeds": count}
            found.append(here | more | setting)
        return found

    found = []
    for width in WIDTHS[scale]:
        found += split("width", width, seeds)
    few = min(seeds, 4)
    found += split("effective_time", TIME_WIDTH[scale], few, at=list(STEPS))
    return found


# --- one cell ---


def measure(config: Config) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    Part "width": arrays with one row a seed, errors against the kernel limit where not said
    otherwise,

        kernel (s,): root mean square entry of K_m - K; initial (s, m): f0; output (s, m): f - f0 -
        T f_hat; lazy_test (s, m), lazy_train (s, n): f - f_lin, f_lin of the network's own tangent
        kernel; flipped (s,): share of gates that differ at the end; gradient (s, n, d): (grad f -
        grad f0)/T - (v + zeta), and gradient_gates the same with v of the network's own kernel,
        which leaves what moving gates do; angle, angle_random (s, n): radians between grad f - grad
        f0, respectively grad f, and v + zeta; g_a, g_b, g_random_a, g_random_b (s, m): g's outputs,
        centred or with f0 and g0, in scenario (a) or (b);

    and what they are compared with: zeta (n, d); the limit's K, T f_hat, v + zeta and outputs g as
    limit_kernel, limit_output, limit_gradient, limit_g_a and limit_g_b; closed_*, root mean squares
    that the theory has in closed form. Part "effective_time": change (s, k, m), f - f0 after each
    number of steps.

    Raises ValueError for a width that is no multiple of BLOCK or an unknown part.
    """
    check_choice(config["part"], "part", ("width", "effective_time"))
    width = config["width"]
    if width < BLOCK or width % BLOCK:
        raise ValueError(
            f"width must be a multiple of {BLOCK}, the neurons drawn together; got {width}"
        )
    s = from_config(Setting, config)
    first = config["first"]
    seeds = range(first, first + config["seeds"])
    with jax.enable_x64(True):
        problem = _problem(s)
        root = jax.random.key(1)
        of_width = jax.random.fold_in(root, width)
        keys = [jax.random.fold_in(of_width, seed) for seed in seeds]
        if config["part"] == "effective_time":
            return _effective_time(s, width, config["at"], keys, problem)
        limit = _limit(s, problem)
        closed = _closed_form(s, problem, width)
        rows = [_one_seed(s, width, key, problem, limit) for key in keys]
    found = {}
    for name in rows[0]:
        of_seeds = [row[name] for row in rows]
        found[name] = np.stack(of_seeds)
    return found | limit | closed


class Problem(NamedTuple):
    """Training points with labels, queries, and the targets of g."""

    x: jax.Array
    y: jax.Array
    z: jax.Array
    targets: jax.Array


def _problem(s: Setting) -> Problem:
    root = jax.random.key(0)
    train_key, test_key, targets_key = jax.random.split(root, 3)
    drawn = data.shifted_gaussian(s.n, s.d, s.shift, key=train_key)
    test = data.shifted_gaussian(s.points, s.d, s.shift, key=test_key)
    targets = draw_targets("balanced", s.n, key=targets_key)
    return Problem(drawn.inputs, drawn.targets, test.inputs, targets)


def _limit(s: Setting, problem: Problem) -> Arrays:
    """What infinitely wide networks do."""
    x, y, z, targets = problem
    kernel = TwoLayerNTK(s.slope)
    f = fit(kernel, x, y, dynamics=GradientFlow(s.time))
    delta = perturb(f, x, targets, size=s.size).delta
    flow = GradientFlow(s.time_g)
    everywhere = jnp.concatenate([x, z])
    nothing = jnp.zeros_like(x)
    alone = fit(kernel, nothing + delta, targets, dynamics=flow)
    added = fit(kernel, x + delta, targets, dynamics=flow)
    constants = theory.derive_constants(kernel, x, y, z)
    v = theory.direction(kernel, x, y, x)
    gradient = theory.limit_gradient(kernel, x, y, x)
    limit = {
        "zeta": gradient - v,
        "limit_gradient": gradient,
        "limit_kernel": kernel.ntk(x, everywhere),
        "limit_output": s.time * constants.f_hat,
        "limit_g_a": alone(z),
        "limit_g_b": added(z),
    }
    return {name: np.asarray(value) for name, value in limit.items()}


def _closed_form(s: Setting, problem: Problem, width: int) -> Arrays:
    """Root mean squares of errors that are known in closed form."""
    x, y, z, _ = problem
    kernel = TwoLayerNTK(s.slope)
    everywhere = jnp.concatenate([x, z])
    gates = theory.gate_moment_variance(kernel, x, everywhere, width=width)
    products = x @ everywhere.T
    constants = theory.derive_constants(kernel, x, y, z)
    variances = {
        "closed_kernel": gates * products**2,
        "closed_output": theory.output_change_variance(constants, width=width, time=s.time),
        "closed_initial": theory.initial_output_variance(kernel, z),
    }
    found = {}
    for name, variance in variances.items():
        root = np.sqrt(variance.mean())
        found[name] = np.asarray(root)
    return found


def _one_seed(s: Setting, width: int, key, problem: Problem, limit: Arrays) -> Arrays:
    """The rows of `measure` for one pair of networks f and g."""
    x, y, z, targets = problem
    f_key, g_key = jax.random.split(key)
    blocks = width // BLOCK
    both = jnp.concatenate([x, z])
    f = train_first(f_key, blocks, x, y, both, s=s)
    centred = f.gradient_after - f.gradient_before
    perturbed = _perturbed(s, problem, [centred, f.gradient_after])
    g_before, g_after = train_second(g_key, blocks, perturbed, targets, z, s=s)
    values = {
        **_errors_of_f(s, f, x, y, both, limit),
        "flipped": f.flipped.mean() / width,
        "angle": _angle(centred, limit["limit_gradient"]),
        "angle_random": _angle(f.gradient_after, limit["limit_gradient"]),
        "g_a": g_after[0] - g_before,
        "g_b": g_after[1] - g_before,
        "g_random_a": g_after[2],
        "g_random_b": g_after[3],
    }
    return {name: np.asarray(value) for name, value in values.items()}


def _perturbed(s: Setting, problem: Problem, gradients: Sequence[jax.Array]) -> jax.Array:
    """(a) and (b) for every gradient, one set of perturbed points after the other, (k, n, d)."""
    x = problem.x
    sets = []
    for gradient in gradients:
        unit = normalise(gradient, "l2")
        for carrier in (jnp.zeros_like(x), x):
            delta = s.size * problem.targets[:, None] * unit
            moved = carrier + delta
            sets.append(moved)
    return jnp.stack(sets)


def _errors_of_f(
    s: Setting, f: First, x: jax.Array, y: jax.Array, both: jax.Array, limit: Arrays
) -> dict[str, jax.Array]:
    """Of the kernel, outputs and gradients of a network f; `both`: x, then the queries."""
    n = s.n
    test = slice(n, None)
    change = f.after - f.before
    products = x @ both.T
    own = f.phi * products  # the network's tangent kernel
    off = own - limit["limit_kernel"]
    coef = s.time / n * y
    lazy = change - coef @ own
    among_training = f.phi[:, :n]
    signed = y[:, None] * x
    own_direction = among_training.T @ signed / n
    centred = f.gradient_after - f.gradient_before
    velocity = centred / s.time
    return {
        "kernel": jnp.sqrt(jnp.mean(off**2)),
        "initial": f.before[test],
        "output": change[test] - limit["limit_output"],
        "lazy_test": lazy[test],
        "lazy_train": lazy[:n],
        "gradient": velocity - limit["limit_gradient"],
        "gradient_gates": velocity - own_direction - limit["zeta"],
    }


def _angle(a, b):
    """Radians between rows."""
    cosines = jnp.clip(cosine(a, b), -1, 1)
    return jnp.arccos(cosines)


def _effective_time(s: Setting, width: int, at: Sequence[int], keys, problem: Problem) -> Arrays:
    """One learning rate for all numbers of steps; the last reaches s.time."""
    x, y, z, _ = problem
    blocks = width // BLOCK
    unit = HeavyBall(1.0, max(at), s.momentum)
    rate = s.time / unit.effective_time
    change = []
    for key in keys:
        of_seed = []
        for steps in at:
            time = HeavyBall(rate, steps, s.momentum).effective_time
            shorter = dataclasses.replace(s, steps=steps)
            moved = output_change(key, blocks, x, y, z, time, s=shorter)
            of_seed.append(moved)
        change.append(of_seed)
    kernel = TwoLayerNTK(s.slope)
    constants = theory.derive_constants(kernel, x, y, z)
    variance = theory.output_change_variance(constants, width=width, time=1.0)
    return {
        "change": np.array(change),
        "learning_rate": np.asarray(rate),
        "limit_output": constants.f_hat,
        "closed_output": np.sqrt(variance.mean()),
    }
