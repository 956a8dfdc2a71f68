"""Every numbered result of the theory, tried on independent draws of data and finite networks.

    verdicts = pk.verify.verify(only="3,5.1")
    print(pk.verify.table(verdicts))

`protocol` says what a check is, `judgement` when it holds. Checks are declared in `kernels`
(section 0), `linearised` (1), `concentration` (2), `lazy` (3), `initial` (4), `gradients` (5),
`matching` (6.1 to 6.3), `second_network` and `constants` (6.4 and 7), `certificates` (6.5, 6.6),
`facts` (8), `randomness` (12), `neuron_law` and `law_certificates` (14), `limits` (15, 16) and
`robustness` (17); `runner` runs them and `page` writes them down.
"""

from perturbkernel.verify.page import load as load
from perturbkernel.verify.page import save as save
from perturbkernel.verify.protocol import Verdict as Verdict
from perturbkernel.verify.runner import checks as checks
from perturbkernel.verify.runner import failed as failed
from perturbkernel.verify.runner import listing as listing
from perturbkernel.verify.runner import table as table
from perturbkernel.verify.runner import trials as trials
from perturbkernel.verify.runner import verify as verify
