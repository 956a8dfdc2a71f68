"""What computes a cell: the name of a function in `plan` -> the function, config -> arrays."""

from collections.abc import Callable

from perturbkernel.reproduce.panels.law import law_cell
from perturbkernel.reproduce.panels.limit import limit_cell
from perturbkernel.reproduce.panels.maps import map_limit_cell, map_network_cell
from perturbkernel.reproduce.panels.network import network_cell
from perturbkernel.reproduce.plan import STUDIES
from perturbkernel.reproduce.records import Arrays, Config

FUNCTIONS: dict[str, Callable[[Config], Arrays]] = {
    "limit": limit_cell,
    "network": network_cell,
    "law": law_cell,
    "map_limit": map_limit_cell,
    "map_network": map_network_cell,
    **{name: study.module.measure for name, study in STUDIES.items()},
}

# The modules whose source, with what they import, computes the cells of a function.
MODULES = {name: function.__module__ for name, function in FUNCTIONS.items()}
