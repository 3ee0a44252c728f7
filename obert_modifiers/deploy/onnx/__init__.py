"""ONNX files of trained models."""

from obert_modifiers.deploy.onnx.export import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
