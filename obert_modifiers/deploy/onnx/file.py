"""Read an ONNX file that somebody else may have written, or that is damaged."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Args:
        path: The file.

    Returns:
        The model, with its external data.

    Raises:
        FileNotFoundError: If it is not there, or its external data is not.
        ValueError: If it is damaged or no ONNX.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"model={path} is not there; expected an ONNX file; check the path"
        )
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it has no nodes")
        onnx.checker.check_model(str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model={path} keeps weights in a file that is missing ({error}); expected "
            "it beside the model; copy it there"
        ) from error
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        why = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"model={path} is damaged or no ONNX file ({why}); expected what `obert "
            "export` wrote; export or copy it again"
        ) from error
    return model
