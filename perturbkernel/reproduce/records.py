"""Names for what passes between the parts of a reproduction."""

from collections.abc import Sequence
from typing import Any

import numpy as np

#: An object as JSON holds it.
Json = dict[str, Any]
#: What is computed: "function", a name in `functions`, and "config", its argument.
Cell = Json
#: All that decides the numbers of a cell.
Config = Json
#: The numbers of a cell by name.
Arrays = dict[str, np.ndarray]
#: Finished cells.
Results = Sequence[tuple[Config, Arrays]]
