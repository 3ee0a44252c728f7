"""The file for DeepSparse runs there, all of it, and gives what the model gives."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.onnx import export_onnx
from tests.deploy.models import OUTPUTS, inputs, make

SHAPE = (4, 16)


@pytest.mark.parametrize("scheme", [None, Scheme(), Scheme(attention_matmuls=True)])
@pytest.mark.parametrize("cls", OUTPUTS)
def test_the_engine_runs_all_of_it(cls, scheme, tmp_path) -> None:
    engine = pytest.importorskip("deepsparse")
    model = make(cls, scheme)
    path = tmp_path / "m.onnx"
    export_onnx(model, inputs(2, 6), path, "deepsparse", SHAPE)
    opened = engine.Engine(str(path), batch_size=SHAPE[0])
    assert opened.fraction_of_supported_ops == 1.0
    batch = inputs(*SHAPE, 7)
    ours = opened.run([np.ascontiguousarray(value.numpy()) for value in batch.values()])
    with torch.no_grad():
        expected = model(**batch)
    for name, one in zip(OUTPUTS[cls], ours, strict=True):
        right = expected[name].numpy()
        assert np.abs(one - right).max() / np.abs(right).max() < 2e-2
