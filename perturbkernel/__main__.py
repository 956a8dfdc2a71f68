"""`python -m perturbkernel`: the command."""

import sys

from perturbkernel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
