"""What each engine's file looks like, and that all of them compute the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from obert_modifiers.core.quantization.scheme import Scheme, quantizers_of
from obert_modifiers.deploy import checks
from obert_modifiers.deploy.checks import compare
from obert_modifiers.deploy.engines.onnxruntime import open_session
from obert_modifiers.deploy.onnx.graph import Product
from tests.deploy.models import (
    OUTPUTS,
    SCHEMES,
    agrees,
    arrays_of,
    export,
    inputs,
    kinds_of,
    make,
    moving_,
    run,
    sizes_of,
)

SHAPE = (5, 9)
LINEAR, PRODUCTS, LAYERS = 6, 2, 2


@pytest.mark.parametrize("cls", OUTPUTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_give_what_the_model_gives(cls, scheme, tmp_path) -> None:
    model, plain = make(cls, SCHEMES[scheme]), SCHEMES[scheme] is None
    integer_bias = scheme == "per channel"  # both kinds of bias
    found = export(model, tmp_path, "deepsparse", SHAPE, integer_bias)
    assert found.outputs == OUTPUTS[cls]
    # DeepSparse's file stays INT8; ONNX Runtime is told to sum it in 32 bits.
    assert agrees(model, found, inputs(*SHAPE, 7), plain, open_session)
    graph = onnx.load(found.path)
    assert graph.opset_import[0].version == 14
    for one in (*graph.graph.input, *graph.graph.output):
        sizes = sizes_of(one)
        assert sizes[0] == SHAPE[0] and all(isinstance(n, int) and n for n in sizes)
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
    found = export(moving_(model, Scheme(), inputs(4, 11)), tmp_path, target, SHAPE)
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


@pytest.mark.parametrize("scheme", ["plain", "products too"])
def test_free_sizes_are_copied_and_not_computed(scheme, tmp_path) -> None:
    model = make(scheme=SCHEMES[scheme])
    found = export(model, tmp_path, "openvino")
    graph = onnx.load(found.path).graph
    known = {one.name for one in graph.initializer}
    shapes = [node.input[1] for node in graph.node if node.op_type == "Reshape"]
    assert sum(name in known for name in shapes) >= 4 * LAYERS
    tokens = [name for name in shapes if "encoder" in name]
    assert tokens and set(tokens) <= known
    for rows, tokens in ((40, 3), (64, 24)):
        batch = inputs(rows, tokens, 7)
        assert agrees(model, found, batch, exactly=scheme == "plain")


def test_query_key_and_value_share_a_quantizer_where_their_grids_are_equal(tmp_path):
    model = make(scheme=Scheme())
    found = export(model, tmp_path, "openvino")
    # Of each layer: hidden state, context, two of the feed-forward; pooler and head.
    assert found.quantize_nodes == kinds_of(found.path)["QuantizeLinear"] == 4 * 2 + 2
    assert found.dequantize_nodes == found.quantize_nodes + found.int8_weights
    one = quantizers_of(model)["bert.encoder.layer.0.attention.self.key:input"]
    one.fix_(one.scale * 1.5, one.zero_point)
    found = export(model, tmp_path, "openvino")
    assert found.quantize_nodes == 4 * 2 + 2 + 1
    assert agrees(model, found, inputs(40, 11, 7))


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
    found = export(model, tmp_path)
    assert found.outputs == ("logits",)
    assert agrees(model, found, inputs(6, 11, 7), exactly=True)


@pytest.mark.parametrize(
    ("target", "shape"), [("onnxruntime", None), ("deepsparse", SHAPE)]
)
def test_another_family(target, shape, tmp_path) -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=40, dim=32, hidden_dim=64, n_layers=2, n_heads=2, n_positions=24
    )
    model = DistilBertForSequenceClassification(config)
    moving_(model, Scheme(), inputs(4, 11))
    assert agrees(model, export(model, tmp_path, target, shape), inputs(*SHAPE, 7))


def test_a_wrong_bias_is_found(tmp_path, monkeypatch) -> None:
    model = make(scheme=Scheme())

    def compared():
        path = export(model, tmp_path, "deepsparse", SHAPE, True).path
        return compare(model, inputs(2, 6), path, "onnxruntime", True)

    assert "within" in compared()
    right = Product.scale
    monkeypatch.setattr(Product, "scale", lambda *args: 1.2 * right(*args))
    with pytest.raises(ValueError, match="gives other outputs than the model"):
        compared()


def test_a_number_about_zero_is_held_against_the_largest_of_all(monkeypatch) -> None:
    class Lengths(nn.Module):
        def forward(self, input_ids, attention_mask):
            number = (input_ids.shape[1] - 6) / 10 + 1e-3  # of a batch of one number
            return {"logits": torch.full((len(input_ids), 1), number)}

    class Off(Lengths):
        sizes, by = (None, None), 0.0

        def forward(self, **given):
            return {"logits": super().forward(**given)["logits"] + self.by}

    graph = Off()
    monkeypatch.setattr(checks, "open_graph", lambda *_: graph)

    def compared(by: float) -> str:
        graph.by = by
        return compare(Lengths(), inputs(1, 6), Path("m"), "onnxruntime", True)

    assert "within 0.0002 of PyTorch's largest, at 1x6, " in compared(0.01)
    with pytest.raises(ValueError, match="0.2 of the largest at 1x6"):
        compared(10.0)


@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        ("tensorrt", None, "target=tensorrt .*expected one of onnxruntime, openv"),
        ("deepsparse", None, "target=deepsparse runs no graph with free sizes"),
        ("deepsparse", (0, 4), r"shape=\(0, 4\) is no size of a batch"),
        ("deepsparse", (2, 25), "shape=2x25 is longer than the model's 24"),
    ],
)
def test_targets_that_cannot_be_are_refused(target, shape, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        export(make(), tmp_path, target, shape)
    assert not (tmp_path / "model.onnx").exists()


def test_one_row_and_one_token(tmp_path) -> None:
    found = export(make(scheme=Scheme()), tmp_path, "deepsparse", (1, 1))
    assert run(found.path, inputs(1, 1))[0].shape == (1, 2)
