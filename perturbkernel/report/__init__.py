"""Results on disk: `report.json`, `arrays.npz`, figures, and one self-contained `report.html`."""

from perturbkernel.report.machine import environment as environment
from perturbkernel.report.page import table as table
from perturbkernel.report.page import text as text
from perturbkernel.report.results import Report as Report
from perturbkernel.report.results import figures as figures
from perturbkernel.report.results import load as load
from perturbkernel.report.results import redraw as redraw
from perturbkernel.report.results import save as save
from perturbkernel.report.results import write_for_print as write_for_print
from perturbkernel.report.robustness import robust_accuracy as robust_accuracy
from perturbkernel.report.statements import sentences as sentences
