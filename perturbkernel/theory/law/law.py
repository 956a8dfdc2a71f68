"""The law of a trained network of any width, from a pool of simulated neurons (theory: 14.1, 14.2).

With alpha standard normal, u(s; theta, z) a neuron's pre-activation at z after signed time s, and
r = T / sqrt(width), a network trained for time T with the identity loss is

    f_T(z) = (1/sqrt(width)) sum_i X_i,   X = alpha phi(u(alpha r; theta, z)),

a sum of independent terms of one law: no laziness is assumed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import check_choice, check_count, check_key
from perturbkernel.networks.two_layer import Centred, TwoLayerNetwork, check_width
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    double,
    gate_mean_square,
    lengths,
    ndtr,
)
from perturbkernel.theory.law.cuts import (
    as_mean,
    ensemble,
    gradient,
    independent_neurons,
    output,
    over_networks,
)
from perturbkernel.theory.law.estimates import Average, Estimate, standard_error
from perturbkernel.theory.law.gradients import GradientMoments, mean_gradient, square
from perturbkernel.theory.law.moments import Queries, covariance, psi, ratio, root, variance
from perturbkernel.theory.law.neurons import Neurons
from perturbkernel.theory.law.pool import Pool
from perturbkernel.theory.leading import direction, is_rounding
from perturbkernel.theory.matching import STARTS
from perturbkernel.theory.pairs import kernel_sum


@dataclass(frozen=True, eq=False, repr=False)
class NeuronLaw(Pool):
    """The law of a network of any width and training time; `simulate_neurons` makes it.

    It holds a pool of neurons at some scaled times r = time / sqrt(width), and answers for every
    width and time up to the largest of them; every number has the standard error of its simulation.

    For flow the law depends on width and time through r alone (and on the factor sqrt(width) of
    the mean). For descent it depends on learning rate / sqrt(width), the number of steps, and the
    momentum: it is exact at the width and rate that it was made for, and at every other width with
    the rate scaled by sqrt(width); elsewhere as near as descent is to flow.

    Attributes: those of `Pool`. `at` and `neurons` give the pool itself.

    Example:
        >>> import jax, numpy as np, perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> law = pk.theory.simulate_neurons(
        ...     pk.TwoLayerNTK(), x, y, dynamics=pk.HeavyBall(0.1, 3), width=100, neurons=400,
        ...     key=jax.random.key(0),
        ... )
        >>> mean, std = law.mean(z, width=100), law.std(z, width=100)
        >>> variance, _ = law.covariance(z, width=100)
        >>> bool(np.allclose(std.value**2, np.diag(variance)))
        True
        >>> p = law.expected_accuracy(z, [1], width=100, start="centred")
        >>> cosine, gradient = law.cosine(z, width=100), law.gradient(z, width=100)
        >>> bool(p.value > 0.9), cosine.value.shape, gradient.mean.shape
        (True, (1,), (1, 2))
        >>> one = law.draw(width=100, key=jax.random.key(1))
        >>> two = law.networks(2, width=100, key=jax.random.key(1))
        >>> one(z).shape, two(z).shape, law.mean_network(width=100)(z).shape
        ((1,), (2, 1), (1,))
    """

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
        method: str = "normal",
    ) -> Estimate:
        """The probability that sgn f_T(z) is the label, (m,), and its mean over the points.

        method: "normal", N_c(label E f / std f) from mean and standard deviation, whose own error
        vanishes as 1 / sqrt(width); "networks", the share of the networks that the pool is cut
        into: exact, and noisier. `start` as in `std`. Theory: 14.2.
        """
        self._check_start(start, width)
        check_choice(method, "method", ("normal", "networks"))
        scaled = self.scaled_time(width, time)
        z = as_points(z, "z", like=self.x)
        labels = as_labels(labels, "labels", len(z))
        if method == "networks":

            def is_right(network: Neurons) -> np.ndarray:
                signs = np.sign(output(network, z, start))
                return signs == labels

            return over_networks(self.at(scaled), width, start, is_right)
        total = scaled * width**0.5

        def one(neurons, queries, block):
            mean, spread = variance(neurons, queries, start)
            signed = total * labels[block]
            margin = Average(signed * mean.value, signed * mean.influence)
            score = ratio(margin, root(spread))
            probability = ndtr(score.value)
            exponent = -(score.value**2) / 2
            density = np.exp(exponent) / np.sqrt(2 * np.pi)
            return Average(probability, density * score.influence)

        return self._over_blocks(z, scaled, one)

    def gradient(
        self, z: Float[ArrayLike, "m d"], *, width: int, time: float | None = None
    ) -> GradientMoments:
        """Moments of the input gradient over initialisations: its mean (m, d) and mean square.

            E grad f_T(z) = T grad Psi_z(r),
            E |grad f_T(z)|^2 = E |alpha phi'(u) w|^2 + (width - 1) |r grad Psi_z(r)|^2

        with u and w those of a trained neuron. The paper's direction v, the mean while gates stay,
        is a control variate; what moving gates add is simulated, with an error that grows as r
        tends to 0, as 1 / sqrt(r). Theory: 14.3.
        """
        scaled = self.scaled_time(width, time)
        if scaled == 0:
            raise ValueError("time must be > 0 for moments of the trained gradient; got 0")
        neurons = self.at(scaled)
        z = as_points(z, "z", like=self.x)
        v = direction(self.kernel, self.x, self.y, z)
        lazy = gate_mean_square(self.kernel)
        total = scaled * width**0.5
        parts = []
        for block in neurons.blocks(len(z)):
            mean = mean_gradient(neurons, z[block], v[block])
            length = square(neurons, z[block], lazy, mean, width)
            error = total * np.sqrt(mean.square_error)
            parts.append((total * mean.value, error, length.value, length.standard_error))
        return GradientMoments(*map(np.concatenate, zip(*parts, strict=True)))

    def cosine(
        self,
        z: Float[ArrayLike, "m d"],
        *,
        width: int,
        time: float | None = None,
        start: str = "random",
        method: str = "networks",
    ) -> Estimate:
        """The cosine of grad f_T(z) with the paper's direction v(z), (m,), and its mean.

        method: "networks", the mean over the networks that the pool is cut into; "moments",
        E<grad f, v> / (|v| sqrt(E |grad f|^2)), which is below it at small width, where
        alpha^2 has heavy tails, and exists for any width. NaN where v is zero. Theory: 14.3.
        """
        self._check_start(start, width)
        check_choice(method, "method", ("networks", "moments"))
        scaled = self.scaled_time(width, time)
        z = as_points(z, "z", like=self.x)
        v = direction(self.kernel, self.x, self.y, z)
        length = np.linalg.norm(v, axis=1)
        length = np.where(is_rounding(self.kernel, self.x, v), np.nan, length)
        unit = v / length[:, None]

        def cosine(network: Neurons) -> np.ndarray:
            own = gradient(network, z, start)
            return np.sum(own * unit, axis=1) / np.linalg.norm(own, axis=1)

        if method == "networks":
            return over_networks(self.at(scaled), width, start, cosine)
        if start != "random":
            raise ValueError(f"start must be 'random' for the ratio of moments; got {start!r}")
        lazy = gate_mean_square(self.kernel)

        def one(neurons, queries, block):
            mean = mean_gradient(neurons, queries.z, v[block])
            second = square(neurons, queries.z, lazy, mean, width)
            along = scaled * width**0.5 / length[block]
            product = mean.along(v[block])
            dot = Average(along * product.value, along * product.influence)
            return ratio(dot, root(second))

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
        independent = independent_neurons(width, start)
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
        dtype = canonicalize_dtype(self.paths.moved.dtype)
        return ensemble(neurons, self.kernel, count, width, start, dtype)

    def mean_network(self, *, width: int, time: float | None = None) -> TwoLayerNetwork | Centred:
        """E f_T as a predictor: the mean of all networks of a width, with its input gradient.

            E f_T(z) = T Psi_z(r),   r = T / sqrt(width)

        As width grows at fixed r a trained network is this function, up to a random part whose
        share vanishes as 1 / sqrt(width): the deterministic limit in which features move. One
        network of all neurons of the pool, in which the initial function cancels between
        antithetic neurons, and is subtracted without them. Its errors are those of a plain average
        over the pool; `mean` has smaller ones, as numbers. Theory: 14.2.
        """
        neurons = self.at(self.scaled_time(width, time))
        dtype = canonicalize_dtype(self.paths.moved.dtype)

        def averaged(parameters):
            both = np.broadcast_to(parameters, neurons.moved.shape)
            return as_mean(both, neurons.readout, width, self.kernel, dtype)

        trained = averaged(neurons.trained)
        return trained if self.antithetic else Centred(trained, averaged(neurons.start))

    def _check_start(self, start: str, width: int) -> None:
        check_choice(start, "start", STARTS)
        check_width(width, start == "doubled")
        if start == "doubled" and not self.antithetic:
            raise ValueError(
                "start must be 'random' or 'centred' for this pool: a doubled network needs both "
                "signs of every readout; got 'doubled'. simulate_neurons(antithetic=True) has them"
            )
