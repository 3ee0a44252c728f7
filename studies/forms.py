"""Forms of a run that a row measures: exported files, quantized plainly or not."""

from pathlib import Path

FORMS = {"onnx": "onnxruntime", "onnx-dynamic": "onnxruntime", "sparse": "sparse"}


def export(run: Path, form: str) -> Path:
    """Write a run in a form; return the file."""
    from obert_modifiers.deploy.export import export_run

    plain = export_run(run, "onnx").path
    if form == "sparse":
        return export_run(run, "sparse").path
    return plain if form == "onnx" else quantize(plain, plain.with_name(f"{form}.onnx"))


def quantize(plain: Path, out: Path) -> Path:
    """Quantize weights to INT8, and activations as they come."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"form=onnx-dynamic has no quantizer ({error}); expected onnx 1.16 or "
            "later with ml_dtypes beside ONNX Runtime; leave the row out with --rows"
        ) from error
    quantize_dynamic(plain, out, weight_type=QuantType.QInt8)
    return out
