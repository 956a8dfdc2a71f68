"""The Gram matrix of a kernel as a linear operator: held in memory where it fits a budget, in tiles where not."""

import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from perturbkernel import tiles
from perturbkernel.kernels import Kernel
from perturbkernel.tiles import EXACT

# Without a budget: a quarter of what the machine has left, at least 1 GiB and at most 64 GiB.
_SHARE, _LEAST, _MOST = 0.25, 2**30, 2**36


class GramOperator(eqx.Module):
    """V (n,) or (n, k) -> K v, in the dtype of v. A pytree, so that its arrays are arguments of compiled functions.

    Attributes:
        kernel: K.
        x: (n, ...), the points; products in tiles are in their dtype.
        matrix: (n, n) or None; products with it are in its dtype.
    """

    kernel: Kernel
    x: Float[Array, "n ..."]
    matrix: Float[Array, "n n"] | None

    def __call__(self, v: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        if self.matrix is None:
            return jnp.asarray(tiles.matvec(self.kernel, "ntk", self.x, self.x, v.astype(self.x.dtype)), v.dtype)
        return jnp.matmul(self.matrix, v.astype(self.matrix.dtype), precision=EXACT).astype(v.dtype)


def gram_operator(kernel: Kernel, x: Float[Array, "n ..."], memory: float | None = None) -> GramOperator:
    """Products with the Gram matrix of x, in the dtype of x, which is computed once and held if it fits `memory` bytes.

    `memory` None: `available_memory()`. A product with a matrix that is held reads it once; one in tiles evaluates the
    kernel anew, and holds one tile.
    """
    memory = available_memory() if memory is None else memory
    return GramOperator(kernel, x, kernel.ntk(x) if fits(len(x), x.dtype, memory) else None)


def fits(n: int, dtype, memory: float, copies: int = 1) -> bool:
    """Whether `copies` matrices (n, n) take at most `memory` bytes."""
    return copies * n**2 * jnp.dtype(dtype).itemsize <= memory


def available_memory() -> int:
    """Bytes that one Gram matrix may take: a quarter of what the default device has left, within 1 and 64 GiB."""
    stats = jax.devices()[0].memory_stats() or {}  # None on a CPU
    limit = stats.get("bytes_limit")
    left = _host_memory() if limit is None else limit - stats.get("bytes_in_use", 0)
    return int(min(max(_SHARE * left, _LEAST), _MOST))


def _host_memory() -> int:
    """Bytes that the host has left, as far as its system tells; 0 if it does not."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 0
