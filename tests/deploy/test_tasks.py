"""Of each task: a model pruned and quantized on the embedded encoder, in every format.

The metric of the exported file on the validation set, as `obert evaluate` computes it,
beside that of the PyTorch model.
"""

import sys

import pytest

from obert_modifiers import embedded, tasks
from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.engines.engine import import_engine
from obert_modifiers.deploy.evaluate import Request, evaluate_file
from obert_modifiers.deploy.export import export_run
from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.deploy.formats.format import Options

# 2:4, as one of the formats holds nothing else.
RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 2.0
  - !NMPruningModifier
      mask_type: "2:4"
      start_epoch: 0.5
  - !QATModifier
      start_epoch: 1.0
      disable_observer_epoch: 1.5
      quantize_attention_matmuls: true
"""
NAMES = "O,B-PER,I-PER,B-ORG,I-ORG,B-LOC,I-LOC,B-MISC,I-MISC"
BATCH = 25
# Data set (None: the embedded one), training and validation samples, length, flags.
DATA = {
    "text_classification": (None, 960, 1000, 64, ()),
    "question_answering": ("squad", 960, 400, 128, ("--doc_stride", "48")),
    "token_classification": ("conll2003", 3200, 500, 64, ("--label_names", NAMES)),
    "sentence_embedding": ("stsb", 960, 400, 64, ()),
    "masked_language_modeling": ("wiki_paragraphs", 480, 200, 64, ()),
}
assert DATA.keys() == tasks.TASKS.keys()
HALF_A_POINT = 0.005
# A perplexity has no points: it is compared by its ratio, and accuracy beside it.
PERPLEXITY, SHARE = "perplexity", 0.005

# Format, target, and the engine that runs it.
CASES = {
    "onnx for ONNX Runtime": ("onnx", "onnxruntime", "onnxruntime"),
    "onnx for OpenVINO, on ONNX Runtime": ("onnx", "openvino", "onnxruntime"),
    "onnx for DeepSparse, on ONNX Runtime": ("onnx", "deepsparse", "onnxruntime"),
    "onnx for DeepSparse": ("onnx", "deepsparse", "deepsparse"),
    "openvino": ("openvino", None, "openvino"),
    "2:4": ("torch24", None, "torch"),
    "packed": ("safetensors", None, "torch"),
    "sparse": ("sparse", None, "sparse"),
}
assert {case[0] for case in CASES.values()} == FORMATS.keys()
assert {case[2] for case in CASES.values()} == set(ENGINES)


def installed(engine: str) -> bool:
    try:
        ENGINES[engine].package()
    except ValueError:
        return False
    return True


def test_what_is_not_installed_is_left_out(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not installed("openvino") and installed("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_the_metric_of_each_format(name, tmp_path, request) -> None:
    pytest.importorskip(embedded.ENCODER_PACKAGE)
    data, train, some, length, more = DATA[name]
    words = [*more, f"--max_seq_length={length}", f"--max_eval_samples={some}"]
    words += [f"--per_device_eval_batch_size={BATCH}"]
    words += [f"--cache_dir={tmp_path / 'cache'}", "--use_cpu"]
    if data is not None:
        folder = request.getfixturevalue("shared_data") / data
        if not folder.is_dir():
            pytest.skip(f"no data set in {folder}; set OBERT_SHARED_DATA")
        words += [f"--dataset_name={folder}"]
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    flags = [f"--recipe={recipe}", f"--output_dir={run}", "--eval_strategy=no"]
    flags += [f"--max_train_samples={train}", "--per_device_train_batch_size=16"]
    record = tasks.main(name, [*words, *flags, "--learning_rate=2e-4"])
    headline = record["headline"][0]
    if headline == PERPLEXITY:
        headline = "accuracy"
    scale = 100 if record[headline] > 1.5 else 1  # SQuAD's figures are percentages

    measured = {}
    for title, (form, target, engine) in CASES.items():
        if not installed(engine):
            continue
        ending = {"onnx": ".onnx", "openvino": ".xml"}.get(form, "")
        out = tmp_path / f"{target}_{form}{ending}"
        shape = (BATCH, length) if target == "deepsparse" else None
        options = Options(target or "onnxruntime", shape, int8=form != "torch24")
        export_run(run, form, out, options)
        if engine == "deepsparse":
            opened = import_engine(engine).Engine(str(out), batch_size=BATCH)
            # Pooling comes behind what it knows.
            whole = name != "sentence_embedding"
            assert opened.fraction_of_supported_ops == 1.0 or not whole
        found = evaluate_file(Request(out, engine=engine, run=run, words=words))
        measured[title] = found[headline]
        if PERPLEXITY in record:
            ratio = found[PERPLEXITY] / record[PERPLEXITY]
            assert abs(ratio - 1) <= SHARE, title
    print(name, headline, record[headline], measured)
    assert len(measured) >= 5
    for title, value in measured.items():
        assert abs(value - record[headline]) <= HALF_A_POINT * scale, title
