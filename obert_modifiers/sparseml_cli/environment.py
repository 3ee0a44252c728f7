"""Fixes of what SparseML expects around it: packages, the hub, torch's defaults."""

import inspect
import sys
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

from obert_modifiers.sparseml_cli.fixes import EARLY, Patch, fix


@fix(
    "package-versions",
    versions="setuptools 81 and later, or none",
    scripts="sparseml",
    when=EARLY,
    needed=lambda: (
        "pkg_resources" not in sys.modules and find_spec("pkg_resources") is None
    ),
)
def package_versions(patch: Patch) -> None:
    """SparseML asks `pkg_resources` for versions, which setuptools no longer has.

    A stand-in with the one function that SparseML calls takes its place.
    """
    stand_in: Any = ModuleType("pkg_resources")
    stand_in.get_distribution = lambda name: SimpleNamespace(
        version=metadata.version(name)
    )
    # In the place of a module that is not there, so that nothing is lost.
    sys.modules["pkg_resources"] = stand_in


@fix("local-metrics", versions="datasets 2.18", when=EARLY)
def local_metrics(patch: Patch) -> None:
    """Metrics are scripts that `datasets` fetches from a place that is gone.

    Accuracy, GLUE's figures, seqeval's and SQuAD's are computed here, with the same
    names and without a network.
    """
    import datasets

    from obert_modifiers.sparseml_cli.metrics import LocalMetric, is_local

    original = getattr(datasets, "load_metric", None)  # in stack B it is there

    def load_metric(path: str, config_name: str | None = None, **options: Any) -> Any:
        if is_local(path, config_name):
            return LocalMetric(path, config_name)
        return original(path, config_name, **options)

    patch(datasets, "load_metric", load_metric)


def _dynamo_by_default() -> bool:
    import torch.onnx

    found = inspect.signature(torch.onnx.export).parameters.get("dynamo")
    return found is not None and found.default is True


@fix(
    "tracing-export",
    versions="torch 2.9 and later",
    scripts="sparseml",
    needed=_dynamo_by_default,
)
def tracing_export(patch: Patch) -> None:
    """ONNX export takes torch's new exporter by default, which wants a newer onnx.

    SparseML's calls go to the exporter that it was written for.
    """
    import torch.onnx

    original = torch.onnx.export

    def export(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("dynamo", False)
        return original(*args, **kwargs)

    patch(torch.onnx, "export", export)


def _qconfig_has_slots() -> bool:
    from sparseml.pytorch.sparsification.quantization import quantization_scheme

    found = quantization_scheme.torch_quantization  # None where torch has none
    return found is not None and "__slots__" in vars(found.QConfig)


@fix(
    "open-qconfig",
    versions="seen with torch 2.13",
    scripts="sparseml",
    needed=_qconfig_has_slots,
)
def open_qconfig(patch: Patch) -> None:
    """SparseML's QuantizationModifier sets an attribute on torch's closed `QConfig`.

    It gets a subclass that takes attributes.
    """
    from sparseml.pytorch.sparsification.quantization import quantization_scheme

    class OpenQConfig(quantization_scheme.torch_quantization.QConfig):
        """torch's, with attributes."""

    original = quantization_scheme._get_qconfig

    def get_qconfig(*args: Any, **kwargs: Any) -> OpenQConfig:
        return OpenQConfig(*original(*args, **kwargs))

    patch(quantization_scheme, "_get_qconfig", get_qconfig)


@fix("checkpoint-loading", versions="torch 2.6 and later")
def checkpoint_loading(patch: Patch) -> None:
    """A checkpoint's random state holds NumPy arrays, which torch refuses to load.

    torch is told that NumPy's arrays are safe; everything else stays refused.
    """
    import numpy as np
    import torch.serialization

    rebuild = np.zeros(1).__reduce__()[0]  # private, and elsewhere in NumPy 2
    torch.serialization.add_safe_globals([
        rebuild,
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
    ])
