"""Graphs as modules: tensors by name in and out, whichever engine computes them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from obert_modifiers.deploy.engines import import_engine
from obert_modifiers.deploy.onnx.file import load_onnx
from obert_modifiers.deploy.sessions import open_session

ENGINES = ("torch", "onnxruntime", "openvino", "deepsparse")
_OPTIONAL = "token_type_ids"  # zeros where a tokenizer does not give them


class GraphModel(nn.Module):
    """A graph that an engine computes, on a CPU; has no parameters.

    Attributes:
        inputs: The shape of each input by name, None for an axis that is free.
        outputs: Names of the outputs.
    """

    def __init__(
        self,
        path: Path,
        inputs: Mapping[str, tuple[int | None, ...]],
        outputs: Sequence[str],
    ) -> None:
        """Check that it is a graph over tokens.

        Args:
            path: Its file, for errors.
            inputs: The shape of each input by name.
            outputs: Names of the outputs.

        Raises:
            ValueError: If it takes no ``input_ids``.
        """
        super().__init__()
        self.inputs, self.outputs, self._path = dict(inputs), tuple(outputs), path
        if "input_ids" not in self.inputs:
            raise ValueError(
                f"model={path} takes {', '.join(self.inputs) or 'nothing'}; expected "
                "input_ids and attention_mask, as a text model does; export the model "
                "with `obert export`"
            )

    def forward(self, **values: Tensor) -> dict[str, Tensor]:
        """Compute the graph.

        Args:
            **values: ``(batch, sequence)`` each, by name.

        Returns:
            The outputs by name, for the rows and positions that were given.

        Raises:
            ValueError: If a sample is longer than the graph's fixed length, or an
                input is missing.
        """
        rows, tokens = values["input_ids"].shape
        fixed_rows, fixed_tokens = (*self.inputs["input_ids"], None, None)[:2]
        if fixed_tokens is not None and tokens > fixed_tokens:
            raise ValueError(
                f"model={self._path} takes sequences of {fixed_tokens} tokens, and a "
                f"sample has {tokens}; expected no more; give --max_seq_length "
                f"{fixed_tokens}"
            )
        arrays = {
            name: _padded(
                self._value(name, values).cpu().numpy(),
                fixed_rows and -(-rows // fixed_rows) * fixed_rows,
                fixed_tokens,
            )
            for name in self.inputs
        }
        step = fixed_rows or rows
        whole = len(next(iter(arrays.values())))
        parts = [
            self.compute({name: one[i : i + step] for name, one in arrays.items()})
            for i in range(0, whole, step)
        ]
        device = values["input_ids"].device
        found = {}
        for name in self.outputs:
            output = np.concatenate([part[name] for part in parts])[:rows]
            if fixed_tokens is not None and output.shape[1:2] == (fixed_tokens,):
                output = output[:, :tokens]
            found[name] = torch.from_numpy(np.ascontiguousarray(output)).to(device)
        return found

    @abstractmethod
    def compute(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine.

        Args:
            arrays: int64 ``(batch, sequence)`` by name.

        Returns:
            The outputs by name.
        """

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        if name in values:
            return values[name]
        if name == _OPTIONAL:
            return torch.zeros_like(values["input_ids"])
        raise ValueError(
            f"model={self._path} takes {name}, and the tokenizer gives "
            f"{', '.join(values)}; expected the tokenizer of this model; give its run "
            "with --run"
        )


class _OnnxRuntime(GraphModel):
    """A graph in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        """Read an ONNX file.

        Args:
            path: The file.

        Raises:
            ValueError: If ONNX Runtime cannot run it.
        """
        import_engine("onnxruntime")
        load_onnx(path)  # whose errors are for users
        try:
            session = open_session(path)
        except Exception as error:  # it raises classes of its own, made at run time
            raise ValueError(_unreadable(path, "ONNX Runtime", error)) from error
        inputs = {
            one.name: tuple(n if isinstance(n, int) else None for n in one.shape)
            for one in session.get_inputs()
        }
        super().__init__(path, inputs, [one.name for one in session.get_outputs()])
        self._session: Any = session

    def compute(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._session.run(None, arrays)
        return dict(zip(self.outputs, found, strict=True))


class _OpenVino(GraphModel):
    """A graph in OpenVINO, from an IR or an ONNX file."""

    def __init__(self, path: Path) -> None:
        """Read a model.

        Args:
            path: An ``.xml`` file, or an ``.onnx`` file.

        Raises:
            ValueError: If OpenVINO cannot run it.
        """
        openvino = import_engine("openvino")
        try:
            core = openvino.Core()
            # In bfloat16, its default where the CPU has it, accuracy would not be that
            # of the file.
            hint = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = core.compile_model(str(path), "CPU", hint)
        except Exception as error:
            raise ValueError(_unreadable(path, "OpenVINO", error)) from error
        inputs = {
            one.any_name: tuple(
                n.get_length() if n.is_static else None for n in one.partial_shape
            )
            for one in compiled.inputs
        }
        super().__init__(path, inputs, [one.any_name for one in compiled.outputs])
        self._compiled = compiled

    def compute(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._compiled(arrays)
        return {name: np.array(found[name]) for name in self.outputs}


class _DeepSparse(GraphModel):
    """A graph in DeepSparse, which runs fixed shapes."""

    def __init__(self, path: Path) -> None:
        """Read an ONNX file.

        Args:
            path: The file.

        Raises:
            ValueError: If its shapes are free, or DeepSparse cannot run it.
        """
        deepsparse = import_engine("deepsparse")
        graph = load_onnx(path).graph
        inputs = {
            one.name: tuple(
                axis.dim_value or None for axis in one.type.tensor_type.shape.dim
            )
            for one in graph.input
        }
        if any(n is None for shape in inputs.values() for n in shape):
            raise ValueError(
                f"model={path} has free axes, on which DeepSparse runs nothing itself; "
                "expected fixed shapes; export it with --target deepsparse, or take "
                "--engine onnxruntime"
            )
        batch = next(iter(inputs.values()))[0]
        try:
            compiled = deepsparse.compile_model(str(path), batch_size=batch)
        except Exception as error:
            raise ValueError(_unreadable(path, "DeepSparse", error)) from error
        super().__init__(path, inputs, [one.name for one in graph.output])
        self._compiled = compiled

    def compute(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = [np.ascontiguousarray(arrays[name]) for name in self.inputs]
        return dict(zip(self.outputs, self._compiled.run(given), strict=True))


_CLASSES = {
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
    "deepsparse": _DeepSparse,
}


def open_graph(path: Path, engine: str) -> GraphModel:
    """Open a graph in an engine.

    Args:
        path: An ``.onnx`` file, or for OpenVINO an ``.xml`` file.
        engine: ``onnxruntime``, ``openvino`` or ``deepsparse``.

    Returns:
        A module that takes and gives tensors by name.

    Raises:
        ValueError: If the engine is not installed or cannot run the file, or the file
            is damaged or no text model.
    """  # noqa: DOC502  raised by the classes
    return _CLASSES[engine](path)


def _unreadable(path: Path, engine: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # OpenVINO begins with the place in its own code.
    told = [line for line in lines if not line.startswith("Exception from")]
    why = (told or lines)[0][:300]
    return (
        f"model={path} cannot be run by {engine} ({why}); expected what `obert export` "
        "wrote for it; export it again"
    )


def _padded(array: np.ndarray, rows: int | None, tokens: int | None) -> np.ndarray:
    # Rows and tokens that are not there are zeros: padding, which is not attended to.
    more = 0 if rows is None else rows - array.shape[0]
    wider = 0 if tokens is None else tokens - array.shape[1]
    return np.pad(array, ((0, more), (0, wider))) if more or wider else array
