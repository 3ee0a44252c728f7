"""SparseML's recipes, unedited, in `obert train ... --replace`."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from obert_modifiers import cli
from obert_modifiers.tasks.command_line import _spelt_out
from tests import tiny

# As in SparseML's recipes for oBERT, with a smaller schedule.
RECIPE = """\
num_epochs: &num_epochs 2
pruning_start: 0.5

training_modifiers:
  - !EpochRangeModifier
      end_epoch: *num_epochs
      start_epoch: 0.0

  - !LearningRateFunctionModifier
      start_epoch: 0
      end_epoch: *num_epochs
      lr_func: linear
      init_lr: 5e-3
      final_lr: 0.0

pruning_modifiers:
  - !OBSPruningModifier
      params: [
        "re:bert.encoder.layer.*.attention.self.query.weight",
        "re:bert.encoder.layer.*.attention.self.key.weight",
        "re:bert.encoder.layer.*.attention.self.value.weight",
        "re:bert.encoder.layer.*.attention.output.dense.weight",
        "re:bert.encoder.layer.*.intermediate.dense.weight",
        "re:bert.encoder.layer.*.output.dense.weight",
      ]
      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: eval(pruning_start)
      end_epoch: 1.5
      update_frequency: 0.5
      inter_func: cubic
      global_sparsity: True
      mask_type: block4
      num_grads: 24
      damp: 1e-5
      fisher_block_size: 16
      num_recomputations: 1

distillation_modifiers:
  - !DistillationModifier
     hardness: 0.5
     temperature: 2.0
     distill_output_keys: [logits]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    tiny.write_rows(folder / "train.json", tiny.sentences(96))
    tiny.write_rows(folder / "validation.json", tiny.sentences(32, seed=1))
    tiny.save_model(folder / "model")
    return folder


def train(files, out, capsys, *more: str) -> tuple[int, str]:
    words = ["train", "text_classification", "--recipe", files / "recipe.yaml"]
    words += ["--model_name_or_path", files / "model", "--distill_teacher", "self"]
    words += ["--train_file", files / "train.json", "--output_dir", out]
    words += ["--validation_file", files / "validation.json", "--use_cpu"]
    words += ["--report_to", "none", "--disable_tqdm", *more]
    code = cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_recipe_of_sparsemls_runs_on_ours(files, tmp_path, capsys) -> None:
    code, said = train(files, tmp_path / "same", capsys, "--replace")
    assert code == 0, said
    assert "batches of 8 are more than the 96 training samples" in said
    record = json.loads((tmp_path / "same" / "metrics.json").read_text("utf-8"))
    assert record["sparsity"] == pytest.approx(0.8, abs=1e-3)
    lines = (tmp_path / "same" / "metrics.jsonl").read_text("utf-8").splitlines()
    events = [e for e in map(json.loads, lines) if e["kind"] == "prune"]
    assert {e["modifier"] for e in events} == {"OBERTPruningModifier"}
    assert [e["num_gradients"] for e in events] == [24] * 3
    weights = load_file(tmp_path / "same" / "model.safetensors")
    found = [v for k, v in weights.items() if "encoder" in k and v.ndim == 2]
    zeros = sum(int((v == 0).sum()) for v in found)
    assert zeros / sum(v.numel() for v in found) == pytest.approx(0.8, abs=1e-3)
    for values in found:
        assert ((values.reshape(-1, 4) == 0).sum(dim=1) % 4 == 0).all()
    kept = (tmp_path / "same" / "recipe.yaml").read_text("utf-8")
    assert "!OBERTPruningModifier  # was !OBSPruningModifier" in kept
    assert yaml.compose(kept) and "grad_granularity: batch" in kept


@pytest.mark.slow
def test_with_our_defaults_each_change_is_said(files, tmp_path, capsys) -> None:
    code, said = train(files, tmp_path / "ours", capsys, "--replace=ours")
    assert code == 0, said
    for words in ("24 batches there", "damp_fraction=0.01", "selection=greedy"):
        assert words in " ".join(said.split())
    record = json.loads((tmp_path / "ours" / "metrics.json").read_text("utf-8"))
    assert record["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_a_wrong_mode_is_one_message(files, tmp_path, capsys) -> None:
    code, said = train(files, tmp_path / "x", capsys, "--replace", "strict")
    assert code == 2 and "--replace" in said and "strict" in said


@pytest.mark.parametrize(
    ("words", "spelt"),
    [
        ([], []),
        (["--replace"], ["--replace", "same"]),
        (["--replace", "--do_train"], ["--replace", "same", "--do_train"]),
        (["--replace", "ours"], ["--replace", "ours"]),
        (["--replace=ours"], ["--replace=ours"]),
    ],
)
def test_a_bare_flag_gets_its_value(words, spelt) -> None:
    assert _spelt_out(words) == spelt
