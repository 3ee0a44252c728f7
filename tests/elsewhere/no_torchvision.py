"""An empty stand-in for torchvision, which Composer imports and does not need here.

A plugin of pytest, ``-p tests.elsewhere.no_torchvision``, for where torchvision has no
build for the installed torch.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)

        def anything(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = anything
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it empty."""


sys.meta_path.insert(0, _Finder())
