"""The law of a trained network of any width, from a pool of simulated neurons (theory: 14.1, 14.2).

With alpha standard normal, u(s; theta, z) a neuron's pre-activation at z after signed time s, and
r = T / sqrt(width), a network trained for time T with the identity loss is

    f_T(z) = (1/sqrt(width)) sum_i X_i,   X = alpha phi(u(alpha r; theta, z)),

a sum of independent terms of one law: no laziness is assumed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import check_choice, check_count, check_key, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.two_layer import Centred, TwoLayerNetwork, check_width
from perturbkernel.theory.arguments import as_labels, as_points, double, gate_mean_square, lengths
from perturbkernel.theory.law.estimates import Average, Estimate, standard_error
from perturbkernel.theory.law.moments import Queries, covariance, psi, ratio, root, variance
from perturbkernel.theory.law.neurons import Neurons
from perturbkernel.theory.law.paths import Paths, Schedule
from perturbkernel.theory.matching import STARTS
from perturbkernel.theory.pairs import kernel_sum

#: How far beyond the last record a scaled time may lie, relatively: rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class NeuronLaw:
    """The law of a network of any width and training time; `simulate_neurons` makes it.

    It holds a pool of neurons at some scaled times r = time / sqrt(width), and answers for every
    width and time up to the largest of them. At recorded times the pool is what descent, or the
    flow, made of it; between two of them neurons are placed on the straight line, and before the
    first on the parabola that leaves with the right velocity.

    For flow the law depends on width and time through r alone (and on the factor sqrt(width) of
    the mean). For descent it depends on learning rate / sqrt(width), the number of steps, and the
    momentum: it is exact at the width and rate that it was made for, and at every other width with
    the rate scaled by sqrt(width); elsewhere as near as descent is to flow.

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

    def _queries(self, z) -> Queries:
        z = as_points(z, "z", like=self.x)
        f_hat = kernel_sum(self.kernel, z, self.x, self.y / len(self.x))
        return Queries(z, f_hat, gate_mean_square(self.kernel) * lengths(z) ** 2)

    def _over_blocks(
        self, z, scaled: float, function: Callable[[Neurons, Queries, slice], Average]
    ) -> Estimate:
        """The estimate of averages that are computed in blocks of queries."""
        neurons = self.at(scaled)
        queries = self._queries(z)
        values, errors = [], []
        pull = np.zeros(self.count)
        for block in neurons.blocks(len(queries.z)):
            average = function(neurons, queries.part(block), block)
            values.append(average.value)
            errors.append(average.standard_error)
            pull += average.influence.sum(axis=1)
        value = np.concatenate(values)
        mean_error = float(standard_error(pull / len(value)))
        return Estimate(value, np.concatenate(errors), float(value.mean()), mean_error)

    def mean(
        self, z: Float[ArrayLike, "m d"], *, width: int, time: float | None = None
    ) -> Estimate:
        """E f_T(z) over initialisations, (m,), with its standard error.

            E f_T(z) = T Psi_z(r),   Psi_z(r) = (1/r) E[alpha phi(u(alpha r; theta, z))]

        Psi_z(0) = f_hat(z), and the error vanishes with r: what is simulated is the difference from
        the motion with fixed gates, whose mean is f_hat. The initial function, of mean zero, is
        left out of the average. `time` left out: the largest. Theory: 14.2.
        """
        scaled = self.scaled_time(width, time)
        total = scaled * width**0.5

        def one(neurons, queries, block):
            average = psi(neurons, queries)
            return Average(total * average.value, total * average.influence)

        return self._over_blocks(z, scaled, one)

    def std(
        self,
        z: Float[ArrayLike, "m d"],
        *,
        width: int,
        time: float | None = None,
        start: str = "random",
    ) -> Estimate:
        """The standard deviation of f_T(z) over initialisations, (m,), with its standard error.

            Var f_T(z) = E[X^2] - r^2 Psi_z(r)^2,   X = alpha phi(u(alpha r; theta, z))

        At r = 0 sqrt(Sigma(z, z)), exactly. `start`: "random", f; "centred", f - f0; "doubled",
        networks of antisymmetric pairs, for which the pool has to be antithetic. Theory: 14.2.
        """
        self._check_start(start, width)
        scaled = self.scaled_time(width, time)

        def one(neurons, queries, block):
            return root(variance(neurons, queries, start)[1])

        return self._over_blocks(z, scaled, one)

    def covariance(
        self,
        z: Float[ArrayLike, "m d"],
        *,
        width: int,
        time: float | None = None,
        start: str = "random",
    ) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]:
        """Cov(f_T(z), f_T(z')) over initialisations, (m, m), and its standard errors, (m, m).

            E[alpha^2 phi(u(alpha r; z)) phi(u(alpha r; z'))] - r^2 Psi_z Psi_z'

        `start` as in `std`. Theory: 14.2.
        """
        self._check_start(start, width)
        neurons = self.at(self.scaled_time(width, time))
        queries = self._queries(z)
        mean = neurons.scaled_time * psi(neurons, queries).value
        lazy = double(self.kernel.nngp, queries.z)
        return covariance(neurons, queries.z, lazy, mean, start)

    def expected_accuracy(
        self,
        z: Float[ArrayLike, "m d"],
        labels: Float[ArrayLike, " m"],
        *,
        width: int,
        time: float | None = None,
        start: str = "random",
    ) -> Estimate:
        """The probability that sgn f_T(z) is the label, (m,), and its mean over the points.

        From mean and standard deviation by the normal approximation,
        N_c(label T Psi / std): its own error is of order 1 / sqrt(width). `networks` of the pool
        have the exact law. Theory: 14.2.
        """
        self._check_start(start, width)
        scaled = self.scaled_time(width, time)
        total = scaled * width**0.5
        z = as_points(z, "z", like=self.x)
        labels = as_labels(labels, "labels", len(z))

        def one(neurons, queries, block):
            mean, spread = variance(neurons, queries, start)
            signed = total * labels[block]
            margin = Average(signed * mean.value, signed * mean.influence)
            score = ratio(margin, root(spread))
            density = np.exp(-(score.value**2) / 2) / np.sqrt(2 * np.pi)
            return Average(double(ndtr, score.value), density * score.influence)

        return self._over_blocks(z, scaled, one)

    def draw(
        self,
        *,
        width: int,
        time: float | None = None,
        start: str = "random",
        key: PRNGKeyArray,
    ) -> TwoLayerNetwork | Centred:
        """A network cut from the pool: it has the law of one that was trained, exactly.

        Neurons are drawn without replacement, each with one of its signs. Networks of different
        keys share neurons: independent given the pool they are not; `networks` are.

        Example:
            net = law.draw(width=100, time=9.1, key=jax.random.key(1))
            net(z), net.input_gradient(z)
        """
        nets = self.networks(1, width=width, time=time, start=start, key=key)
        return jax.tree.map(lambda a: a[0], nets)

    def networks(
        self,
        count: int | None = None,
        *,
        width: int,
        time: float | None = None,
        start: str = "random",
        key: PRNGKeyArray,
    ) -> TwoLayerNetwork | Centred:
        """`count` independent networks cut from the pool, an ensemble: arrays (count, width, ...).

        Each has the law of a network of this width that was trained for `time` with the identity
        loss. Left out, `count` is as many as the pool has. `start`: "random"; "centred", f - f0;
        "doubled", antisymmetric pairs of neurons. Theory: 14.1.
        """
        self._check_start(start, width)
        check_key(key)
        independent = width // 2 if start == "doubled" else width
        count = max(self.count // independent, 1) if count is None else count
        check_count(count, "count")
        if count * independent > self.count:
            raise ValueError(
                f"neurons must be at least {count * independent:,} independent ones for {count:,} "
                f"networks of width {width:,}; the pool has {self.count:,}"
            )
        order_key, sign_key = jax.random.split(key)
        chosen = np.asarray(jax.random.permutation(order_key, self.count))[: count * independent]
        neurons = self.at(self.scaled_time(width, time)).part(chosen)
        if start != "doubled" and self.antithetic:
            coins = np.asarray(jax.random.bernoulli(sign_key, shape=(len(chosen),)))
            neurons = neurons.one_sign(coins.astype(int))
        return self._ensemble(neurons, count, width, start)

    def _ensemble(
        self, neurons: Neurons, count: int, width: int, start: str
    ) -> TwoLayerNetwork | Centred:
        """Networks of consecutive neurons; the two signs of a start in one network."""
        dtype = self.paths.moved.dtype

        def network(parameters):
            rows = np.broadcast_to(parameters, neurons.moved.shape)
            grouped = rows.reshape(len(rows), count, -1, rows.shape[-1]).swapaxes(0, 1)
            grouped = jnp.asarray(grouped.reshape(count, width, -1), dtype)
            signs = neurons.readout.reshape(len(rows), count, -1).swapaxes(0, 1)
            readout = jnp.asarray(signs.reshape(count, width) / width**0.5, dtype)
            return TwoLayerNetwork(
                grouped[..., :-1],
                grouped[..., -1],
                readout,
                self.kernel.slope,
                self.kernel.train_bias,
            )

        trained = network(neurons.trained)
        return Centred(trained, network(neurons.start)) if start == "centred" else trained

    def _check_start(self, start: str, width: int) -> None:
        check_choice(start, "start", STARTS)
        check_width(width, start == "doubled")
        if start == "doubled" and not self.antithetic:
            raise ValueError(
                "start must be 'random' or 'centred' for this pool: a doubled network needs both "
                "signs of every readout; got 'doubled'. simulate_neurons(antithetic=True) has them"
            )
