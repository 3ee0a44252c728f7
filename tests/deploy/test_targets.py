"""What each engine's file looks like, and that all of them compute the same."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from obert_modifiers.core.quantization.scheme import Scheme, quantize_, quantizers_of
from obert_modifiers.deploy.checks import compare
from obert_modifiers.deploy.engines.onnxruntime import open_session
from obert_modifiers.deploy.onnx import export_onnx
from obert_modifiers.deploy.onnx.graph import Product
from tests.deploy.models import OUTPUTS, SCHEMES, agrees, inputs, make, run

SHAPE = (5, 9)
LINEAR, PRODUCTS, LAYERS = 6, 2, 2
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def kinds_of(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def arrays_of(path) -> dict[str, np.ndarray]:
    graph = onnx.load(path).graph
    return {one.name: numpy_helper.to_array(one) for one in graph.initializer}


@pytest.mark.parametrize("cls", OUTPUTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_give_what_the_model_gives(cls, scheme, tmp_path) -> None:
    model = make(cls, SCHEMES[scheme])
    path, whole = tmp_path / "ds.onnx", scheme == "per channel"  # both kinds of bias
    found = export_onnx(model, inputs(2, 6), path, "deepsparse", SHAPE, whole)
    batch = inputs(*SHAPE, 7)
    plain = SCHEMES[scheme] is None
    # DeepSparse's file stays INT8; ONNX Runtime is told to sum it in 32 bits.
    assert agrees(model, found.path, OUTPUTS[cls], batch, plain, open_session)
    graph = onnx.load(found.path)
    assert graph.opset_import[0].version == 14
    for one in (*graph.graph.input, *graph.graph.output):
        sizes = [axis.dim_value for axis in one.type.tensor_type.shape.dim]
        assert sizes[0] == SHAPE[0] and all(sizes)
    kinds = kinds_of(found.path)
    # Nothing computes a shape, and nothing that is quantized is in floating point.
    assert not {"Shape", "ConstantOfShape", "IsNaN", "Expand"} & set(kinds)
    if plain:
        assert found.integer_products == kinds["QuantizeLinear"] == 0
        return
    products = PRODUCTS if SCHEMES[scheme].attention_matmuls else 0
    assert found.integer_products >= LAYERS * (LINEAR + products) + 1
    assert kinds["DequantizeLinear"] == 3  # embeddings, after they are looked up
    floats = 0 if products else LAYERS * PRODUCTS
    assert kinds["MatMul"] == floats and kinds["Gemm"] == 0
    for name, array in arrays_of(found.path).items():
        assert array.dtype != np.float32 or array.ndim < 2 or 1 in array.shape, name


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "deepsparse"])
def test_zeros_are_those_of_the_model(target, tmp_path) -> None:
    model = make()
    generator = torch.Generator().manual_seed(3)
    for layer in model.bert.encoder.layer:
        for weight in (layer.intermediate.dense.weight, layer.output.dense.weight):
            kept = torch.rand(weight.numel() // 4, 1, generator=generator) >= 0.8
            with torch.no_grad():
                weight.view(-1, 4).mul_(kept)
    quantize_(model, Scheme())
    model.train()
    model(**inputs(4, 11))
    model.eval()
    found = export_onnx(model, inputs(2, 6), tmp_path / "m.onnx", target, SHAPE)
    stored = [a for a in arrays_of(found.path).values() if a.dtype == np.int8]
    for name, one in quantizers_of(model).items():
        if not name.endswith(":weight"):
            continue
        weight = model.get_parameter(name.replace(":", ".")).detach()
        grid = torch.round(weight / one.scale).to(torch.int8).numpy()
        assert any(np.array_equal(grid, array) for array in stored), name
        # The grid's zeros are the pruned weights and those that rounding takes.
        pruned = (weight == 0).numpy()
        assert (grid[pruned] == 0).all()
        small = (weight.abs() <= 0.5 * one.scale).numpy()
        assert ((grid == 0) <= (pruned | small)).all()


@pytest.mark.parametrize("scheme", [None, "products too"])
def test_free_sizes_are_copied_and_not_computed(scheme, tmp_path) -> None:
    model = make(scheme=SCHEMES[scheme] if scheme else None)
    found = export_onnx(model, inputs(2, 6), tmp_path / "m.onnx", "openvino")
    graph = onnx.load(found.path).graph
    known = {one.name for one in graph.initializer}
    shapes = [node.input[1] for node in graph.node if node.op_type == "Reshape"]
    assert sum(name in known for name in shapes) >= 4 * LAYERS
    tokens = [name for name in shapes if "encoder" in name]
    assert tokens and set(tokens) <= known
    for rows, tokens in ((40, 3), (64, 24)):
        batch = inputs(rows, tokens, 7)
        exactly = scheme is None
        assert agrees(model, found.path, found.outputs, batch, exactly=exactly)


def test_query_key_and_value_share_a_quantizer(tmp_path) -> None:
    found = export_onnx(
        make(scheme=Scheme()), inputs(2, 6), tmp_path / "m.onnx", "openvino"
    )
    # Of each layer: hidden state, context, two of the feed-forward; pooler and head.
    assert found.quantize_nodes == kinds_of(found.path)["QuantizeLinear"] == 4 * 2 + 2
    assert found.dequantize_nodes == found.quantize_nodes + found.int8_weights


def test_different_grids_are_not_merged(tmp_path) -> None:
    model = make(scheme=Scheme())
    one = quantizers_of(model)["bert.encoder.layer.0.attention.self.key:input"]
    one.fix_(one.scale * 1.5, one.zero_point)
    found = export_onnx(model, inputs(2, 6), tmp_path / "m.onnx", "openvino")
    assert found.quantize_nodes == 4 * 2 + 2 + 1
    assert agrees(model, found.path, found.outputs, inputs(40, 11, 7))


def test_a_mask_with_another_use_is_left_to_the_model(tmp_path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()

        def forward(self, input_ids, attention_mask):
            found = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            tokens = attention_mask.sum(1, keepdim=True).to(torch.float32)
            return {"logits": found.logits * tokens}

    model = Counting().eval()
    found = export_onnx(model, inputs(2, 6), tmp_path / "m.onnx")
    assert agrees(model, found.path, ("logits",), inputs(6, 11, 7), exactly=True)


def test_another_family(tmp_path) -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=40, dim=32, hidden_dim=64, n_layers=2, n_heads=2, n_positions=24
    )
    model = DistilBertForSequenceClassification(config)
    quantize_(model, Scheme())
    model.train()
    model(**inputs(4, 11))
    model.eval()
    for target, shape in (("onnxruntime", None), ("deepsparse", SHAPE)):
        path = tmp_path / f"{target}.onnx"
        found = export_onnx(model, inputs(2, 6), path, target, shape)
        assert agrees(model, path, found.outputs, inputs(*SHAPE, 7))


def test_the_attention_of_the_model_stays_as_it_was(tmp_path) -> None:
    model = make(kind="sdpa")
    export_onnx(model, inputs(2, 6), tmp_path / "m.onnx")
    assert model.config._attn_implementation == "sdpa"


def test_a_wrong_bias_is_found(tmp_path, monkeypatch) -> None:
    model, sample = make(scheme=Scheme()), inputs(2, 6)

    def compared():
        path = tmp_path / "m.onnx"
        export_onnx(model, sample, path, "deepsparse", SHAPE, True)
        return compare(model, sample, path, "onnxruntime", True)

    assert "within" in compared()
    right = Product.scale
    monkeypatch.setattr(Product, "scale", lambda *args: 1.2 * right(*args))
    with pytest.raises(ValueError, match="gives other outputs than the model"):
        compared()


@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        (
            "tensorrt",
            None,
            "target=tensorrt .*expected one of onnxruntime, openv",
        ),
        ("deepsparse", None, "target=deepsparse runs no graph with free sizes"),
        ("deepsparse", (0, 4), r"shape=\(0, 4\) is no size of a batch"),
        ("deepsparse", (2, 25), "shape=2x25 is longer than the model's 24"),
    ],
)
def test_targets_that_cannot_be_are_refused(target, shape, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(make(), inputs(2, 6), tmp_path / "m.onnx", target, shape)
    assert not (tmp_path / "m.onnx").exists()


def test_one_row_and_one_token(tmp_path) -> None:
    model = make(scheme=Scheme())
    path = tmp_path / "m.onnx"
    found = export_onnx(model, inputs(1, 5), path, "deepsparse", (1, 1))
    assert run(found.path, inputs(1, 1))[0].shape == (1, 2)
