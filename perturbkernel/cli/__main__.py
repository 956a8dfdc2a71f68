"""`python -m perturbkernel.cli`: the command."""

import sys

from perturbkernel.cli.main import main

sys.exit(main())
