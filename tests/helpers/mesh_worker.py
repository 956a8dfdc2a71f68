"""One process of a run on many devices, started by test_mesh.py: `mesh_worker.py DEVICES PROCESSES
PROCESS PORT`.

Every process has DEVICES virtual CPU devices; process 0 prints what differs from one device, as
JSON, a line for each kind of mesh and array. One of several processes then goes on until another
one is gone."""

import json
import os
import sys
from typing import Any

devices, processes, process, port = map(int, sys.argv[1:])
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

import perturbkernel as pk  # noqa: E402
from perturbkernel.learning.experiment import _cosine  # noqa: E402
from perturbkernel.learning.linearity import assess  # noqa: E402
from perturbkernel.meshes import with_automatic_axes  # noqa: E402
from perturbkernel.networks.ensembles import ensemble  # noqa: E402
from perturbkernel.networks.optimizers import Plateau  # noqa: E402
from perturbkernel.networks.two_layer import TwoLayerNetwork  # noqa: E402

KERNEL = pk.TwoLayerNTK(0.2, train_bias=True)
ROWS: set[int] = set()


@jax.tree_util.register_static
class Recording(pk.TwoLayerNTK):
    """Notes how many rows the tiles have that are evaluated, when they are traced."""

    def tile(self, name, z, x):
        ROWS.add(len(z))
        return super().tile(name, z, x)


class Count:
    def __init__(self):
        self.counts = []

    def update(self, k):
        self.counts.append(k)


def compare(mesh) -> dict[str, float]:
    """The largest difference from one device, relative to the largest number, of everything that
    takes a mesh.
    """
    rng = np.random.default_rng(0)
    x, z, c = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((17, 5), (11, 5), (17,))
    )
    y, differences = jnp.sign(c), {}

    def differ(name, one, many):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            # Fails unless this process holds the whole result.
            a, b = (
                np.asarray(a, float),
                np.asarray(b, float),
            )
            assert a.shape == b.shape
            off = float(np.abs(a - b).max() / (np.abs(a).max() or 1))
            differences[name] = max(differences.get(name, 0.0), off)

    def both(name, call):
        many = call(mesh)
        # Every process computes, the first compares.
        differ(name, call(None) if process == 0 else many, many)

    both("matvec", lambda mesh: KERNEL.matvec(z, x, c, mesh=mesh))
    both("input_gradient", lambda mesh: KERNEL.input_gradient(x, x, c, mesh=mesh))
    both("fit", lambda mesh: pk.fit(KERNEL, x, y, mesh=mesh)(z))

    def neurons(mesh):
        law = pk.theory.simulate_neurons(
            KERNEL,
            x,
            y,
            dynamics=pk.HeavyBall(0.3, 5),
            width=4,
            neurons=34,
            mesh=mesh,
            key=jax.random.key(0),
        )
        return law.paths

    both("simulate_neurons", neurons)

    def learn(mesh):
        learner = pk.KernelLearner(KERNEL, mesh=mesh)
        return pk.learn_from_perturbations(
            learner, pk.Dataset(x, y), scenario="b", size=1.0, key=jax.random.key(0)
        )

    def summary(mesh):
        r = learn(mesh)
        return r.g(x), r.perturbation, r.cosine, r.diagnosis

    both("learn_from_perturbations", summary)
    weights = {"w": x.T @ x / 17, "a": z[0]}
    empirical = pk.EmpiricalNTK(lambda p, x: jnp.tanh(x @ p["w"]) @ p["a"], weights)
    columns = jnp.stack([c] * 40, axis=1)  # so many that they go in tiles

    def products(mesh):
        return (
            empirical.matvec(z, x, c, mesh=mesh),
            empirical.matvec(z, x, columns, mesh=mesh),
            empirical.input_gradient(z, x, c, mesh=mesh),
        )

    both("a network's kernel", products)
    flow = pk.GradientFlow(3.0)
    both(
        "fit of a network's kernel",
        lambda mesh: pk.fit(
            empirical, x, y, loss="squared", dynamics=flow, memory=0, mesh=mesh, precision=64
        )(z),
    )
    if jax.process_count() == 1:
        other = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, -1), ("a", "b"))
        count = Count()
        differ(
            "two axes, progress",
            KERNEL.matvec(z, x, c),
            KERNEL.matvec(z, x, c, mesh=other, progress=count),
        )
        assert sum(count.counts) == len(z)
        both("k columns, one query", lambda mesh: KERNEL.phi_matmul(z[:1], x[:1], x[:1], mesh=mesh))
        # Under a trace results stay on the mesh.
        both(
            "grad",
            lambda mesh: jax.grad(lambda *a: jnp.sum(KERNEL.matvec(*a, mesh=mesh) ** 2), (0, 1, 2))(
                z, x, c
            ),
        )
        f = pk.fit(KERNEL, x, y, mesh=mesh)
        differ("jit, vmap", f(z), jax.jit(jax.vmap(lambda point: f(point[None])[0]))(z))
    return differences


INF = float("inf")
N = 210 + processes  # 211 is a prime; 212 is even, which the compiler treats differently
# Loss, dynamics, and the bytes a number of its rows of the Gram matrix that each device may take: 9
# hold it in float64, 0 leave tiles.
CASES = {
    1: {
        "interpolation": ("squared", pk.GradientFlow(INF), 9),
        "heavy ball": ("logistic", pk.HeavyBall(0.3, 40), 0),
    },
    2: {"logistic flow": ("logistic", pk.GradientFlow(3.0), 9)},
}


def solve(mesh) -> dict[str, float]:
    """By products on the mesh, against the direct solution on one device, in float64."""
    rng, differences = np.random.default_rng(7), {}
    x, z = (rng.normal(size=(k, 6)) for k in (N, 9))
    y = np.where(x[:, 0] + rng.normal(size=N) > 0, 1.0, -1.0)
    share = -(-N // mesh.size)

    def train(kernel, loss, dynamics, memory=None, mesh=None):
        settings = {"loss": loss, "dynamics": dynamics, "initial": lambda z: jnp.sin(z[:, 0])}
        f = pk.fit(kernel, x, y, memory=memory, mesh=mesh, **settings)
        assert f.status == "ok", f.status
        return f.stats, np.asarray(f(jnp.asarray(z)))

    with jax.enable_x64(True):
        for case, (loss, dynamics, number) in CASES[processes].items():
            # The preconditioner of interpolation takes some columns on one device.
            kernel = KERNEL if case == "interpolation" else Recording(0.2, train_bias=True)
            ROWS.clear()
            stats, found = train(kernel, loss, dynamics, number * N * share, mesh)
            assert stats["gram_held"] == (number > 0)
            # No device computed more than its part.
            assert case == "interpolation" or max(ROWS) == share, ROWS
            exact = train(KERNEL, loss, dynamics)[1] if process == 0 else found
            differences[case] = float(np.abs(found - exact).max() / np.abs(exact).max())
    return differences


def train_ensembles(mesh) -> dict[str, float]:
    """Five networks, with minibatches and a rate that falls."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(17, 5)).astype(np.float32)
    y = np.where(rng.normal(size=(5, 17)) > 0, 1.0, -1.0)
    draw = jax.vmap(lambda key: TwoLayerNetwork.init(5, 12, 0.2, True, key=key))
    nets = draw(jax.random.split(jax.random.key(0), 5))

    def run(mesh):
        def update(updates, state, params=None):
            # On the mesh the rate is right only where each of its devices trains.
            rate = 0.5 if mesh is None else 0.5 * jax.lax.psum(1, "i") / mesh.size
            return jax.tree.map(lambda g: -rate * g, updates), state

        # What couples members sees those that there are, without padding.
        settings = {
            "plateau": Plateau(0.5, 0, 0.5),
            "observe": lambda f: f(x) - f(x).mean(0),
            "trace_at": (3,),
        }
        optimizer = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
        return ensemble(
            nets,
            x,
            y,
            optimizer=optimizer,
            loss="logistic",
            steps=9,
            batch_size=5,
            **settings,
            mesh=mesh,
            key=jax.random.key(1),
        )

    many = run(mesh)
    one = run(None) if process == 0 else many
    assert many[0].weight.shape == (5, 12, 5) and many[1].observed.shape == (5, 3, 17)
    assert len(np.unique(many[1].rate_scale)) > 1

    def off(a, b):
        a, b = np.asarray(a, float), np.asarray(b, float)
        return float(np.abs(a - b).max() / (np.abs(a).max() or 1))

    return {"ensemble": max(jax.tree.leaves(jax.tree.map(off, one, many)))}


def explicit_axes(mesh) -> dict[str, float]:
    """Arrays sharded on the explicit axes that `jax.make_mesh` makes, with and without
    `jax.set_mesh`, and predictors under `jax.shard_map`, against ordinary arrays.
    """
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    rng, differences = np.random.default_rng(3), {}
    x, z = (rng.normal(size=(rows, 5)).astype(np.float32) for rows in (8, 24))
    y, coef = np.where(x[:, 0] > 0, 1.0, -1.0), rng.normal(size=8).astype(np.float32)
    f = pk.fit(KERNEL, x, y)
    # Whatever the kernel, attacks and experiments handle its numbers; this one compiles fast.
    plain = pk.RBF(2.0)
    attacked = pk.fit(plain, x, y, loss="squared")
    net = TwoLayerNetwork.init(5, 8, key=jax.random.key(0))
    settings: Any = {"optimizer": optax.sgd(0.1), "steps": 2, "trace_at": ()}

    def train(x, y):
        return pk.networks.train(net, x, y, **settings)[0].weight

    def learn(x, y):
        learner = pk.KernelLearner(plain)
        r = pk.learn_from_perturbations(learner, (x, y), size=1.0, key=jax.random.key(0))
        return r.g(x), r.perturbation.delta, r.diagnosis

    # What an experiment does for KERNEL alone.
    def cosine(x, y):
        data = pk.Dataset(x, y)
        p = pk.perturb(f, data.inputs, data.targets, size=0.1)
        return _cosine(pk.KernelLearner(KERNEL), data, data.inputs, p)

    def linearity(x, y, z):
        x, y, z = map(with_automatic_axes, (x, y, z))
        return assess(KERNEL, x, y, z, jnp.ones(len(z)), f=lambda z: z[:, 0])

    calls = {
        "ntk": (KERNEL.ntk, (x, z)),
        "matvec": (KERNEL.matvec, (z, x, coef)),
        "fit": (lambda x, y, z: pk.fit(KERNEL, x, y, loss="squared")(z), (x, y, z)),
        "perturb": (lambda x, y: pk.perturb(f, x, y, size=0.1).delta, (x, y)),
        "attack": (lambda x, y: pk.attack(attacked, x, y, size=0.1, steps=2).delta, (x, y)),
        "learn": (learn, (x, y)),
        "cosine": (cosine, (x, y)),
        "linearity": (linearity, (x, y, z)),
        "train": (train, (x, y)),
        "gradient": (jax.grad(lambda z: jnp.sum(f(z) ** 2)), (z,)),
        "jit": (jax.jit(f.__call__), (z,)),
        "jit of gradients": (jax.jit(lambda z: (f.input_gradient(z), jax.grad(total)(z))), (z,)),
    }

    def total(z):
        return jnp.sum(f(z) ** 2)

    # What is compiled in parts, and known from above.
    eager = {"jit": f, "jit of gradients": lambda z: (f.input_gradient(z), jax.grad(total)(z))}

    def on_mesh(array):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec("i")))

    def differ(name, wanted, found):
        for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
            a, b = np.asarray(a, float), np.asarray(b, float)
            off = float(np.abs(a - b).max() / (np.abs(a).max() or 1))
            differences[name] = max(differences.get(name, 0.0), off)

    for name, (call, arguments) in calls.items():
        wanted = eager.get(name, call)(*arguments)
        sharded = [on_mesh(a) for a in arguments]
        differ(name, wanted, call(*sharded))
        if name in ("matvec", "fit", "attack", "gradient"):
            with jax.set_mesh(mesh):
                differ(f"{name}, set_mesh", wanted, call(*sharded))
    wanted = f(z), f.input_gradient(z), jax.grad(total)(z)
    for check in (True, False):
        split = {"mesh": mesh, "in_specs": PartitionSpec("i"), "out_specs": PartitionSpec("i")}
        mapped = jax.shard_map(f, **split, check_vma=check)
        gradients = jax.shard_map(f.input_gradient, **split, check_vma=check)

        def everything(z, mapped=mapped, gradients=gradients):
            return mapped(z), gradients(z), jax.grad(lambda z: jnp.sum(mapped(z) ** 2))(z)

        differ(f"shard_map {check}", wanted, jax.jit(everything)(on_mesh(z)))
        # Outside of `jit` every operation is a program of its own: one of the two functions.
        one = 0 if check else 1
        differ(f"eager shard_map {check}", wanted[one], (mapped, gradients)[one](on_mesh(z)))

    # Points that every device holds get the sum of the devices' derivatives.
    def of_points(x):
        specs = (PartitionSpec("i"), PartitionSpec())
        split = {"mesh": mesh, "in_specs": specs, "out_specs": PartitionSpec("i")}
        return jax.shard_map(lambda z, x: KERNEL.matvec(z, x, coef), **split)(on_mesh(z), x).sum()

    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(of_points))(jnp.asarray(x))
    of_x = jax.grad(lambda x: KERNEL.matvec(z, x, coef).sum())(jnp.asarray(x))
    differ("points in shard_map", of_x, found)
    return differences


if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", processes, process, heartbeat_timeout_seconds=10
    )
assert jax.device_count() == devices * processes

mesh = jax.make_mesh((jax.device_count(),), ("i",))
print(json.dumps(compare(mesh) | solve(mesh) | train_ensembles(mesh)), flush=True)
if processes == 1:
    print(json.dumps(explicit_axes(mesh)))
else:  # a million products in one compiled iteration
    x = np.random.default_rng(0).normal(size=(20, 3))
    settings = {"loss": "logistic", "memory": 0, "mesh": mesh}
    pk.fit(KERNEL, x, np.sign(x[:, 0]), dynamics=pk.HeavyBall(0.1, 3), **settings)
    print("done", flush=True)
    pk.fit(KERNEL, x, np.sign(x[:, 0]), dynamics=pk.HeavyBall(0.1, 10**6), **settings)
