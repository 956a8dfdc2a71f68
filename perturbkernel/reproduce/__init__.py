"""The paper reproduced: every panel and decision map, in the kernel limit, by networks of finite
width, and by the law of their neurons.

    result = perturbkernel.reproduce.reproduce(["mnist_a"], "results/reproduce", mode="limit")
    result.curves("mnist_a/size/identity")["perturbation"]["limit"]["mean"]

A reproduction is a table of cells, each stored whole as it finishes: whatever stops it, running it
again computes only what is missing.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import nullcontext
from pathlib import Path

from perturbkernel._moved import renamed
from perturbkernel.checks import check_count
from perturbkernel.data.image_files import FASHION_MNIST, MNIST, ImageFamily, standard_folder
from perturbkernel.reproduce import runner
from perturbkernel.reproduce.page import Reproduction as Reproduction
from perturbkernel.reproduce.page import load as load
from perturbkernel.reproduce.page import publish
from perturbkernel.reproduce.panels.specification import Panel as Panel
from perturbkernel.reproduce.panels.specification import panel as panel
from perturbkernel.reproduce.plan import Options, cells, everything


@renamed(progress="on_cell")
def reproduce(
    names: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    mode: str = "both",
    scale: str = "small",
    seeds: int = 2,
    targets: str = "coin_flip",
    dynamics: str = "flow",
    mnist: str | os.PathLike[str] | None = None,
    fashion_mnist: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    on_cell: Callable[[int, int], None] | None = None,
) -> Reproduction:
    """Computes the cells of the named panels that the folder does not have, draws the figures and
    writes a page.

    Example:
        >>> import tempfile, perturbkernel as pk
        >>> asked = {"mode": "limit", "seeds": 1, "workers": 0}  # 0: in this process
        >>> r = pk.reproduce.reproduce(["gaussian_a/n/identity"], tempfile.mkdtemp(), **asked)
        >>> panel = r.panel(r.names[0])
        >>> panel.varies, list(r.curves(panel.id)["agreement"])
        ('n', ['limit_zero', 'limit_balanced', 'limit'])
        >>> r.table()[0][1:], r.seconds() > 0, list(r.summary())
        (('standard', 'no published values here'), True, ['panels', 'studies'])
        >>> axes = r.figure(panel.id).axes  # of Matplotlib
        >>> r.save().name, pk.reproduce.load(r.folder).names
        ('index.html', ('gaussian_a/n/identity',))

    Args:
        names: panels, maps and studies: whole identifiers ("mnist_a/size/identity"), beginnings
            ("mnist", "mnist_a", "map"), or "theory-vs-width", "architectures", "carriers",
            "bugs-and-features", "frontier", "trained-kernels"; all for an empty sequence.
            `names()` lists them.
        folder: where results are kept and looked for.
        mode: "limit", the closed form; "network", finite width; "both"; "law", networks of the
            published width drawn from the law of one neuron, for the panels of the identity loss
            (others are left out); or "all" of them.
        scale: "small", reduced sizes, minutes in all; "paper", the published ones.
        seeds: draws of data, initialisations and targets.
        targets: of finite networks, trained or drawn, "coin_flip" or "balanced"; the kernel limit
            shows both.
        dynamics: of the logistic loss in the limit, "flow" or exact "heavy_ball" steps.
        mnist, fashion_mnist: folders with the IDX files; left out, `mnist` and `fashion-mnist` in
            the folder that the environment variable PERTURBKERNEL_DATA names, or in
            /usr/share/datasets if it is not set ("off": none). Without them image panels use the
            digits of mnist5k.
        executor: any `concurrent.futures.Executor`; it is not shut down. Local processes if left
            out.
        workers: how many local processes, one a core if left out; 0 computes in this process.
        on_cell: called as on_cell(finished cells, all cells).

    Raises:
        ValueError, TypeError: bad arguments, before any computation.
        RuntimeError: a cell failed, a worker was killed, or has another version of the package;
            what is finished is kept.

    Local processes start Python anew: a script that calls this needs the usual `if __name__ ==
    "__main__":`.
    """
    given = (names,) if isinstance(names, str) else tuple(names)
    options = Options(
        names=given or everything(),
        mode=mode,
        scale=scale,
        seeds=seeds,
        targets=targets,
        dynamics=dynamics,
        mnist=_folder(MNIST, mnist),
        fashion_mnist=_folder(FASHION_MNIST, fashion_mnist),
    )
    if workers is not None:
        check_count(workers, "workers", low=0)
    # Callers may be untyped.
    if executor is not None and not isinstance(executor, Executor):  # pyright: ignore
        raise TypeError(
            f"executor must be a concurrent.futures.Executor; got {type(executor).__name__}"
        )
    if Path(folder).is_file():
        raise ValueError(f"folder must be a folder; {folder} is a file")
    wanted = cells(options)
    if not wanted:
        raise ValueError(
            f"mode must be another one than {mode!r}, which has the panels of the identity loss "
            f"only, for {', '.join(options.left_out)}"
        )
    if executor is not None:
        context = nullcontext(executor)
    elif workers == 0:
        context = nullcontext(runner.Here())
    else:
        context = runner.local_processes(workers)
    with context as pool:
        runner.run(wanted, folder, pool, on_cell)
        try:
            # Workers elsewhere may not see the folder.
            return publish(folder, options, pool if executor is None else None)
        except BrokenExecutor as error:
            raise RuntimeError(
                f"a worker process ended unexpectedly while figures were drawn. The {runner.AGAIN}"
            ) from error


def _folder(family: ImageFamily, path: str | os.PathLike[str] | None) -> str | None:
    """The folder that is given, or else found, by a name that is the same for workers elsewhere."""
    folder = standard_folder(family) if path is None else Path(path).expanduser()
    return None if folder is None else str(folder.resolve())


def names() -> tuple[str, ...]:
    """Identifiers of all panels, maps and studies.

    Example:
        >>> import perturbkernel as pk
        >>> pk.reproduce.names()[:2]
        ('shifted_gaussian_a/d/identity', 'shifted_gaussian_a/d/logistic')
    """
    return everything()
