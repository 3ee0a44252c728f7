"""What the files of a room declare, by name."""

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from typing import TypeVar

Declared = TypeVar("Declared")


class Registry(Mapping[str, Declared]):
    """Names, and what the file of each name declares; imported when it is asked for."""

    def __init__(self, variable: str, modules: Mapping[str, str]) -> None:
        """List in which `variable` of which module each name is declared."""
        self._variable, self._modules = variable, dict(modules)

    def __getitem__(self, name: str) -> Declared:
        return getattr(import_module(self._modules[name]), self._variable)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules  # without importing its file


def check_known(
    key: str, name: str, known: Collection[str], fix: str = "name one"
) -> None:
    """Refuse a name that is none of those that there are."""
    if name not in known:
        raise ValueError(
            f"{key}={name} is unknown; expected one of {', '.join(known)}; {fix}"
        )
