"""Accuracy under attack, over sizes and norms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from perturbkernel.attacks import iterated
from perturbkernel.attacks.host import uncompiled
from perturbkernel.attacks.minimum_norm import minimum_norm
from perturbkernel.attacks.norms import NORMS, counts
from perturbkernel.attacks.problem import Problem, checked_problem, margins_at
from perturbkernel.attacks.worst_case import worst_case
from perturbkernel.checks import check_choice, check_count, check_number
from perturbkernel.display import Displayed, Table

ATTACKS = ("worst_case", *iterated.METHODS, "minimum_norm")


@dataclass(frozen=True, repr=False)
class RobustAccuracy(Displayed):
    """Which decisions are right, and stay so under attack.

    Attributes:
        norms: their names.
        sizes: (s,), in the units of the inputs, ascending; the first is 0, no attack.
        right: (norms, s, n), whether no perturbation up to that size was found that makes the
            decision wrong. It never grows with the size.
        targets: (n,), the true labels.
        attack: its name.
    """

    norms: tuple[str, ...]
    sizes: Float[np.ndarray, " s"]
    right: Bool[np.ndarray, "norms s n"]
    targets: np.ndarray
    attack: str

    @property
    def classes(self) -> np.ndarray:
        """The labels that there are, (k,), ascending."""
        return np.unique(self.targets)

    @property
    def accuracy(self) -> Float[np.ndarray, "norms s"]:
        """The share of inputs that stay right."""
        return self.right.mean(2)

    @property
    def of_class(self) -> Float[np.ndarray, "norms s k"]:
        """The same, of the inputs of each of `classes`."""
        shares = [self.right[:, :, self.targets == label].mean(2) for label in self.classes]
        return np.stack(shares, axis=2)

    def table(self, certified: Any = None) -> Table:
        """Columns of one length, a row for each norm and size, which print themselves;
        `pandas.DataFrame(r.table())`.

        "norm", "size", "accuracy", and "accuracy of LABEL" for each class.

        Example:
            >>> import perturbkernel as pk
            >>> x = np.asarray([[1.0, 0.0], [0.0, 0.1]])
            >>> attacked = {"sizes": (0.2,), "norms": ("l2",), "attack": "apgd"}
            >>> r = pk.robust_accuracy(lambda z: z @ np.asarray([3.0, 4.0]), x, [1, 1], **attacked)
            >>> r.table(certified=[0.6, 0.08])["certified"]
            [1.0, 0.5]

        Args:
            certified: sizes up to which decisions are proved to be right, (n,), 0 where they are
                wrong, or a record with such a `size`; of several norms a mapping from their names.
                It adds a column "certified", the share of inputs whose size is no smaller; NaN for
                norms that have none.

        Raises ValueError where there are other numbers of inputs.
        """
        proved = _proved(certified, self.norms, len(self.targets))
        columns = Table(norm=[], size=[], accuracy=[])
        if certified is not None:
            columns["certified"] = []
        names = [f"accuracy of {label}" for label in self.classes.tolist()]
        columns.update({name: [] for name in names})
        for i, norm in enumerate(self.norms):
            for j, size in enumerate(self.sizes):
                columns["norm"].append(norm)
                columns["size"].append(float(size))
                columns["accuracy"].append(float(self.accuracy[i, j]))
                if certified is not None:
                    columns["certified"].append(_share(proved.get(norm), size))
                for name, share in zip(names, self.of_class[i, j], strict=True):
                    columns[name].append(float(share))
        return columns

    def _numbers(self) -> dict[str, Any]:
        shares = {norm: self.accuracy[i] for i, norm in enumerate(self.norms)}
        return {"attack": self.attack, "points": len(self.targets), "sizes": self.sizes} | shares

    def __str__(self) -> str:
        """The table, below the name of the attack."""
        return f"attack: {self.attack}\n{self.table()}"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _proved(certified: Any, norms: Sequence[str], n: int) -> dict[str, np.ndarray]:
    """Norm -> certified sizes, (n,)."""
    if certified is None:
        return {}
    if not isinstance(certified, Mapping):
        if len(norms) > 1:
            raise ValueError(
                f"certified must be a mapping from norms to sizes for {len(norms)} norms, {norms}"
            )
        certified = {norms[0]: certified}
    found = {}
    for norm, sizes in certified.items():
        sizes = np.asarray(getattr(sizes, "size", sizes) if _is_record(sizes) else sizes)
        if sizes.shape != (n,):
            raise ValueError(f"certified must have sizes ({n},); got {sizes.shape} for {norm}")
        found[norm] = sizes
    return found


def _is_record(sizes: Any) -> bool:
    """Arrays have a size, too: their number of entries."""
    return not isinstance(sizes, np.ndarray | jax.Array | list | tuple)


def _share(certified: np.ndarray | None, size: float) -> float:
    if certified is None:
        return float("nan")
    return float(np.mean((certified >= size) & (certified > 0)))


def robust_accuracy(
    predictor: Callable[..., Any],
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    sizes: Sequence[float],
    norms: Sequence[str] = ("linf", "l2"),
    attack: str | Callable[..., Any] = "worst_case",
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    steps: int = 50,
    starts: int = 1,
    memory: float | None = None,
    key: PRNGKeyArray | None = None,
) -> RobustAccuracy:
    """Measures the share of inputs whose decision is right and stays right under attack, for every
    norm and size.

        r = pk.robust_accuracy(f, x, labels, sizes=(0.05, 0.1), bounds=(0, 1), key=key)
        print(r); pandas.DataFrame(r.table())

    A perturbation of some size is one of every larger size: an input that was made wrong counts as
    wrong from there on, so that no curve ever rises. Each number is an upper bound of the true one,
    since no attack proves that there is no stronger.

    Example:
        >>> w, x = np.asarray([3.0, 4.0]), np.asarray([[1.0, 0.0], [0.0, 0.1]])
        >>> attacked = {"sizes": (0.2,), "norms": ("l2",), "attack": "apgd"}
        >>> r = robust_accuracy(lambda z: z @ w, x, [1, 1], **attacked)
        >>> r.accuracy.tolist()
        [[1.0, 0.5]]

    Args:
        predictor, inputs, targets, bounds, memory: as in `worst_case`; the labels are the true
            ones.
        sizes: of perturbations; 0 is added. For l0 numbers of entries.
        norms: of "l2", "linf", "l1" and "l0".
        attack: "worst_case", the strongest; "apgd" or "ascent", a method of `pk.attack`;
            "minimum_norm", which runs once for all sizes; or a function (predictor, inputs,
            targets, size=, norm=, bounds=) that returns perturbations, shaped like the inputs, or
            what has them as `delta`. They are not shortened: they must keep size and bounds.
        steps, starts: of "worst_case", "apgd" and "ascent".
        key: random key, for "worst_case", and for more than one start.

    Raises as `worst_case` does, and ValueError for no sizes or no norms.
    """
    ascending, norms = _checked(sizes, norms, attack)
    # What l0 asks of the bounds is asked before any norm is tried; a function asks for itself.
    strictest = norms[0]
    if isinstance(attack, str):
        strictest = next(filter(counts, norms), strictest)
    asked = _Asked(
        problem=checked_problem(predictor, inputs, targets, strictest, True, bounds),
        predictor=predictor,
        inputs=inputs,
        targets=targets,
        attack=attack,
        bounds=bounds,
        steps=steps,
        starts=starts,
        memory=memory,
        key=key,
    )
    curves = [_curve(asked, ascending, norm) for norm in norms]
    return RobustAccuracy(
        norms=norms,
        sizes=ascending,
        right=np.stack(curves),
        targets=np.asarray(targets).reshape(-1),
        attack=attack if isinstance(attack, str) else getattr(attack, "__name__", "a function"),
    )


class _Asked(NamedTuple):
    """The arguments, and the problem that they are: a norm is none of it here."""

    problem: Problem
    predictor: Any
    inputs: Any
    targets: Any
    attack: Any
    bounds: Any
    steps: int
    starts: int
    memory: float | None
    key: Any


def _checked(sizes: Any, norms: Any, attack: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """The sizes, ascending, with 0, and the norms."""
    if isinstance(norms, str):
        norms = (norms,)
    norms = tuple(norms)
    sizes = np.ravel(np.asarray(sizes))
    if not norms or not len(sizes):
        raise ValueError("sizes and norms must not be empty")
    for norm in norms:
        check_choice(norm, "norms", NORMS)
        for size in sizes.tolist():
            if counts(norm):
                check_count(_whole(size), "sizes", low=0)
            else:
                check_number(size, "sizes")
    if not callable(attack):
        check_choice(attack, "attack", ATTACKS)
    return np.unique(np.append(sizes, 0)), norms


def _whole(size: float) -> float:
    """A number of entries as an integer, wherever it came as 3.0."""
    return int(size) if float(size).is_integer() else size


def _curve(asked: _Asked, sizes: np.ndarray, norm: str) -> np.ndarray:
    """Which decisions stay right up to each size, (s, n)."""
    right = _right(asked, np.zeros(asked.problem.x.shape))
    if asked.attack == "minimum_norm":
        least = np.asarray(_least(asked, norm))
        return np.stack([right & (least > size) for size in sizes])
    rows = [right]
    for size in sizes[1:]:
        right = right & _right(asked, _perturbations(asked, size.item(), norm))
        rows.append(right)
    return np.stack(rows)


def _right(asked: _Asked, delta: Any) -> np.ndarray:
    """Whether the decisions at inputs + delta are right, (n,); a tie is not."""
    problem = asked.problem
    delta = jnp.asarray(delta, problem.x.dtype).reshape(problem.x.shape)
    with uncompiled(problem.predictor):
        return np.asarray(margins_at(problem, delta, asked.memory) > 0)


def _least(asked: _Asked, norm: str) -> Array:
    """(n,), the smallest sizes that were found to change right decisions."""
    options: Any = {"norm": norm, "bounds": asked.bounds, "memory": asked.memory}
    found = minimum_norm(asked.predictor, asked.inputs, asked.targets, away=True, **options)
    return found.size


def _perturbations(asked: _Asked, size: float, norm: str) -> Any:
    """What the attack finds, shaped like the inputs."""
    data = asked.predictor, asked.inputs, asked.targets
    options: Any = {"size": size, "norm": norm, "bounds": asked.bounds}
    if counts(norm):
        options["size"] = int(size)
    if callable(asked.attack):
        found = asked.attack(*data, **options)
        return getattr(found, "delta", found)
    options |= {"steps": asked.steps, "starts": asked.starts, "memory": asked.memory}
    if asked.attack == "worst_case":
        return worst_case(*data, **options, key=asked.key).delta
    key = asked.key if asked.starts > 1 else None
    return iterated.attack(*data, **options, key=key, away=True, method=asked.attack).delta
