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
from tests.tasks.inputs import refused

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
FILES = {"config.json", "metrics.json", "metrics.jsonl", "model.safetensors"}
FILES |= {"recipe.yaml", "tokenizer.json"}


@pytest.fixture(scope="module")
def run_at(small, run_in):
    flags = {"train_file": small.train, "validation_file": small.validation}
    flags["logging_steps"] = 1
    return lambda out, do="", **other: run_in(
        out, "text_classification", do, **flags | other
    )


@pytest.fixture
def run(run_at, tmp_path):
    """Run into a folder of the test, `out` unless it is named."""
    return lambda do="", out="out", **flags: run_at(tmp_path / out, do, **flags)


@pytest.fixture(scope="module")
def pruned(small, run_at, tmp_path_factory):
    """Return the folder and the record of a run with the recipe of `tiny`."""
    out = tmp_path_factory.mktemp("runs") / "pruned"
    return out, run_at(out, recipe=small.recipe)


def recipe_with(tmp_path, text: str):
    """Write the recipe of `tiny` and a modifier of a key."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{tiny.RECIPE}  - !{text}\n".replace("; ", "\n      "))
    return recipe


def relabelled(path, change, count: int = 40):
    """Write sentences whose labels are changed."""
    rows = [row | {"label": change(row["label"])} for row in tiny.sentences(count)]
    return tiny.write_rows(path, rows)


def test_the_saved_model_reloads_elsewhere_as_it_was_measured(small, pruned):
    out, record = pruned
    words = [sys.executable, "-c", RELOAD, str(out), str(small.validation)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy, zeros, weights = json.loads(done.stdout)
    assert accuracy == record["accuracy"]
    # 80 % of 16,384 weights, rounded to a whole one.
    assert zeros == round(Fraction(8, 10) * weights) == 13107
    assert record["sparsity"] == zeros / weights


def test_a_quantized_model_is_saved_and_measured_as_such(run, tmp_path):
    out = tmp_path / "out"
    record = run(recipe=recipe_with(tmp_path, "QATModifier; start_epoch: 1.5"))
    saved = json.loads((out / "quantization.json").read_text())["tensors"]
    assert len(saved) == 3 + 2 * (6 * 2 + 2)  # embeddings; layers, pooler and head
    assert "classifier:weight" in saved
    assert not any("quant" in name for name in load_file(out / "model.safetensors"))
    # Evaluating the folder gives the same figures, which are not the plain model's.
    again = "--do_eval --per_device_eval_batch_size 48"
    flags = {"model_name_or_path": out, "train_file": None}
    same = pytest.approx(record["loss"], rel=1e-6)
    assert run(again, out="a", **flags)["loss"] == same
    (out / "quantization.json").unlink()
    assert run(again, out="b", **flags)["loss"] != same


def test_the_folder_holds_everything(pruned):
    out, record = pruned
    assert {path.name for path in out.iterdir()} >= FILES
    written = json.loads((out / "metrics.json").read_text())
    assert written == json.loads(json.dumps(record, default=str))
    assert record["samples"] == 48 and record["train_samples"] == 256
    assert record["steps"] == 64 and record["pruning_events"] == 3
    assert record["size_mb"] > record["gzip_mb"] > 0
    assert record["minutes"] > 0 and record["machine"]["cores"] > 0
    assert {"python", "torch", "transformers", "sparseml"} <= set(record["versions"])
    assert record["command"][0] == "obert"


def test_the_recipe_rules_epochs_and_learning_rate_and_says_so(pruned):
    out, _ = pruned
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]

    def all_of(kind, key):
        return [line[key] for line in lines if line["kind"] == kind]

    texts = " ".join(all_of("message", "text"))
    assert "--num_train_epochs" in texts and "--learning_rate" in texts
    rates = all_of("step", "learning_rate")
    assert rates[0] == pytest.approx(5e-3, rel=0.1) and rates[-1] < rates[0] / 10
    assert all_of("prune", "epoch") == [0.5, 1, 1.5]


def test_the_recipe_as_run_gives_the_same_model_again(run, pruned, tmp_path):
    first, record = pruned
    again = run(recipe=first / "recipe.yaml")
    assert again["loss"] == record["loss"]
    one, two = (load_file(f / "model.safetensors") for f in (first, tmp_path / "out"))
    assert all((one[name] == two[name]).all() for name in one)


def test_evaluation_alone_finds_the_same_figures(run, pruned, tmp_path):
    out, record = pruned
    found = run("--do_eval", model_name_or_path=out, train_file=None)
    assert (found["accuracy"], found["loss"]) == (record["accuracy"], record["loss"])
    assert (tmp_path / "out" / "eval_metrics.json").is_file()
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_it_learns_and_predicts(small, run, tmp_path):
    do, flags = "--do_train --do_eval --do_predict", {"num_train_epochs": 3}
    record = run(do, learning_rate=5e-3, test_file=small.validation, **flags)
    assert record["accuracy"] > 0.9 and record["sparsity"] == 0.0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        predicted = [row["prediction"] for row in csv.DictReader(file)]
    truth = [str(row["label"]) for row in tiny.sentences(48, 1)]
    hits = sum(a == b for a, b in zip(predicted, truth, strict=True))
    assert hits / 48 == record["accuracy"]


def test_training_needs_no_validation_data(run):
    record = run("--do_train", validation_file=None, max_train_samples=32)
    assert record["accuracy"] is None and record["steps"] == 4


def test_texts_as_labels_and_numbers(run, tmp_path):
    names = {0: "bad", 1: "good"}
    path = relabelled(tmp_path / "names.json", names.get)
    run(train_file=path, validation_file=path)
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == names
    path = relabelled(tmp_path / "numbers.json", lambda label: label + 0.5)
    record = run(out="numbers", train_file=path, validation_file=path)
    assert AutoConfig.from_pretrained(tmp_path / "numbers").num_labels == 1
    assert record["loss"] > 0 and -1 <= record["pearson"] <= 1


def test_a_teacher_is_loaded_and_used(run, pruned, tmp_path):
    teacher, taught_by_none = pruned
    recipe = recipe_with(tmp_path, "LogitDistillationModifier; hardness: 1")
    record = run(recipe=recipe, distill_teacher=teacher)
    assert record["teacher"] == str(teacher)
    assert record["loss"] != taught_by_none["loss"]
    with refused("LogitDistillationModifier"):
        run(out="no", recipe=recipe)
    other = tiny.save_model(tmp_path / "three", num_labels=3)
    counter = iter(range(24))
    rows = relabelled(tmp_path / "three.json", lambda _: next(counter) % 3, 24)
    run(out="saved", model_name_or_path=other, train_file=rows)
    with refused("expected 0, 1; train it on this data set"):
        run(out="no", recipe=recipe, distill_teacher=tmp_path / "saved")


def test_an_unused_teacher_is_mentioned(run, pruned):
    record = run(distill_teacher=pruned[0])
    assert any("is not used" in note for note in record["notes"])


def test_an_output_folder_is_written_over_completely(small, run, tmp_path):
    run(recipe=small.recipe)
    folder = tmp_path / "out"
    exported = ("export/sparse/a", "export/openvino.xml", "onnx/model.onnx")
    for name in (*exported, "onnx/other.onnx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the earlier model")
    run("--overwrite_output_dir", max_train_samples=8)
    gone = ("recipe.yaml", "export/sparse", *exported)
    assert not any((folder / name).exists() for name in gone)
    assert (folder / "onnx" / "other.onnx").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("recipe", "zoo:bert/pruned", "zoo:bert/pruned.*path"),
        ("recipe", "missing.yaml", "missing.yaml"),
        ("recipe_args", "{}", "has no recipe"),
        ("model_name_or_path", "zoo:bert", "SparseZoo.*local path"),
        ("model_name_or_path", "no/such", "hub did not give it.*local folder"),
        ("model_name_or_path", ".", "cannot be loaded"),
        ("label_column_name", "lable", "mean label\\?"),
        ("lr_scheduler_type", "polynomial", "expected one of linear"),
        ("validation_file", None, "no validation split, only train"),
        ("distill_teacher", "nowhere", "--distill_teacher=nowhere"),
    ],
)
def test_bad_input_is_an_error_before_training(run, tmp_path, flag, value, message):
    with refused(message):
        run(**{flag: value})
    assert not (tmp_path / "out").exists()


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
def test_a_bad_recipe_names_file_line_and_key(run, tmp_path, old, new, message):
    recipe, text = tmp_path / "bad.yaml", tiny.RECIPE.replace(old, new)
    recipe.write_text(text)
    last = new.splitlines()[-1].strip()
    [line, *_] = [n for n, row in enumerate(text.splitlines(), 1) if last in row]
    with pytest.raises(ValueError) as error:
        run(recipe=recipe)
    assert message in str(error.value)
    assert f"{recipe}:{line}: OBER" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_zeros_are_counted_in_the_files(pruned, tmp_path):
    out, record = pruned
    names = [layer["name"] for layer in record["layers"]]
    assert len(names) == 12
    assert records.count_zeros(out, names) == record["layers"]
    with refused("lacks nothing.weight"):
        records.count_zeros(out, ["nothing.weight"])
    with pytest.raises(FileNotFoundError, match="has no weights"):
        records.count_zeros(tmp_path, names)


def test_the_gzipped_size_is_that_of_gzip(pruned):
    out, record = pruned
    words = ["gzip", "-6nc", out / "model.safetensors"]
    packed = subprocess.run(words, capture_output=True, check=True).stdout
    assert record["gzip_mb"] == pytest.approx(len(packed) / 1e6, rel=1e-2)
