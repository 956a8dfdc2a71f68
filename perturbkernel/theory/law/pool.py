"""A pool of simulated neurons, at every scaled time up to the largest recorded (theory: 14.1)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from perturbkernel.checks import check_count, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.law.neurons import Neurons
from perturbkernel.theory.law.paths import Paths, Schedule

#: How far beyond the last record a scaled time may lie, relatively: rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Pool:
    """Neurons at some scaled times r = time / sqrt(width), and between them.

    At recorded times the pool is what descent, or the flow, made of it; between two of them neurons
    are placed on the straight line, and before the first on the parabola that leaves with the right
    velocity.

    Attributes:
        kernel: slope, and whether biases are trained.
        x, y: the training set, (n, d) and (n,), float64.
        schedule: the steps that neurons took.
        records: (records,), the numbers of steps after which they were recorded.
        readout: alpha, (signs, k), of k independent starts; signs is 2 where each is followed with
            alpha and -alpha.
        start: (k, d + 1), initial weights and biases.
        paths: their displacements, in coefficients of the rows (x_n, c) where n <= d.
    """

    kernel: TwoLayerNTK
    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    schedule: Schedule
    records: np.ndarray
    readout: Float[np.ndarray, "signs k"]
    start: Float[np.ndarray, "k d+1"]
    paths: Paths

    @cached_property
    def scaled_times(self) -> Float[np.ndarray, " records"]:
        """The recorded values of r = time / sqrt(width)."""
        return self.schedule.scaled_times[self.records]

    @property
    def antithetic(self) -> bool:
        """Whether every start is followed with both signs of its readout."""
        return len(self.readout) == 2

    @property
    def count(self) -> int:
        """How many independent neurons the pool has: networks up to this width can be drawn."""
        return self.readout.shape[1]

    def __repr__(self) -> str:
        signs = ", each with both signs of its readout" if self.antithetic else ""
        n, d = self.x.shape
        return (
            f"NeuronLaw({self.kernel.slope=:g}, train_bias={self.kernel.train_bias}, n={n}, "
            f"d={d}, {self.count:,} independent neurons{signs}, "
            f"time / sqrt(width) up to {self.scaled_times[-1]:.4g})"
        ).replace("self.kernel.", "")

    def scaled_time(self, width: int, time: float | None) -> float:
        """r = time / sqrt(width), the last record's if `time` is None."""
        check_count(width, "width")
        largest = float(self.scaled_times[-1])
        if time is None:
            return largest
        check_number(time, "time", low=0)
        scaled = float(time) / width**0.5
        if scaled > largest * (1 + _ROUNDING):
            raise ValueError(
                f"time must be at most {largest * width**0.5:.6g} at width {width}, "
                f"{largest:.4g} sqrt(width), for which neurons were simulated; got {time:g}"
            )
        return min(scaled, largest)

    def neurons(
        self, *, width: int | None = None, time: float | None = None, rows: slice = slice(None)
    ) -> Neurons:
        """The pool, or the starts `rows` of it, as it is at a time of networks of a width.

        `width` left out: at the last record. In float64.
        """
        return self.at(self.scaled_time(width or 1, time), rows)

    def at(self, scaled_time: float, rows: slice = slice(None)) -> Neurons:
        """The pool, or the starts `rows` of it, at r = time / sqrt(width)."""
        readout = self.readout[:, rows].astype(np.float64)
        drift = self.paths.drift[rows].astype(np.float64)
        moved = self._moved(scaled_time, readout, drift, rows)
        return Neurons(
            scaled_time,
            self.kernel.slope,
            readout,
            self.start[rows].astype(np.float64),
            self._weights(drift),
            self._weights(moved),
        )

    def _weights(self, displacement: np.ndarray) -> np.ndarray:
        """Displacements of weights and biases, from their coordinates."""
        n, d = self.x.shape
        if displacement.shape[-1] == d + 1 and n > d:
            return displacement
        bias = np.full((n, 1), float(self.kernel.train_bias))
        return displacement @ np.concatenate([self.x, bias], axis=1)

    def _moved(self, scaled_time: float, readout, drift, rows) -> np.ndarray:
        """Displacements in their coordinates, (signs, k, coordinates), float64."""
        times = self.scaled_times

        def recorded(index: int) -> np.ndarray:
            return self.paths.moved[index][:, rows].astype(np.float64)

        index = int(np.searchsorted(times, scaled_time * (1 - _ROUNDING)))
        late = times[index]
        if abs(scaled_time - late) <= _ROUNDING * late:
            return recorded(index)
        if index == 0:
            share = scaled_time / late
            tangent = readout[:, :, None] * drift
            return scaled_time * (1 - share) * tangent + share**2 * recorded(0)
        early = times[index - 1]
        share = (scaled_time - early) / (late - early)
        return (1 - share) * recorded(index - 1) + share * recorded(index)
