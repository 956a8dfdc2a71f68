"""A pool of neurons at one scaled time: what the one-neuron law is sampled by (theory: 14.1)."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

#: Numbers of one block, neurons by query points.
_BLOCK = 2**22


class Neurons(NamedTuple):
    """Neurons at one scaled time r, as sampled: `signs` is 2 where every start is followed with
    readout alpha and -alpha, else 1.

    A network of width m, at time r sqrt(m), is m independent columns of this pool, with readouts
    alpha / sqrt(m).

    Example:
        >>> import jax, numpy as np, perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], np.array([[2.0, 1.0]])
        >>> law = pk.theory.simulate_neurons(
        ...     pk.TwoLayerNTK(), x, y, dynamics=pk.HeavyBall(0.1, 3), width=100, neurons=400,
        ...     key=jax.random.key(0),
        ... )
        >>> pool = law.neurons(width=100)
        >>> pool.terms(z).shape, pool.part(slice(0, 10)).start.shape, pool.trained.shape
        ((2, 200, 1), (10, 3), (2, 200, 3))
        >>> one = pool.one_sign(np.zeros(200, int))
        >>> one.readout.shape, one.outputs(z).u.shape, next(one.blocks(1))
        ((1, 200), (200, 1), slice(0, 1, None))

    Attributes:
        scaled_time: r.
        slope: of the leaky ReLU for negative numbers.
        readout: alpha, (signs, k), standard normal.
        start: (k, d + 1), the initial weights and bias (w, b), independent.
        drift: (k, d + 1), G at the start.
        moved: (signs, k, d + 1), the trained weights and bias less the initial ones.
    """

    scaled_time: float
    slope: float
    readout: Float[np.ndarray, "signs k"]
    start: Float[np.ndarray, "k p"]
    drift: Float[np.ndarray, "k p"]
    moved: Float[np.ndarray, "signs k p"]

    @property
    def trained(self) -> Float[np.ndarray, "signs k p"]:
        """The trained weights and bias."""
        return self.start + self.moved

    def part(self, rows) -> "Neurons":
        """Some of the starts: a slice, or indices."""
        return self._replace(
            readout=self.readout[:, rows],
            start=self.start[rows],
            drift=self.drift[rows],
            moved=self.moved[:, rows],
        )

    def one_sign(self, which: Int[np.ndarray, " k"]) -> "Neurons":
        """Each start with one of its signs, `which` of them: independent neurons."""
        rows = np.arange(len(self.start))
        return self._replace(
            readout=self.readout[which, rows][None], moved=self.moved[which, rows][None]
        )

    def terms(
        self, z: Float[np.ndarray, "m d"], *, centred: bool = False
    ) -> Float[np.ndarray, "signs k m"]:
        """The one-neuron outputs alpha phi(u(alpha r; theta, z)), (signs, k, m).

        `centred`: less those at the start, alpha (phi(u(alpha r)) - phi(u(0))).
        """
        outputs = self.outputs(z)
        change = outputs.change
        if not centred:
            change = change + outputs.before
        return self.readout[:, :, None] * change

    def outputs(self, z: Float[np.ndarray, "m d"]) -> "Outputs":
        """What the terms at queries are made of."""
        points = np.concatenate([z, np.ones((len(z), 1))], axis=1)
        u = self.start @ points.T
        step = self.readout * self.scaled_time
        linear = step[:, :, None] * (self.drift @ points.T)
        return Outputs(self.slope, u, linear, self.moved @ points.T)

    def blocks(self, points: int) -> Iterator[slice]:
        """Slices of queries for which (signs, k, queries) numbers fit a block."""
        size = max(1, _BLOCK // max(self.readout.size, 1))
        for first in range(0, points, size):
            yield slice(first, min(first + size, points))


class Outputs(NamedTuple):
    """Pre-activations of a pool at queries.

    Attributes:
        slope: of the leaky ReLU.
        u: (k, m), at the start.
        linear: (signs, k, m), alpha r <G(theta), (z, 1)>, their change while gates stay.
        change_of_u: (signs, k, m), what they changed by.
    """

    slope: float
    u: np.ndarray
    linear: np.ndarray
    change_of_u: np.ndarray

    def gates(self, u: np.ndarray) -> np.ndarray:
        """phi'(u)."""
        return np.where(u > 0, 1.0, self.slope)

    @property
    def before(self) -> np.ndarray:
        """phi(u), (k, m), at the start."""
        return self.gates(self.u) * self.u

    @property
    def first_order(self) -> np.ndarray:
        """phi'(u) alpha r <G(theta), (z, 1)>, (signs, k, m)."""
        return self.gates(self.u) * self.linear

    @property
    def remainder(self) -> np.ndarray:
        """phi(u(alpha r)) - phi(u(0)) less the first order, (signs, k, m).

        Where a gate stays it is phi' times the remainder of u, so that nothing cancels.
        """
        after = self.u + self.change_of_u
        gates = self.gates(self.u)
        opened = self.gates(after) - gates
        of_motion = gates * (self.change_of_u - self.linear)
        return of_motion + opened * after

    @property
    def change(self) -> np.ndarray:
        """phi(u(alpha r)) - phi(u(0)), (signs, k, m)."""
        return self.first_order + self.remainder
