"""Forms of a run that a row measures: exported files, quantized plainly or not."""

from pathlib import Path
from typing import Any

FORMS = {
    "onnx": "onnxruntime",
    "onnx-dynamic": "onnxruntime",
    "onnx-static": "onnxruntime",
    "sparse": "sparse",
}
CALIBRATION = 128  # samples for the ranges of static quantization


def export(run: Path, form: str, task: str) -> Path:
    """Write a run in a form; return the file."""
    from obert_modifiers.deploy.export import export_run

    plain = export_run(run, "onnx").path
    if form == "onnx":
        return plain
    if form == "sparse":
        return export_run(run, "sparse").path
    out = plain.with_name(f"{form}.onnx")
    {"onnx-dynamic": _dynamic, "onnx-static": _static}[form](run, plain, out, task)
    return out


def _dynamic(run: Path, plain: Path, out: Path, task: str) -> None:
    """Quantize weights, and activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(plain, out, weight_type=QuantType.QInt8)


def _static(run: Path, plain: Path, out: Path, task: str) -> None:
    """Quantize weights and activations, with ranges from training samples."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )

    batches = iter(_samples(run, plain, task))

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    kinds = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    quantize_static(
        plain, out, Reader(), op_types_to_quantize=["MatMul", "Gemm"], **kinds
    )


def _samples(run: Path, plain: Path, name: str) -> list[dict[str, Any]]:
    """Take the first training samples, tokenized as in training."""
    import onnxruntime
    from accelerate import PartialState

    from obert_modifiers.deploy.evaluate import recorded_words
    from obert_modifiers.tasks import load
    from obert_modifiers.tasks.run.plan import Notes, read_inputs

    PartialState(cpu=True)
    task = load(name)
    words = [*recorded_words(run, name), "--model_name_or_path", str(run)]
    data = task.prepare(read_inputs(task, task.parse(words), Notes())).data
    wanted = [one.name for one in onnxruntime.InferenceSession(plain).get_inputs()]
    samples = (data.train[i] for i in range(min(CALIBRATION, len(data.train))))
    batches = [data.collate([sample]) for sample in samples]
    return [{name: batch[name].numpy() for name in wanted} for batch in batches]
