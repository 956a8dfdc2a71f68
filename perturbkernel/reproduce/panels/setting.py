"""One experiment of the paper, as the computations read it."""

import json
from dataclasses import asdict, dataclass

from perturbkernel.reproduce.records import Config, Json


@dataclass(frozen=True)
class Setting:
    """One experiment: what both networks are trained on, how long, and how far the data is
    perturbed.
    """

    data: str
    scenario: str
    n: int
    d: int
    width: int
    slope: float
    size: float
    loss: str
    steps_f: int
    steps_g: int
    learning_rates_f: tuple[float, ...]
    learning_rates_g: tuple[float, ...]
    classes: tuple[int, int] | None = None

    @property
    def is_image(self) -> bool:
        return self.classes is not None


def as_config(setting: Setting) -> Config:
    """The setting as what JSON holds."""
    return json.loads(json.dumps(asdict(setting)))


def from_config(config: Config) -> Setting:
    frozen: Json = {}
    for name, value in config.items():
        frozen[name] = tuple(value) if isinstance(value, list) else value
    return Setting(**frozen)
