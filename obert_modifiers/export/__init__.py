"""Models in other formats."""

from obert_modifiers.export.onnx import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
