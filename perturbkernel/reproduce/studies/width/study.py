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
from perturbkernel.reproduce.studies.width.figure import draw as draw
from perturbkernel.reproduce.studies.width.summary import summarise as summarise
from perturbkernel.reproduce.studies.width.summary import text as text
from perturbkernel.training.dynamics import GradientFlow, HeavyBall
from perturbkernel.training.fit import fit

Arrays = dict[str, np.ndarray]

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


def cells(scale: str, seeds: int) -> list[dict[str, Any]]:
    """The work as JSON-able configs: `seeds` independent pairs of networks at every width.

    Args:
        scale: "small", widths 256 to 8,192; "paper", to 65,536.
        seeds: at least 3 for intervals, 20 or more for good ones.

    Raises ValueError or TypeError for another scale or no seeds.
    """
    check_choice(scale, "scale", tuple(WIDTHS))
    check_count(seeds, "seeds")
    setting = dataclasses.asdict(Setting())

    def split(part: str, width: int, seeds: int, **more) -> list[dict[str, Any]]:
        step = max(1, CELL // width)
        return [
            {
                "part": part,
                "width": width,
                "first": first,
                "seeds": min(step, seeds - first),
                **more,
                **setting,
            }
            for first in range(0, seeds, step)
        ]

    widths = [config for width in WIDTHS[scale] for config in split("width", width, seeds)]
    return widths + split("effective_time", TIME_WIDTH[scale], min(seeds, 4), at=list(STEPS))


# --- one cell ---


def measure(config: dict[str, Any]) -> Arrays:
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
    s = Setting(**{field.name: config[field.name] for field in dataclasses.fields(Setting)})
    with jax.enable_x64(True):
        x, y, z, targets = _problem(s)
        keys = [
            jax.random.fold_in(jax.random.fold_in(jax.random.key(1), width), config["first"] + i)
            for i in range(config["seeds"])
        ]
        if config["part"] == "effective_time":
            return _effective_time(s, width, config["at"], keys, x, y, z)
        limit, closed = _limit(s, x, y, z, targets, width)
        rows = [_one_seed(s, width, key, x, y, z, targets, limit) for key in keys]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | limit | closed


def _problem(s: Setting) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    train_data, test = (
        data.shifted_gaussian(n, s.d, s.shift, key=key)
        for n, key in zip((s.n, s.points), keys, strict=False)
    )
    return (
        train_data.inputs,
        train_data.targets,
        test.inputs,
        draw_targets("balanced", s.n, key=keys[2]),
    )


def _limit(s: Setting, x, y, z, targets, width: int) -> tuple[Arrays, Arrays]:
    """What infinitely wide networks do, and the sizes of errors that are known in closed form."""
    kernel, everywhere = TwoLayerNTK(s.slope), jnp.concatenate([x, z])
    f = fit(kernel, x, y, dynamics=GradientFlow(s.time))
    delta = perturb(f, x, targets, size=s.size).delta
    pairs = {
        f"limit_g_{scenario}": fit(
            kernel, carrier + delta, targets, dynamics=GradientFlow(s.time_g)
        )(z)
        for scenario, carrier in (("a", jnp.zeros_like(x)), ("b", x))
    }
    constants = theory.derive_constants(kernel, x, y, z)
    v, gradient = theory.direction(kernel, x, y, x), theory.limit_gradient(kernel, x, y, x)
    ntk = kernel.ntk(x, everywhere)
    entries = (
        theory.gate_moment_variance(kernel, x, everywhere, width=width) * (x @ everywhere.T) ** 2
    )
    limit = {"zeta": gradient - v, "limit_gradient": gradient, "limit_kernel": ntk}
    limit |= {"limit_output": s.time * constants.f_hat, **pairs}
    closed = {
        "closed_kernel": np.sqrt(entries.mean()),
        "closed_output": np.sqrt(
            theory.output_change_variance(constants, width=width, time=s.time).mean()
        ),
        "closed_initial": np.sqrt(theory.initial_output_variance(kernel, z).mean()),
    }
    return ({name: np.asarray(value) for name, value in part.items()} for part in (limit, closed))  # type: ignore


def _one_seed(s: Setting, width: int, key, x, y, z, targets, limit: Arrays) -> Arrays:
    f_key, g_key = jax.random.split(key)
    both = jnp.concatenate([x, z])
    f = _first(f_key, width // BLOCK, x, y, both, s=s)
    change = f.after - f.before
    own = f.phi * (x @ both.T)  # the network's tangent kernel
    lazy = change - s.time / s.n * y @ own
    own_direction = f.phi[:, : s.n].T @ (y[:, None] * x) / s.n
    test = slice(s.n, None)
    centred = f.gradient_after - f.gradient_before
    directions = [normalise(gradient, "l2") for gradient in (centred, f.gradient_after)]
    # (a) and (b) centred, then both with the initial functions.
    perturbed = jnp.stack(
        [o + s.size * targets[:, None] * u for u in directions for o in (jnp.zeros_like(x), x)]
    )
    g_before, g_after = _second(g_key, width // BLOCK, perturbed, targets, z, s=s)
    angles = [_angle(gradient, limit["limit_gradient"]) for gradient in (centred, f.gradient_after)]
    values = {
        "kernel": jnp.sqrt(jnp.mean((own - limit["limit_kernel"]) ** 2)),
        "initial": f.before[test],
        "output": change[test] - limit["limit_output"],
        "lazy_test": lazy[test],
        "lazy_train": lazy[: s.n],
        "flipped": f.flipped.mean() / width,
        "gradient": centred / s.time - limit["limit_gradient"],
        "gradient_gates": centred / s.time - own_direction - limit["zeta"],
        "angle": angles[0],
        "angle_random": angles[1],
        "g_a": g_after[0] - g_before,
        "g_b": g_after[1] - g_before,
        "g_random_a": g_after[2],
        "g_random_b": g_after[3],
    }
    return {name: np.asarray(value) for name, value in values.items()}


def _angle(a, b):
    """Radians between rows."""
    return jnp.arccos(jnp.clip(cosine(a, b), -1, 1))


def _block(key, i, blocks, s: Setting) -> TwoLayerNetwork:
    """Neurons i BLOCK to (i + 1) BLOCK of a network of `blocks` BLOCK neurons."""
    net = TwoLayerNetwork.init(s.d, BLOCK, s.slope, key=jax.random.fold_in(key, i))
    return dataclasses.replace(net, readout=net.readout / jnp.sqrt(blocks))


def _trained(net: TwoLayerNetwork, x, y, s: Setting, time: float) -> TwoLayerNetwork:
    rate = time / HeavyBall(1.0, s.steps, s.momentum).effective_time
    return train(
        net, x, y, optimizer=paper_optimizer(rate, s.momentum), steps=s.steps, trace_every=s.steps
    )[0]


def _summed(of_block: Callable, blocks):
    """The sum of of_block(i) over i < blocks, which may be traced: one compilation for all widths."""
    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_block, 0))
    return lax.fori_loop(
        0, blocks, lambda i, total: jax.tree.map(jnp.add, total, of_block(i)), start
    )


class _First(NamedTuple):
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
        return before(z), jax.vmap(lambda r: _trained(before, r, targets, s, s.time_g)(z))(
            perturbed
        )

    return _summed(of_block, blocks)


@partial(jax.jit, static_argnames="s")
def _change(key, blocks, x, y, z, time, *, s: Setting):
    def of_block(i):
        before = _block(key, i, blocks, s)
        return _trained(before, x, y, s, time)(z) - before(z)

    return _summed(of_block, blocks)


def _effective_time(s: Setting, width: int, at: Sequence[int], keys, x, y, z) -> Arrays:
    """One learning rate for all numbers of steps; the last reaches s.time."""
    rate = s.time / HeavyBall(1.0, max(at), s.momentum).effective_time
    times = [HeavyBall(rate, k, s.momentum).effective_time for k in at]
    change = [
        [
            _change(key, width // BLOCK, x, y, z, time, s=dataclasses.replace(s, steps=k))
            for k, time in zip(at, times, strict=True)
        ]
        for key in keys
    ]
    constants = theory.derive_constants(TwoLayerNTK(s.slope), x, y, z)
    variance = theory.output_change_variance(constants, width=width, time=1.0)
    return {
        "change": np.array(change),
        "learning_rate": np.asarray(rate),
        "limit_output": constants.f_hat,
        "closed_output": np.sqrt(variance.mean()),
    }
