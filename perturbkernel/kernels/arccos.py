"""The arccosine near 1, where that of a rounded number has lost its digits: arccos(1 - e)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# arccos(1 - e) / sqrt(e) on [0, 1]: the degree-7 Chebyshev fit, lowest power first. The angle's
# error is 2.5e-8, below what float32 resolves.
COEFFICIENTS_32 = (
    1.4142135437187682,
    0.11785343938986424,
    0.026470001756987122,
    0.0082441960777098,
    0.0013990023264115925,
    0.00345726244413711,
    -0.002078148734444396,
    0.0012370048538673589,
)
# The same in powers of e - 1/2, for float64: the degree-18 Chebyshev fit, right to 1.4e-16
# relative.
COEFFICIENTS_64 = (
    1.480960979386122,
    0.15203218246933084,
    0.044117253271913064,
    0.017193086871914294,
    0.0077128656093444345,
    0.0037572001469517316,
    0.0019319788745712524,
    0.0010321326230191084,
    0.0005673011573010344,
    0.0003187443501383388,
    0.00018224361459909973,
    0.00010561668625541643,
    6.198746515158411e-05,
    3.7218149420943136e-05,
    2.2229988405199135e-05,
    1.1652074662331296e-05,
    7.105127320085701e-06,
    7.799544714783368e-06,
    4.741069125501733e-06,
)


def arccos_one_minus(e: Array) -> Array:
    """The angle arccos(1 - e) for 0 <= e <= 2, which loses no digits where e is small; NaN beyond.

    Example:
        >>> import jax.numpy as jnp
        >>> bool(jnp.isclose(arccos_one_minus(jnp.array(1.0)), jnp.pi / 2))
        True
    """
    near = jnp.where(e > 1, 2 - e, e)
    # A polynomial in either precision: XLA's own arcsin takes ten times as long.
    in_float32 = e.dtype == jnp.float32
    coefficients = COEFFICIENTS_32 if in_float32 else COEFFICIENTS_64
    at = near if in_float32 else near - 0.5
    *lower, highest = coefficients
    polynomial = jnp.full_like(near, highest)
    for coefficient in reversed(lower):
        polynomial = polynomial * at + coefficient
    angle = jnp.sqrt(near) * polynomial
    return jnp.where(e > 1, np.pi - angle, angle)
