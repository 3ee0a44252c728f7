"""Files other than ONNX."""
