"""Of each task: a model pruned and quantized on the embedded encoder, in every format.

The metric of the exported file, on the validation set, beside that of the PyTorch
model; both are computed by the task's own code.
"""

import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import nn
from transformers.utils import ModelOutput

from obert_modifiers import embedded
from obert_modifiers.bench.engines import module_of
from obert_modifiers.export.formats import Options, export_run
from obert_modifiers.tasks._arguments import parse
from obert_modifiers.tasks._plan import Notes, prepare, what_to_do
from obert_modifiers.training import evaluate

RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 2.0
  - !GMPStarPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.5
      start_epoch: 0.5
      end_epoch: 0.75
      mask_type: block4
  - !QATModifier
      start_epoch: 1.0
      disable_observer_epoch: 1.5
      quantize_attention_matmuls: true
"""
NAMES = "O,B-PER,I-PER,B-ORG,I-ORG,B-LOC,I-LOC,B-MISC,I-MISC"
BATCH, LENGTH = 25, 64
# Data set (None: the embedded one), training and validation samples, more flags.
TASKS = {
    "text_classification": (None, 960, 1000, ()),
    "question_answering": ("squad", 960, 400, ("--doc_stride", "24")),
    "token_classification": ("conll2003", 3200, 500, ("--label_names", NAMES)),
    "masked_language_modeling": ("wiki_paragraphs", 480, 200, ()),
}
assert len(TASKS) == 4
HALF_A_POINT = 0.005
# A perplexity has no points: it is compared by its ratio, and accuracy beside it.
PERPLEXITY, SHARE = "perplexity", 0.005


class Engine(nn.Module):
    """A file on an engine in the place of a model; batches are filled to its size."""

    def __init__(self, run, inputs, outputs, filled) -> None:
        super().__init__()
        self.run, self.inputs, self.outputs, self.filled = run, inputs, outputs, filled
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, **batch):
        rows, tokens = batch["input_ids"].shape
        zeros = torch.zeros_like(batch["input_ids"])  # token types that are left out
        feed = {name: batch.get(name, zeros).numpy() for name in self.inputs}
        if self.filled:
            more = ((0, BATCH - rows), (0, LENGTH - tokens))
            feed = {name: np.pad(value, more) for name, value in feed.items()}
        found = {}
        for name, value in zip(self.outputs, self.run(feed), strict=True):
            kept = value[:rows]
            if self.filled and kept.ndim > 1 and kept.shape[1] == LENGTH:
                kept = kept[:, :tokens]
            found[name] = torch.from_numpy(np.array(kept))
        return ModelOutput(found)


def on_onnxruntime(path, filled):
    engine = module_of("onnxruntime")
    session = engine.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = [one.name for one in session.get_inputs()]
    outputs = [one.name for one in session.get_outputs()]
    return Engine(lambda feed: session.run(None, feed), inputs, outputs, filled)


def on_openvino(path, filled):
    engine = module_of("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = engine.Core().compile_model(str(path), "CPU", options)
    inputs = [one.any_name for one in compiled.inputs]
    outputs = [one.any_name for one in compiled.outputs]

    def run(feed):
        found = compiled(feed)
        return [found[name] for name in outputs]

    return Engine(run, inputs, outputs, filled)


def on_deepsparse(path, filled):
    engine = module_of("deepsparse").Engine(str(path), batch_size=BATCH)
    assert engine.fraction_of_supported_ops == 1.0
    inputs, outputs = engine.input_names, engine.output_names

    def run(feed):
        return engine.run([np.ascontiguousarray(feed[name]) for name in inputs])

    return Engine(run, inputs, outputs, filled)


# Format, target, the engine that runs it, and whether its size is fixed.
FORMATS = {
    "onnx for ONNX Runtime": ("onnx", "onnxruntime", on_onnxruntime, False),
    "onnx for OpenVINO, on ONNX Runtime": ("onnx", "openvino", on_onnxruntime, False),
    "onnx for DeepSparse, on ONNX Runtime": (
        "onnx",
        "deepsparse",
        on_onnxruntime,
        True,
    ),
    "onnx for DeepSparse": ("onnx", "deepsparse", on_deepsparse, True),
    "openvino": ("openvino", "openvino", on_openvino, False),
}


def installed(engine) -> bool:
    try:
        module_of(engine.__name__.removeprefix("on_"))
    except ValueError:
        return False
    return True


def test_what_is_not_installed_is_left_out(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not installed(on_openvino) and installed(on_onnxruntime)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_metric_of_each_format(name, tmp_path, request) -> None:
    pytest.importorskip(embedded.ENCODER_PACKAGE)
    data, train, some, more = TASKS[name]
    words = [*more, "--max_seq_length", str(LENGTH), "--max_eval_samples", str(some)]
    words += ["--cache_dir", str(tmp_path / "cache"), "--use_cpu"]
    if data is not None:
        folder = request.getfixturevalue("shared_data") / data
        if not folder.is_dir():
            pytest.skip(
                f"no data set in {folder}; name its parent in OBERT_SHARED_DATA"
            )
        words += ["--dataset_name", str(folder)]
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = tmp_path / "run"
    module = import_module(f"obert_modifiers.tasks.{name}")
    flags = ["--recipe", str(tmp_path / "recipe.yaml"), "--output_dir", str(run)]
    flags += ["--max_train_samples", str(train), "--per_device_train_batch_size", "16"]
    flags += ["--learning_rate", "2e-4", "--eval_strategy", "no"]
    record = module.main([*words, *flags])
    headline = record["headline"][0]
    if headline == PERPLEXITY:
        headline = "accuracy"
    scale = 100 if record[headline] > 1.5 else 1  # SQuAD's figures are percentages

    task = module.TASK
    words += ["--model_name_or_path", str(run), "--output_dir", str(tmp_path / "eval")]
    words += ["--do_eval", "--per_device_eval_batch_size", str(BATCH)]
    arguments = what_to_do(task, parse(words, task.program, task.flags))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plan = prepare(task, arguments, None, PartialState(cpu=True), Notes())
    measured = {}
    for title, (form, target, engine, fixed) in FORMATS.items():
        if not installed(engine):
            continue
        ending = "xml" if form == "openvino" else "onnx"
        out = tmp_path / f"{target}_{form}.{ending}"
        shape = (BATCH, LENGTH) if fixed else None
        export_run(run, form, out, Options(target, shape, int8=True))
        found = evaluate(engine(out, fixed), plan.samples.data, plan.config)
        measured[title] = found[headline]
        if PERPLEXITY in record:
            ratio = found[PERPLEXITY] / record[PERPLEXITY]
            assert abs(ratio - 1) <= SHARE, title
    print(name, headline, record[headline], measured)
    assert len(measured) >= 3
    for title, value in measured.items():
        assert abs(value - record[headline]) <= HALF_A_POINT * scale, title
