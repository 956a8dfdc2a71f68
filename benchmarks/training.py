"""How long 1,000 steps of a finite network take: alone, in an ensemble of 16, and in an eager PyTorch loop.

The task is the paper's: N = 1000 points, d = 100, width 100, full-batch SGD with momentum 0.9, logistic loss, float32.
PyTorch is compared with where it is installed; the package does not need it.
"""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from perturbkernel import networks

try:
    import torch
except ImportError:
    torch = None

N, D, WIDTH, MEMBERS, RATE, MOMENTUM = 1000, 100, 100, 16, 0.01, 0.9


def training_ratio(repeats: int = 5, quick: bool = False) -> dict[str, float]:
    """Seconds per 1,000 steps of one network, measured in turns in one process: medians of `repeats`.

    Args:
        repeats: how often each is run, after one run that compiles; `quick`: 50 steps a run instead of 1,000.

    Returns:
        "alone", "ensemble" (of 16, per network), "ensemble_over_alone". Where PyTorch is installed also "torch" and
        "torch_one_thread"; of the faster of these "torch_over_alone" and "torch_over_ensemble"; and
        "torch_difference", the largest difference between both networks' outputs at the end over the largest output.
        Ratios are medians of the ratios of neighbouring runs.
    """
    steps = 50 if quick else 1000
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)).astype(np.float32)
    y = np.sign(x[:, 0] + 0.1).astype(np.float32)
    nets = jax.vmap(lambda key: networks.TwoLayerNetwork.init(D, WIDTH, key=key))(
        jax.random.split(jax.random.key(0), MEMBERS)
    )
    net = jax.tree.map(lambda a: a[0], nets)
    settings = {"loss": "logistic", "steps": steps, "trace_at": ()}
    optimizer = networks.paper_optimizer(RATE, MOMENTUM)

    runs: dict[str, tuple[Callable, int]] = {
        "alone": (lambda: networks.train(net, x, y, optimizer=optimizer, **settings)[0](x), 1),
        "ensemble": (lambda: networks.ensemble(nets, x, y, learning_rate=RATE, **settings)[0](x), MEMBERS),
    }
    if torch is not None:
        # On a machine that is busy with other things its threads wait for each other, and one of them is faster.
        threads = torch.get_num_threads()
        runs["torch"] = (lambda: _torch_loop(net, x, y, steps, threads), 1)
        runs["torch_one_thread"] = (lambda: _torch_loop(net, x, y, steps, 1), 1)
    outputs = {name: np.asarray(run()) for name, (run, _) in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (run, members) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append((time.perf_counter() - start) / members * 1000 / steps)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))

    result = {name: statistics.median(times) for name, times in seconds.items()}
    result["ensemble_over_alone"] = ratio("ensemble", "alone")
    if torch is not None:
        faster = min("torch", "torch_one_thread", key=result.__getitem__)
        result |= {"torch_over_alone": ratio(faster, "alone"), "torch_over_ensemble": ratio(faster, "ensemble")}
        difference = np.abs(outputs["torch"] - outputs["alone"]).max()
        result["torch_difference"] = float(difference / np.abs(outputs["alone"]).max())
    return result


def _torch_loop(net: networks.TwoLayerNetwork, x: np.ndarray, y: np.ndarray, steps: int, threads: int):
    """The same training as PyTorch's users write it; returns the outputs at the end."""
    assert torch is not None
    torch.set_num_threads(threads)
    inputs, targets, bias, readout = (torch.tensor(np.asarray(a)) for a in (x, y, net.bias, net.readout))
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


if __name__ == "__main__":
    for name, value in training_ratio().items():
        print(f"{name:20} {value:.4g}")
