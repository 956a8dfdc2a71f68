"""One process of a run on many devices, started by test_mesh.py: `mesh_worker.py TASK DEVICES PROCESSES PROCESS PORT`.

Every process has DEVICES virtual CPU devices; process 0 prints what differs from one device, as JSON.
"""

import json
import os
import sys
import time

task, devices, processes, process, port = sys.argv[1], *map(int, sys.argv[2:])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import perturbkernel as pk  # noqa: E402

KERNEL = pk.TwoLayerNTK(0.2, train_bias=True)


class Count:
    def __init__(self):
        self.counts = []

    def update(self, k):
        self.counts.append(k)


def compare(mesh) -> dict[str, float]:
    """The largest difference from one device, relative to the largest number, of everything that takes a mesh."""
    rng = np.random.default_rng(0)
    x, z, c = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((17, 5), (11, 5), (17,)))
    y, differences = jnp.sign(c), {}

    def differ(name, one, many):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            a, b = np.asarray(a, float), np.asarray(b, float)  # fails unless this process holds the whole result
            assert a.shape == b.shape
            off = float(np.abs(a - b).max() / (np.abs(a).max() or 1))
            differences[name] = max(differences.get(name, 0.0), off)

    def both(name, call):
        many = call(mesh)
        differ(name, call(None) if process == 0 else many, many)  # every process computes, the first compares

    both("matvec", lambda mesh: KERNEL.matvec(z, x, c, mesh=mesh))
    both("input_gradient", lambda mesh: KERNEL.input_gradient(x, x, c, mesh=mesh))
    both("fit", lambda mesh: pk.fit(KERNEL, x, y, mesh=mesh)(z))

    def learn(mesh):
        learner = pk.KernelLearner(KERNEL, mesh=mesh)
        return pk.learn_from_perturbations(learner, pk.Dataset(x, y), scenario="b", size=1.0, key=jax.random.key(0))

    def summary(mesh):
        r = learn(mesh)
        return r.g(x), r.perturbation, r.cosine, r.diagnosis

    both("learn_from_perturbations", summary)
    if jax.process_count() == 1:
        other = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, -1), ("a", "b"))
        count = Count()
        differ("two axes, progress", KERNEL.matvec(z, x, c), KERNEL.matvec(z, x, c, mesh=other, progress=count))
        assert sum(count.counts) == len(z)
        both("k columns, one query", lambda mesh: KERNEL.phi_matmul(z[:1], x[:1], x[:1], mesh=mesh))
        # Under a trace results stay on the mesh.
        both("grad", lambda mesh: jax.grad(lambda *a: jnp.sum(KERNEL.matvec(*a, mesh=mesh) ** 2), (0, 1, 2))(z, x, c))
        f = pk.fit(KERNEL, x, y, mesh=mesh)
        differ("jit, vmap", f(z), jax.jit(jax.vmap(lambda point: f(point[None])[0]))(z))
    return differences


if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process, heartbeat_timeout_seconds=10)
assert jax.device_count() == devices * processes

mesh = jax.make_mesh((jax.device_count(),), ("i",))
if task == "compare":
    print(json.dumps(compare(mesh)))
else:  # "for ever": until another process is gone
    x = jnp.ones((8, 3))
    while True:
        KERNEL.matvec(x, x, x[:, 0], mesh=mesh)
        print("done", flush=True)
        time.sleep(0.1)
