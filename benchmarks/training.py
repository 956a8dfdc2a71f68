"""Training finite networks: one alone, an ensemble of 16, and the loop that PyTorch's users write,
if it is installed.

The task is the paper's: N = 1000 points, d = 100, width 100, full-batch SGD with momentum 0.9,
logistic loss, float32. PyTorch runs with all its threads and with one, since on a busy machine its
threads wait for each other; the faster of both counts.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

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
    inputs, targets = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y))
    bias, readout = torch.tensor(np.asarray(net.bias)), torch.tensor(np.asarray(net.readout))
    weight = torch.tensor(np.asarray(net.weight), requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=RATE, momentum=MOMENTUM)

    def outputs():
        return torch.relu(inputs @ weight.T + bias) @ readout

    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.softplus(-targets * outputs()).mean()
        loss.backward()
        optimizer.step()
    return outputs().detach().numpy()


def _measure(steps: int, settings: Settings) -> Iterator[Row]:
    rng = np.random.default_rng(settings.seed)
    drawn = rng.normal(size=(N, D)).astype(np.float32)
    x, y = jnp.asarray(drawn), jnp.asarray(np.sign(drawn[:, 0] + np.float32(0.1)))
    nets = jax.vmap(lambda key: networks.TwoLayerNetwork.init(D, WIDTH, key=key))(
        jax.random.split(jax.random.key(settings.seed), MEMBERS)
    )
    net = jax.tree.map(lambda a: a[0], nets)
    optimizer = networks.paper_optimizer(RATE, MOMENTUM)
    options: dict[str, Any] = {"loss": "logistic", "steps": steps, "trace_at": ()}
    calls: list[Callable[[], Any]] = [
        lambda: networks.train(net, x, y, optimizer=optimizer, **options)[0](x),
        lambda: networks.ensemble(nets, x, y, learning_rate=RATE, **options)[0](x),
    ]
    absent = None
    try:
        torch = _torch()
        calls += [
            partial(_torch_loop, torch, net, x, y, steps, threads)
            for threads in (torch.get_num_threads(), 1)
        ]
    except NotHere as error:
        absent = error
    results = [np.asarray(call()) for call in calls]
    seconds, processor = times(calls, settings.rounds(9, 3))
    seconds[:, 1] /= MEMBERS
    processor[:, 1] /= MEMBERS
    one, each = "perturbkernel", f"perturbkernel, each of {MEMBERS}"
    sizes = _described(steps)
    yield Row(
        WHAT, sizes, each, "one network", **ratios((seconds, processor), subject=1, reference=0)
    )
    for i, subject in enumerate((one, each)):
        row = Row(WHAT, sizes, subject, TORCH)
        if absent is not None:
            yield row.but(absent)
            continue
        faster = min(2, 3, key=lambda j: float(np.median(seconds[:, j])))
        threads = "all its threads" if faster == 2 else "one thread"
        off = difference(results[2], results[0])
        note = f"PyTorch with {threads}; its outputs differ by {off:.0e}"
        yield Row(
            WHAT,
            sizes,
            subject,
            TORCH,
            note=note,
            **ratios((seconds, processor), subject=i, reference=faster),
        )


def _described(steps: int) -> str:
    return f"n = {N}, d = {D}, width {WIDTH}, {steps} steps"


def _cases(settings: Settings) -> list[Case]:
    steps, cost = (50, 5) if settings.quick else (1000, 50)
    return [Case("full-batch", _described(steps), partial(_measure, steps, settings), cost=cost)]


GROUP = Group(
    "training",
    "Training networks",
    "time of a network / time of the reference",
    _cases,
    one="the reference",
)
