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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbkernel import data, theory
from perturbkernel.attacks.norms import normalise
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.draws import draw_targets
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.metrics import cosine
from perturbkernel.networks.optimizers import paper_optimizer
from perturbkernel.networks.training import train
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.reproduce.records import Arrays, Config
from perturbkernel.reproduce.studies.settings import from_config
from perturbkernel.reproduce.studies.width.figure import draw as draw
from perturbkernel.reproduce.studies.width.summary import summarise as summarise
from perturbkernel.reproduce.studies.width.summary import text as text
from perturbkernel.training.dynamics import GradientFlow, HeavyBall
from perturbkernel.training.fit import fit

#: Neurons that are drawn and trained together; every width is a multiple.
BLOCK = 256
#: About how many neurons a cell draws: seconds of work.
CELL = 2**17
WIDTHS = {"small": tuple(2**k for k in range(8, 14)), "paper": tuple(2**k for k in range(8, 17))}
#: Steps at which training is looked at for the effective time, and the width.
STEPS = (1, 2, 5, 10, 20, 50, 100)
TIME_WIDTH = {"small": 2**13, "paper": 2**15}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The fixed data and training: two Gaussian classes with means +-shift in every coordinate, d
    dimensions.

    n training points and balanced targets for g; `points` queries of the same law; T = `time` for f
    and `time_g` for g in `steps` steps of heavy ball; perturbations of length `size`.
    """

    n: int = 20
    d: int = 20
    points: int = 600
    shift: float = 0.3
    slope: float = 0.0
    time: float = 1.0
    size: float = 2.0
    time_g: float = 2.0
    steps: int = 16
    momentum: float = 0.9


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
        of_width = jax.random.fold_in(jax.random.key(1), width)
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
    train_key, test_key, targets_key = jax.random.split(jax.random.key(0), 3)
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
    alone = fit(kernel, jnp.zeros_like(x) + delta, targets, dynamics=flow)
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
    f = _first(f_key, blocks, x, y, both, s=s)
    centred = f.gradient_after - f.gradient_before
    perturbed = _perturbed(s, problem, [centred, f.gradient_after])
    g_before, g_after = _second(g_key, blocks, perturbed, targets, z, s=s)
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
            moved = carrier + s.size * problem.targets[:, None] * unit
            sets.append(moved)
    return jnp.stack(sets)


def _errors_of_f(
    s: Setting, f: "_First", x: jax.Array, y: jax.Array, both: jax.Array, limit: Arrays
) -> dict[str, jax.Array]:
    """Of the kernel, outputs and gradients of a network f; `both`: x, then the queries."""
    test = slice(s.n, None)
    change = f.after - f.before
    own = f.phi * (x @ both.T)  # the network's tangent kernel
    off = own - limit["limit_kernel"]
    lazy = change - s.time / s.n * y @ own
    among_training = f.phi[:, : s.n]
    own_direction = among_training.T @ (y[:, None] * x) / s.n
    velocity = (f.gradient_after - f.gradient_before) / s.time
    return {
        "kernel": jnp.sqrt(jnp.mean(off**2)),
        "initial": f.before[test],
        "output": change[test] - limit["limit_output"],
        "lazy_test": lazy[test],
        "lazy_train": lazy[: s.n],
        "gradient": velocity - limit["limit_gradient"],
        "gradient_gates": velocity - own_direction - limit["zeta"],
    }


def _angle(a, b):
    """Radians between rows."""
    cosines = jnp.clip(cosine(a, b), -1, 1)
    return jnp.arccos(cosines)


def _block(key, i, blocks, s: Setting) -> TwoLayerNetwork:
    """Neurons i BLOCK to (i + 1) BLOCK of a network of `blocks` BLOCK neurons."""
    of_block = jax.random.fold_in(key, i)
    net = TwoLayerNetwork.init(s.d, BLOCK, s.slope, key=of_block)
    readout = net.readout / jnp.sqrt(blocks)
    return dataclasses.replace(net, readout=readout)


def _trained(net: TwoLayerNetwork, x, y, s: Setting, time: float) -> TwoLayerNetwork:
    unit = HeavyBall(1.0, s.steps, s.momentum)
    rate = time / unit.effective_time
    optimizer = paper_optimizer(rate, s.momentum)
    trained, _ = train(net, x, y, optimizer=optimizer, steps=s.steps, trace_every=s.steps)
    return trained


def _summed(of_block: Callable, blocks):
    """The sum of of_block(i) over i < blocks, which may be traced: one compilation for all
    widths.
    """

    def added(i, total):
        return jax.tree.map(jnp.add, total, of_block(i))

    def zeros(shape):
        return jnp.zeros(shape.shape, shape.dtype)

    shapes = jax.eval_shape(of_block, 0)
    start = jax.tree.map(zeros, shapes)
    return lax.fori_loop(0, blocks, added, start)


class _First(NamedTuple):
    """A network f of m neurons before and after training: outputs (n + points,) at all points,
    gradients (n, d) at x; phi (n, n + points); gates that flipped at each point.
    """

    before: Any
    after: Any
    gradient_before: Any
    gradient_after: Any
    phi: Any
    flipped: Any


@partial(jax.jit, static_argnames="s")
def _first(key, blocks, x, y, everywhere, *, s: Setting) -> _First:
    """Trains f: its outputs and gates `everywhere`, its gradients at x, Phi_m between the two."""

    def of_block(i):
        before = _block(key, i, blocks, s)
        after = _trained(before, x, y, s, s.time)
        flipped = before.active(everywhere) != after.active(everywhere)
        return _First(
            before(everywhere),
            after(everywhere),
            before.input_gradient(x),
            after.input_gradient(x),
            before.empirical_phi(x, everywhere),
            flipped.sum(-1, dtype=x.dtype),
        )

    return _summed(of_block, blocks)


@partial(jax.jit, static_argnames="s")
def _second(key, blocks, perturbed, targets, z, *, s: Setting):
    """Trains g on each of the sets (k, n, d), from the same start: outputs before (m,) and after
    (k, m).
    """

    def of_block(i):
        before = _block(key, i, blocks, s)

        def after(points):
            trained = _trained(before, points, targets, s, s.time_g)
            return trained(z)

        return before(z), jax.vmap(after)(perturbed)

    return _summed(of_block, blocks)


@partial(jax.jit, static_argnames="s")
def _change(key, blocks, x, y, z, time, *, s: Setting):
    """f - f0 at z."""

    def of_block(i):
        before = _block(key, i, blocks, s)
        after = _trained(before, x, y, s, time)
        return after(z) - before(z)

    return _summed(of_block, blocks)


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
            moved = _change(key, blocks, x, y, z, time, s=shorter)
            of_seed.append(moved)
        change.append(of_seed)
    constants = theory.derive_constants(TwoLayerNTK(s.slope), x, y, z)
    variance = theory.output_change_variance(constants, width=width, time=1.0)
    return {
        "change": np.array(change),
        "learning_rate": np.asarray(rate),
        "limit_output": constants.f_hat,
        "closed_output": np.sqrt(variance.mean()),
    }
