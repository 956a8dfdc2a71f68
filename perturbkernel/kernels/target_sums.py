"""What the random targets multiply in a second network, from its kernel at points moved both ways.

With h_n^+-(z) = K(o_n +- delta_n, z) a network trained on (o_n + y_n delta_n, y_n) by the identity
loss from zero is, per unit of time,

    g(z) = (1/N) sum_n [s_n(z) + y_n b_n(z)],    s_n = (h_n^+ - h_n^-)/2,  b_n = (h_n^+ + h_n^-)/2,

where only the second term depends on the targets y (theory: 12.3). The functions take arrays of
NumPy as well as of JAX.
"""

from typing import Any, NamedTuple


class Halves(NamedTuple):
    """s and b, shaped like h+ and h-: half their difference, and half their sum."""

    signal: Any
    b: Any


def halves(plus: Any, minus: Any) -> Halves:
    """s and b from h+ and h-, or their sums over n from weighted sums of h+ and h-."""
    return Halves(signal=(plus - minus) / 2, b=(plus + minus) / 2)


class TargetSums(NamedTuple):
    """Sums over n, (m,) each: of s, b and b^2, of the shift b_n - reference and of its square.

    The variance over balanced targets is that of b around any constant; in float32 b itself would
    cancel.
    """

    signal: Any
    b: Any
    b_squared: Any
    shift: Any
    shift_squared: Any


def target_sums(half: Halves, reference: Any, count: Any = None) -> TargetSums:
    """The sums over the points of a tile.

    Args:
        half: of the tile, (m, n).
        reference: (m,), about what b is for most points.
        count: (1, n), how often each point counts; None for once.

    Example:
        sums = target_sums(halves(plus, minus), reference=(plus[:, 0] + minus[:, 0]) / 2)
    """
    signal, b = half
    shift = b - reference[:, None]
    terms = TargetSums(signal, b, b**2, shift, shift**2)
    if count is not None:
        terms = [term * count for term in terms]
    return TargetSums(*[term.sum(axis=1) for term in terms])
