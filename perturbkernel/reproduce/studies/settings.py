"""The settings of a study, dataclasses, from the configs of its cells."""

import dataclasses
from typing import TypeVar

from perturbkernel.reproduce.records import Config

SettingT = TypeVar("SettingT")


def from_config(kind: type[SettingT], config: Config) -> SettingT:
    """The dataclass `kind` whose fields the config holds, among other things."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    fields = {name: config[name] for name in names}
    return kind(**fields)
