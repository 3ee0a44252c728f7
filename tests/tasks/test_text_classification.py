"""The whole way on a tiny model: train, prune, save, reload, measure."""

import csv
import json
import subprocess
import sys
from fractions import Fraction

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from obert_modifiers.tasks.run import record as records
from tests import tiny
from tests.tasks import inputs

# Reloads a saved model in a process that never imports this package.
RELOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, data = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
hits = rows = 0
for line in open(data):
    row = json.loads(line)
    with torch.no_grad():
        logits = model(**tokenizer(row["sentence"], return_tensors="pt")).logits
    hits += model.config.id2label[int(logits.argmax())] == str(row["label"])
    rows += 1
weights = [p for n, p in model.named_parameters()
           if ".encoder." in n and n.endswith("weight") and p.ndim == 2]
zeros = sum(int((w == 0).sum()) for w in weights)
assert not any(name.startswith("obert") for name in sys.modules)
print(json.dumps([hits / rows, zeros, sum(w.numel() for w in weights)]))
"""


def run(small, out, words="", **replaced):
    flags = {
        "model_name_or_path": small.model,
        "train_file": small.train,
        "validation_file": small.validation,
        "output_dir": out,
        "cache_dir": small.cache,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "num_train_epochs": 1,
    }
    return inputs.run("text_classification", words, **flags | replaced)


@pytest.fixture(scope="module")
def pruned(small, tmp_path_factory):
    """Return the folder and the record of a run with the recipe of `tiny`."""
    out = tmp_path_factory.mktemp("runs") / "pruned"
    return out, run(small, out, recipe=small.recipe)


def test_the_saved_model_reloads_elsewhere_as_it_was_measured(small, pruned):
    out, record = pruned
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(out), str(small.validation)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    accuracy, zeros, weights = json.loads(done.stdout)
    assert accuracy == record["accuracy"]
    # 80 % of 16,384 weights, rounded to a whole one.
    assert zeros == round(Fraction(8, 10) * weights) == 13107
    assert record["sparsity"] == zeros / weights


def test_a_quantized_model_is_saved_and_measured_as_such(small, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    text = tiny.RECIPE + "  - !QATModifier\n      start_epoch: 1.5\n"
    recipe.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    record = run(small, out, recipe=recipe)
    saved = json.loads((out / "quantization.json").read_text())["tensors"]
    assert len(saved) == 3 + 2 * (6 * 2 + 2)  # embeddings; layers, pooler and head
    assert "classifier:weight" in saved
    assert not any("quant" in name for name in load_file(out / "model.safetensors"))
    # Evaluating the folder gives the same figures, which are not the plain model's.
    flags = "--do_eval --per_device_eval_batch_size 48"
    again = run(small, tmp_path / "a", flags, model_name_or_path=out, train_file=None)
    assert again["loss"] == pytest.approx(record["loss"], rel=1e-6)
    (out / "quantization.json").unlink()
    plain = run(small, tmp_path / "b", flags, model_name_or_path=out, train_file=None)
    assert plain["loss"] != pytest.approx(record["loss"], rel=1e-6)


def test_the_folder_holds_everything(small, pruned):
    out, record = pruned
    written = {path.name for path in out.iterdir()}
    assert written >= {
        "config.json",
        "metrics.json",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
    }
    assert json.loads((out / "metrics.json").read_text()) == json.loads(
        json.dumps(record, default=str)
    )
    assert record["samples"] == 48 and record["train_samples"] == 256
    assert record["steps"] == 64 and record["pruning_events"] == 3
    assert record["size_mb"] > record["gzip_mb"] > 0
    assert record["minutes"] > 0 and record["machine"]["cores"] > 0
    assert {"python", "torch", "transformers", "sparseml"} <= set(record["versions"])
    assert record["command"][0] == "obert"


def test_the_recipe_rules_epochs_and_learning_rate_and_says_so(pruned):
    out, _ = pruned
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    texts = " ".join(line["text"] for line in lines if line["kind"] == "message")
    assert "--num_train_epochs" in texts and "--learning_rate" in texts
    rates = [line["learning_rate"] for line in lines if line["kind"] == "step"]
    assert rates[0] == pytest.approx(5e-3, rel=0.1) and rates[-1] < rates[0] / 10
    assert [line["epoch"] for line in lines if line["kind"] == "prune"] == [0.5, 1, 1.5]


def test_the_recipe_as_run_gives_the_same_model_again(small, pruned, tmp_path):
    first, record = pruned
    again = run(small, tmp_path / "again", recipe=first / "recipe.yaml")
    assert again["loss"] == record["loss"]
    one, two = (load_file(f / "model.safetensors") for f in (first, tmp_path / "again"))
    assert all((one[name] == two[name]).all() for name in one)


def test_evaluation_alone_finds_the_same_figures(small, pruned, tmp_path):
    out, record = pruned
    found = run(small, tmp_path, "--do_eval", model_name_or_path=out, train_file=None)
    assert (found["accuracy"], found["loss"]) == (record["accuracy"], record["loss"])
    assert (tmp_path / "eval_metrics.json").is_file()
    assert not (tmp_path / "metrics.json").exists()


def test_it_learns_and_predicts(small, tmp_path):
    record = run(
        small,
        tmp_path / "out",
        "--do_train --do_eval --do_predict",
        learning_rate=5e-3,
        num_train_epochs=3,
        test_file=small.validation,
    )
    assert record["accuracy"] > 0.9 and record["sparsity"] == 0.0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        predicted = [row["prediction"] for row in csv.DictReader(file)]
    truth = [str(row["label"]) for row in tiny.sentences(48, 1)]
    hits = sum(a == b for a, b in zip(predicted, truth, strict=True))
    assert hits / 48 == record["accuracy"]


def test_training_needs_no_validation_data(small, tmp_path):
    record = run(
        small,
        tmp_path / "out",
        "--do_train",
        validation_file=None,
        max_train_samples=32,
    )
    assert record["accuracy"] is None and record["steps"] == 4


def test_texts_as_labels_and_numbers(small, tmp_path):
    names = {0: "bad", 1: "good"}
    rows = [row | {"label": names[row["label"]]} for row in tiny.sentences(40)]
    path = tiny.write_rows(tmp_path / "names.json", rows)
    run(small, tmp_path / "names", train_file=path, validation_file=path)
    assert AutoConfig.from_pretrained(tmp_path / "names").id2label == names
    rows = [row | {"label": row["label"] + 0.5} for row in tiny.sentences(40)]
    path = tiny.write_rows(tmp_path / "numbers.json", rows)
    record = run(small, tmp_path / "numbers", train_file=path, validation_file=path)
    assert AutoConfig.from_pretrained(tmp_path / "numbers").num_labels == 1
    assert record["loss"] > 0 and -1 <= record["pearson"] <= 1


def test_a_teacher_is_loaded_and_used(small, pruned, tmp_path):
    teacher, taught_by_none = pruned
    recipe = tmp_path / "distil.yaml"
    recipe.write_text(
        tiny.RECIPE + "  - !LogitDistillationModifier\n      hardness: 1\n"
    )
    out = tmp_path / "out"
    record = run(small, out, recipe=recipe, distill_teacher=teacher)
    assert record["teacher"] == str(teacher)
    assert record["loss"] != taught_by_none["loss"]
    with pytest.raises(ValueError, match="LogitDistillationModifier"):
        run(small, tmp_path / "no", recipe=recipe)
    other = tiny.save_model(tmp_path / "three", num_labels=3)
    with pytest.raises(ValueError, match="expected 0, 1; train it on this data set"):
        three = tmp_path / "saved"
        run(small, three, model_name_or_path=other, train_file=_three(tmp_path))
        run(small, tmp_path / "no", recipe=recipe, distill_teacher=three)


def _three(folder):
    rows = [row | {"label": i % 3} for i, row in enumerate(tiny.sentences(24))]
    return tiny.write_rows(folder / "three.json", rows)


def test_an_unused_teacher_is_mentioned(small, pruned, tmp_path):
    record = run(small, tmp_path / "out", distill_teacher=pruned[0])
    assert any("is not used" in note for note in record["notes"])


def test_an_output_folder_is_written_over_completely(small, pruned, tmp_path):
    out = tmp_path / "out"
    run(small, out, recipe=small.recipe)
    run(small, out, "--overwrite_output_dir", max_train_samples=8)
    assert not (out / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"recipe": "zoo:bert/pruned"}, "zoo:bert/pruned.*path"),
        ({"recipe": "missing.yaml"}, "missing.yaml"),
        ({"recipe_args": "{}"}, "has no recipe"),
        ({"model_name_or_path": "zoo:bert"}, "SparseZoo.*local path"),
        ({"model_name_or_path": "no/such"}, "hub did not give it.*local folder"),
        ({"model_name_or_path": "."}, "cannot be loaded"),
        ({"label_column_name": "lable"}, "mean label\\?"),
        ({"lr_scheduler_type": "polynomial"}, "expected one of linear"),
        ({"validation_file": None}, "no validation split, only train"),
        ({"distill_teacher": "nowhere"}, "--distill_teacher=nowhere"),
    ],
)
def test_bad_input_is_an_error_before_training(small, tmp_path, replaced, message):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        run(small, out, **replaced)
    assert not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("!OBERTPruning", "!OBERPruning", "OBERTPruningModifier"),
        ("num_grads: 16", "num_grad: 16", "num_grads"),
        ("final_sparsity: 0.8", "final_sparsity: 80", "0.8"),
        ("start_epoch: 0.5", "start_epoch: 1.75", "start_epoch"),
        ("num_grads: 16", "num_grads: 257", "num_grads=257"),
        ("num_grads: 16", "num_grads: 16\n      params: ['re:nix']", "re:nix"),
    ],
)
def test_a_bad_recipe_names_file_line_modifier_and_key(
    small, tmp_path, old, new, message
):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(tiny.RECIPE.replace(old, new))
    line = next(
        number
        for number, text in enumerate(recipe.read_text().splitlines(), 1)
        if new.splitlines()[-1].strip() in text
    )
    with pytest.raises(ValueError) as error:
        run(small, tmp_path / "out", recipe=recipe)
    assert message in str(error.value)
    assert f"{recipe}:{line}: OBER" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_zeros_are_counted_in_the_files(pruned, tmp_path):
    out, record = pruned
    names = [layer["name"] for layer in record["layers"]]
    assert len(names) == 12
    assert records.count_zeros(out, names) == record["layers"]
    with pytest.raises(ValueError, match="lacks nothing.weight"):
        records.count_zeros(out, ["nothing.weight"])
    with pytest.raises(FileNotFoundError, match="has no weights"):
        records.count_zeros(tmp_path, names)


def test_the_gzipped_size_is_that_of_gzip(pruned):
    out, record = pruned
    packed = subprocess.run(
        ["gzip", "-6nc", out / "model.safetensors"], capture_output=True, check=True
    )
    assert record["gzip_mb"] == pytest.approx(len(packed.stdout) / 1e6, rel=1e-2)
