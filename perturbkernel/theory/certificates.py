"""What `certify` returns: which signs are proven, by what margins, and what keeps the others
from being proven; and which signs are cheapest to claim at once.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from perturbkernel._moved import renamed_attribute
from perturbkernel.display import Described


@dataclass(frozen=True)
class SideCertificate:
    """One network's half of a certificate, at every query point.

    Attributes:
        leading: (m,), f_hat, or the normalised g_hat_w: the predicted output per unit of time (and
            size).
        failure: (m,), the bound p on the probability of the other sign.
        parts: what C consists of, (m,) each, at the level delta / (2 m) for every point: "initial",
            "lazy", "concentration", and for g "residual" (C_xi) and "random labels" (psi), all in
            the units of `leading`.
        certified: (m,), the set Z of the theorem for this network alone.
        time, width: as used.
    """

    leading: Float[np.ndarray, " m"]
    failure: Float[np.ndarray, " m"]
    parts: dict[str, Float[np.ndarray, " m"]]
    certified: Bool[np.ndarray, " m"]
    time: float
    width: int

    @property
    def constant(self) -> Float[np.ndarray, " m"]:
        """C(z), the sum of the parts. |leading| > C is enough at a point, whatever the other points
        are.
        """
        return np.sum(list(self.parts.values()), axis=0)

    @property
    def margin(self) -> Float[np.ndarray, " m"]:
        """|leading| - C, positive where the condition of the theorem holds with constants at an
        even split of delta.
        """
        return np.abs(self.leading) - self.constant


@dataclass(frozen=True)
class Certificate(Described):
    """The result of `certify`.

    Attributes:
        f, g: each network's half.
        median_outputs: over the points, of T_f |f_hat| and T_g size |g_hat_w|: what training
            has done. Without it a certificate proves little, since every sign is certified as T
            tends to 0.
        agree: (m,), where f_hat and g_hat_w have the same sign.
        certified: (m,), where sgn f = sgn g is proven, with probability 1 - delta at all of them
            together.
        share: the fraction certified.
        half_width: the smallest width of both networks at which half of the points would be
            certified, or None.
        limits: in words, what keeps the other points from being certified.
        perturbed, targets: (n, d) and (n,), the training set of g.
        delta, size, start: as asked.
    """

    f: SideCertificate
    g: SideCertificate
    median_outputs: tuple[float, float]
    agree: Bool[np.ndarray, " m"]
    certified: Bool[np.ndarray, " m"]
    half_width: int | None
    limits: str
    perturbed: Float[np.ndarray, "n d"] = field(repr=False)
    targets: Float[np.ndarray, " n"] = field(repr=False)
    delta: float
    size: float
    start: str

    @property
    def share(self) -> float:
        return float(self.certified.mean())

    @property
    def progress(self) -> tuple[float, float]:
        """The old name of `median_outputs`, until version 2."""
        renamed_attribute("Certificate.progress", "median_outputs")
        return self.median_outputs

    def __str__(self) -> str:
        f, g = self.f, self.g
        output_f, output_g = self.median_outputs
        half = "none up to 10^12" if self.half_width is None else f"{self.half_width:,}"
        return (
            f"{self.share:.1%} of {len(self.certified)} points certified to agree "
            f"with probability {1 - self.delta:g} "
            f"(f alone {f.certified.mean():.1%}, g alone {g.certified.mean():.1%})\n"
            f"widths {f.width:,} and {g.width:,}, start {self.start}, "
            f"T_f = {f.time:.4g}, T_g = {g.time:.4g}: "
            f"median T_f |f_hat| = {output_f:.3g}, T_g size |g_hat_w| = {output_g:.3g}\n"
            f"smallest width that certifies half of the points: {half}\n{self.limits}"
        )


def describe_limits(
    f: SideCertificate, g: SideCertificate, agree: np.ndarray, certified: np.ndarray
) -> str:
    """Which part of which constant stands in the way at most points that are not certified."""
    left = ~certified
    if not left.any():
        return "nothing is left to certify"
    said = []
    differ = left & ~agree
    if differ.any():
        said.append(f"f_hat and g_hat_w differ in sign at {int(differ.sum())}")
    for name, side in (("f", f), ("g", g)):
        blocked = left & agree & ~side.certified
        if blocked.any():
            size = np.abs(side.leading[blocked])  # not zero, since the signs agree
            shares = {
                part: float(np.median(values[blocked] / size))
                for part, values in side.parts.items()
            }
            largest = max(shares, key=shares.__getitem__)
            leading = "f_hat" if name == "f" else "g_hat_w"
            said.append(
                f"{name} is not certified at {int(blocked.sum())}, mostly by its {largest} "
                f"({shares[largest]:.2g} of |{leading}|, median)"
            )
    if not said:
        said.append("f and g are each certified, but not within one budget of delta")
    return f"of {int(left.sum())} points not certified: " + "; ".join(said)


def cheapest(
    p: Float[np.ndarray, " m"], allowed: Bool[np.ndarray, " m"], budget: float
) -> Bool[np.ndarray, " m"]:
    """The allowed points of smallest p whose sum stays within the budget, (m,)."""
    price = np.where(allowed, p, np.inf)
    order = np.argsort(price, kind="stable")
    within = np.cumsum(price[order]) <= budget
    chosen = np.zeros(len(p), bool)
    chosen[order[within]] = True
    return chosen
