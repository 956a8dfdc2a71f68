"""Training finite networks: one alone, an ensemble of 16, and the loop that PyTorch's users write,
if it is installed.

The task is the paper's: N = 1000 points, d = 100, width 100, full-batch SGD with momentum 0.9,
logistic loss, float32. PyTorch runs with all its threads and with one, since on a busy machine its
threads wait for each other; the faster of both counts.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import networks

from .harness import Case, Group, NotHere, Row, Settings, difference, ratios, times

N, D, WIDTH, MEMBERS, RATE, MOMENTUM = 1000, 100, 100, 16, 0.01, 0.9
WHAT, TORCH = "full-batch training", "eager PyTorch"


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError:
        raise NotHere("torch is not installed") from None


def _torch_loop(
    torch: Any, net: networks.TwoLayerNetwork, x, y, steps: int, threads: int
) -> np.ndarray:
    """The same training as PyTorch's users write it; returns the outputs at the end."""
    torch.set_num_threads(threads)

    def tensor(array: Any, **options: bool) -> Any:
        return torch.tensor(np.asarray(array), **options)

    inputs = tensor(x)
    targets = tensor(y)
    bias = tensor(net.bias)
    readout = tensor(net.readout)
    weight = tensor(net.weight, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=RATE, momentum=MOMENTUM)

    def outputs():
        before = inputs @ weight.T + bias
        hidden = torch.relu(before)
        return hidden @ readout

    for _ in range(steps):
        optimizer.zero_grad()
        margin = targets * outputs()
        losses = torch.nn.functional.softplus(-margin)
        loss = losses.mean()
        loss.backward()
        optimizer.step()
    return outputs().detach().numpy()


class _Problem(NamedTuple):
    """Points, labels and untrained networks."""

    x: jax.Array
    y: jax.Array
    nets: networks.TwoLayerNetwork

    @property
    def net(self) -> networks.TwoLayerNetwork:
        """The first of them."""
        return jax.tree.map(lambda weights: weights[0], self.nets)


def _problem(seed: int) -> _Problem:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(N, D))
    drawn = normal.astype(np.float32)
    first = drawn[:, 0]
    labels = np.sign(first + np.float32(0.1))
    key = jax.random.key(seed)
    keys = jax.random.split(key, MEMBERS)

    def untrained(key: jax.Array) -> networks.TwoLayerNetwork:
        return networks.TwoLayerNetwork.init(D, WIDTH, key=key)

    nets = jax.vmap(untrained)(keys)
    return _Problem(jnp.asarray(drawn), jnp.asarray(labels), nets)


def _our_calls(problem: _Problem, steps: int) -> list[Callable[[], Any]]:
    """One network, and the ensemble; each returns outputs at the end."""
    x, y, nets = problem
    net = problem.net
    optimizer = networks.paper_optimizer(RATE, MOMENTUM)
    options: dict[str, Any] = {"loss": "logistic", "steps": steps, "trace_at": ()}

    def one():
        trained, _ = networks.train(net, x, y, optimizer=optimizer, **options)
        return trained(x)

    def all_members():
        trained, _ = networks.ensemble(nets, x, y, learning_rate=RATE, **options)
        return trained(x)

    return [one, all_members]


def _torch_calls(problem: _Problem, steps: int) -> list[Callable[[], Any]]:
    """PyTorch with all its threads and with one. Raises NotHere without it."""
    torch = _torch()
    x, y, _ = problem
    train = partial(_torch_loop, torch, problem.net, x, y, steps)
    all_threads = torch.get_num_threads()
    return [partial(train, threads) for threads in (all_threads, 1)]


def _measure(steps: int, settings: Settings) -> Iterator[Row]:
    problem = _problem(settings.seed)
    calls = _our_calls(problem, steps)
    absent = None
    try:
        calls += _torch_calls(problem, steps)
    except NotHere as error:
        absent = error
    results = [np.asarray(call()) for call in calls]
    rounds = settings.rounds(9, 3)
    seconds, processor = times(calls, rounds)
    seconds[:, 1] /= MEMBERS
    processor[:, 1] /= MEMBERS
    measured = (seconds, processor)
    one = "perturbkernel"
    each = f"perturbkernel, each of {MEMBERS}"
    sizes = _described(steps)
    fields = ratios(measured, subject=1, reference=0)
    yield Row(WHAT, sizes, each, "one network", **fields)
    for i, subject in enumerate((one, each)):
        row = Row(WHAT, sizes, subject, TORCH)
        if absent is not None:
            yield row.but(absent)
            continue
        of_torch = seconds[:, 2:]
        all_threads, single = np.median(of_torch, axis=0)
        faster = 2 if all_threads <= single else 3
        threads = "all its threads" if faster == 2 else "one thread"
        off = difference(results[2], results[0])
        note = f"PyTorch with {threads}; its outputs differ by {off:.0e}"
        fields = ratios(measured, subject=i, reference=faster)
        yield Row(WHAT, sizes, subject, TORCH, note=note, **fields)


def _described(steps: int) -> str:
    return f"n = {N}, d = {D}, width {WIDTH}, {steps} steps"


def _cases(settings: Settings) -> list[Case]:
    steps, cost = (50, 5) if settings.quick else (1000, 50)
    measure = partial(_measure, steps, settings)
    return [Case("full-batch", _described(steps), measure, cost=cost)]


GROUP = Group(
    "training",
    "Training networks",
    "time of a network / time of the reference",
    _cases,
    one="the reference",
)
