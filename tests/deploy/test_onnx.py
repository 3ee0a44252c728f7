"""ONNX files against the torch models that they came from, on ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
)

from obert_modifiers import embedded, tasks
from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.core.quantization.scheme import Scheme, quantizers_of
from obert_modifiers.deploy.onnx import export_onnx
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
    numpy_of,
    plain_session,
    run,
    sizes_of,
)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_agrees_at_every_batch_and_length(scheme, kind, tmp_path) -> None:
    model = make(scheme=SCHEMES[scheme], kind=kind)
    found = export_onnx(model, inputs(1, 5), tmp_path / "new" / "model.onnx")
    for rows, tokens in ((1, 1), (64, 11), (40, 24), (32, 2)):
        batch = inputs(rows, tokens, 7)
        assert agrees(model, found, batch, exactly=scheme == "plain")
    assert found.size_bytes == found.path.stat().st_size
    assert found.inputs == ("input_ids", "attention_mask")


@pytest.mark.parametrize("cls", OUTPUTS)
def test_outputs_are_named_by_the_task(cls, tmp_path) -> None:
    model = make(cls, Scheme())
    found = export(model, tmp_path)
    assert found.outputs == OUTPUTS[cls]
    graph = onnx.load(found.path)
    assert graph.opset_import[0].version == 17
    follows = cls is not BertForSequenceClassification
    for one in graph.graph.output:
        rows, second = sizes_of(one)[:2]
        assert rows == "batch" and (second == "sequence") == follows
    # Of seed 7 a row of the masked language model lies so near a step's border that one
    # release of ONNX Runtime moves it by 2.05 % of the largest output, another not.
    assert agrees(model, found, inputs(32, 9, 8))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    def full(model, path):
        path.write_text("half")
        raise OSError("no space left")

    path = tmp_path / "model.onnx"
    path.write_text("an earlier one")
    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(OSError, match="no space"):
        export(make(), tmp_path)
    assert path.read_text() == "an earlier one" and list(tmp_path.iterdir()) == [path]


def test_two_labels_and_two_tokens_are_told_apart(tmp_path) -> None:
    found = export_onnx(make(), inputs(2, 2), tmp_path / "model.onnx")
    (logits,) = run(found.path, inputs(5, 7))
    assert logits.shape == (5, 2)


def test_a_plain_file_does_not_agree_with_a_quantized_model(tmp_path) -> None:
    plain, batch = make(), inputs(64, 11, 7)
    found = export(plain, tmp_path)
    assert not agrees(make(scheme=Scheme()), found, batch)
    assert agrees(plain, found, batch, exactly=True)


@pytest.mark.parametrize("integer_bias", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_are_stored_as_int8(per_channel, integer_bias, tmp_path) -> None:
    model = make(scheme=Scheme(per_channel=per_channel))
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight[:, ::2] = 0.0
        weight[3] = 0.0
    name = "bert.encoder.layer.0.output.dense:weight"
    quantizers_of(model)[name].observe_(weight)
    found = export(model, tmp_path, integer_bias=integer_bias)
    graph, arrays = onnx.load(found.path).graph, arrays_of(found.path)
    whole = {
        name.removeprefix("model.").split("_int8")[0]: array.T
        if name.endswith("_t")
        else array
        for name, array in arrays.items()
        if array.dtype == np.int8 and "_int8" in name
    }
    # Three embeddings, six linear layers in each of two layers, pooler and head.
    assert len(whole) == found.int8_weights == 17
    # And the biases of all linear layers, where they are asked for.
    assert found.dequantize_nodes == 17 + 14 * integer_bias + found.quantize_nodes
    for name, array in whole.items():
        one = quantizers_of(model)[f"{name.removesuffix('.weight')}:weight"]
        weight = model.get_parameter(name).detach()
        grid = torch.from_numpy(array.copy()).float()
        scale = one.scale[:, None] if one.per_channel else one.scale
        assert torch.equal(grid * scale, one(weight, False))  # bit for bit
        assert ((weight == 0) <= (grid == 0)).all()
    # No weight is there in floating point beside its INT8 one.
    for name, array in arrays.items():
        assert array.dtype != np.float32 or array.ndim < 2, name
    assert all(node.op_type != "Identity" for node in graph.node)
    scales = [arrays[n.input[1]] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert scales and all(scale.ndim == 0 for scale in scales)


def test_onnx_runtime_computes_in_integers(tmp_path) -> None:
    found = export(make(scheme=SCHEMES["products too"]), tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # that the file is only for this machine
    onnxruntime.InferenceSession(
        str(found.path), options, providers=["CPUExecutionProvider"]
    )
    kinds = kinds_of(tmp_path / "optimized.onnx")
    assert kinds["MatMul"] == kinds["Gemm"] == 0
    # Six linear layers and two products in each of two layers, pooler and head.
    integers = ("QGemm", "MatMulIntegerToFloat", "QLinearMatMul")
    assert sum(kinds[kind] for kind in integers) == 2 * (6 + 2) + 2
    assert kinds["QGemm"] == 2 * 6 + 2


def test_the_model_stays_as_it_was(tmp_path) -> None:
    model = moving_(make(), Scheme(), inputs(4, 11)).train()
    model.bert.pooler.eval()
    ranges = {name: one.state() for name, one in quantizers_of(model).items()}
    export(model, tmp_path)
    assert model.training and not model.bert.pooler.training
    assert model.config._attn_implementation == "sdpa"
    for name, one in quantizers_of(model).items():
        assert one.observing and one.state().keys() == ranges[name].keys()
        pairs = ((value, ranges[name][key]) for key, value in one.state().items())
        assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in pairs)


def test_weights_that_are_shared_or_equal(tmp_path) -> None:
    model = make()
    layers = model.bert.encoder.layer
    layers[1] = layers[0]  # one layer called twice
    attention = layers[0].attention.self
    attention.key.load_state_dict(attention.query.state_dict())
    moving_(model, Scheme(per_channel=True), inputs(4, 11))
    assert agrees(model, export(model, tmp_path), inputs(64, 11, 7))


class Bare(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


SHORT = {"input_ids": torch.zeros(2, 1, dtype=torch.long)}


@pytest.mark.parametrize(
    ("model", "sample", "message"),
    [
        (make(), SHORT, r"sample input_ids has shape \(2, 1\); .* 2 tokens at least"),
        (make(), {}, "sample={} has no inputs; expected tensors by name"),
        (Bare(2, 2), {"x": torch.zeros(2, 3)}, "Bare returns Tensor; expected a mapp"),
    ],
)
def test_what_cannot_be_exported_is_refused(model, sample, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(model, sample, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 2.0
  - !GMPStarPruningModifier
      init_sparsity: 0.3
      final_sparsity: 0.3
      start_epoch: 0.5
      end_epoch: 0.75
  - !QATModifier
      start_epoch: 0.75
      disable_observer_epoch: 1.0
      quantize_attention_matmuls: {products}
"""
LENGTH = 32  # tokens; longer sentences are cut, for time


@pytest.mark.slow
@pytest.mark.parametrize("products", ["false", "true"])
def test_the_embedded_encoder_is_as_accurate_in_int8(products, tmp_path) -> None:
    pytest.importorskip(embedded.ENCODER_PACKAGE)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(products=products))
    flags = {
        "recipe": tmp_path / "recipe.yaml",
        "output_dir": tmp_path / "out",
        "cache_dir": tmp_path / "cache",
        "max_train_samples": 1280,
        "max_seq_length": LENGTH,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-4,
        "eval_strategy": "no",
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    record = tasks.main("text_classification", [*words, "--use_cpu"])
    folder = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert load_quantization_(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sample = tokenizer(["a sentence"], return_tensors="pt")
    found = export_onnx(model, sample, tmp_path / "model.onnx")

    rows = pytest.importorskip("pyarrow.parquet").read_table(
        embedded.movie_snippets()["validation"]
    )
    rows = rows.to_pylist()
    session = plain_session(found.path)
    hits = same = 0
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        batch = tokenizer(
            [row["sentence"] for row in part],
            padding=True,
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )
        with torch.no_grad():
            ours = model(**batch).logits.argmax(-1).numpy()
        theirs = session.run(None, numpy_of(batch))[0].argmax(-1)
        hits += sum(int(p) == r["label"] for p, r in zip(theirs, part, strict=True))
        same += int((ours == theirs).sum())
    accuracy = hits / len(rows)
    assert record["accuracy"] > 0.7
    assert abs(accuracy - record["accuracy"]) <= 0.005
    assert same >= 0.99 * len(rows)
    # 22.7M parameters: INT8 but for biases and LayerNorm.
    plain = (folder / "model.safetensors").stat().st_size
    assert found.size_bytes < 0.27 * plain
