"""Checkpoint folders: whole or passed over, limited, flushed, and without pickles."""

import errno
import gc
import itertools
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import checkpoint, train
from obert_modifiers.training.journal import Journal
from obert_modifiers.training.state import pack, unpack
from tests.faults import world
from tests.hosts import on_sparseml
from tests.training.toy import all_equal

PACKAGE = "obert_modifiers"


def run(folder: Path, recipe: str = "gmp", task=None, model=None, **options):
    text = world.RECIPES.get(recipe, recipe)
    manager = RecipeManager.from_recipe(text) if text.strip() else None
    model = model or world.make_model()
    torch.manual_seed(11)
    settings = {"save_strategy": "steps", "save_steps": 4}
    config = world.config_of(folder, **settings | options)
    return model, train(model, task or world.make_task(), config, manager)


def weights(model) -> list[torch.Tensor]:
    return [values.clone() for values in model.state_dict().values()]


def same(one, other) -> bool:
    return all_equal(weights(one), weights(other))


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in checkpoint.checkpoints_in(folder)]


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    """One thread for such small models, and collections that leave out the imports."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("finished")
    model, _ = run(folder)
    return folder, model


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return shutil.copytree(finished[0], tmp_path / "run")


def test_a_state_comes_back_as_it_was() -> None:
    shared = torch.arange(6.0)
    state = {
        "mask": torch.rand(3, 7) > 0.5,
        "none": torch.zeros(0, 3, dtype=torch.bool),
        "tied": [shared, shared, shared.reshape(2, 3), shared.reshape(2, 3).T],
        "half": torch.randn(4).to(torch.bfloat16),
        "number": 0.1 + 0.2,
        "pair": (1, (None, "text")),
        "by": {0: {"step": torch.tensor(3.0)}, 1: True},
        "$tensor": "name",
    }
    plain, tensors = pack(state)
    again = unpack(json.loads(json.dumps(plain)), tensors)
    assert tensors["mask"].numel() == 3  # 21 bits
    assert len(tensors) == 7

    def leaves(value):
        """Return containers and values in their order, with types and all bits."""
        if isinstance(value, torch.Tensor):
            return (value.dtype, value.tolist(), value.shape)
        if isinstance(value, dict):
            return [(key, leaves(inner)) for key, inner in value.items()]
        if isinstance(value, list | tuple):
            return type(value), [leaves(inner) for inner in value]
        return type(value), value

    assert leaves(again) == leaves(state)
    with pytest.raises(TypeError, match="deep.1 is a set; expected plain values"):
        pack({"deep": [1, {2}]})


def test_what_a_checkpoint_holds(finished) -> None:
    folder, _ = finished
    assert steps_in(folder) == [12, 8, 4]
    last = folder / "checkpoint-12"
    assert checkpoint.fault_of(last) is None
    names = "manifest model modifiers optimizer rank-0 run".split()
    tensors = ["model", "modifiers", "optimizer"]
    files = {f"{name}.json" for name in names}
    files |= {f"{name}.safetensors" for name in tensors}
    assert {p.name for p in last.iterdir()} == files | {"metrics.jsonl", "recipe.yaml"}
    saved = load_file(last / "model.safetensors")
    assert saved.keys() == world.make_model().state_dict().keys()
    masks = load_file(last / "modifiers.safetensors")
    assert all(mask.dtype == torch.uint8 for mask in masks.values())
    bits = {k: v for k, v in masks.items() if not k.endswith(".__schedule__")}
    assert len(bits) == 6 and len(masks) > 6  # each schedule is bytes beside them
    assert sum(mask.numel() for mask in bits.values()) == 6 * 12 * 24 // 8
    for path in last.iterdir():
        data = path.read_bytes()
        assert not zipfile.is_zipfile(path)
        assert not data.startswith(b"\x80")  # what a pickle starts with


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a flipped bit in the weights": lambda f: _flip(f / "model.safetensors"),
    "a flipped bit in the masks": lambda f: _flip(f / "modifiers.safetensors"),
    "a flipped bit in the manifest": lambda f: _flip(f / "manifest.json"),
    "half of the optimizer": lambda f: os.truncate(f / "optimizer.safetensors", 999),
    "an empty run.json": lambda f: (f / "run.json").write_text(""),
    "no random state": lambda f: (f / "rank-0.json").unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "an empty manifest": lambda f: (f / "manifest.json").write_text(""),
    "half a manifest": lambda f: os.truncate(f / "manifest.json", 200),
    "a manifest of nothing": lambda f: (f / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_checkpoint_is_passed_over(damage, copied, caplog) -> None:
    DAMAGE[damage](copied / "checkpoint-12")
    with caplog.at_level(logging.WARNING, PACKAGE):
        found = checkpoint.find_whole("last", copied)
        named = checkpoint.find_whole(copied / "checkpoint-12", Path("elsewhere"))
    assert found == named == copied / "checkpoint-8"
    assert "checkpoint-12 is damaged" in caplog.text
    assert "resuming from the one before" in caplog.text
    assert checkpoint.find_whole(copied / "checkpoint-4", copied).name == "checkpoint-4"


def test_all_damaged_is_an_error(copied) -> None:
    for path in checkpoint.checkpoints_in(copied):
        _flip(path / "run.json")
    with pytest.raises(ValueError, match="finds no whole checkpoint: .*-12 is damaged"):
        checkpoint.find_whole("last", copied)


def test_a_run_resumed_from_any_of_them_ends_the_same(finished, copied) -> None:
    folder, whole = finished
    first, last = copied / "checkpoint-4", copied / "checkpoint-12"
    for out, start in ((copied, first), (copied, last), (copied / "other", copied)):
        model, result = run(out, resume_from_checkpoint=start)
        assert same(model, whole)
        assert result.steps == 15
        assert world.records_of(out) == world.records_of(folder)


def test_a_finished_run_has_nothing_left_to_do(tmp_path) -> None:
    model, first = run(tmp_path, save_strategy="epoch")
    assert steps_in(tmp_path) == [15, 10, 5]
    again, second = run(tmp_path, save_strategy="epoch", resume_from_checkpoint="last")
    assert same(model, again)
    assert replace(second, seconds=first.seconds) == first


def test_last_without_a_checkpoint_starts_anew(tmp_path, finished, caplog) -> None:
    with caplog.at_level(logging.INFO, PACKAGE):
        model, _ = run(tmp_path, resume_from_checkpoint="last")
    assert "no checkpoint in" in caplog.text
    assert same(model, finished[1])


def test_saving_changes_nothing(finished, tmp_path) -> None:
    model, _ = run(tmp_path, save_strategy="no")
    assert same(model, finished[1])
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("limit", [1, 2])
def test_the_limit_keeps_the_last_ones(limit, tmp_path, monkeypatch) -> None:
    seen = []
    original = checkpoint.seal

    def seal(partial, step):
        seen.append(len(steps_in(tmp_path)))
        return original(partial, step)

    monkeypatch.setattr("obert_modifiers.training.saving.seal", seal)
    run(tmp_path, save_total_limit=limit, save_steps=3)
    assert steps_in(tmp_path) == [15, 12][:limit]
    # The one before is there until the new one is complete.
    assert seen == [min(n, limit) for n in range(5)]


def test_a_later_checkpoint_than_the_new_one_goes_first(copied) -> None:
    checkpoint.remove_old(copied, copied / "checkpoint-8", 1)
    assert steps_in(copied) == [8]


def test_a_checkpoint_replaced_in_vain_is_found(copied) -> None:
    """Killed between the two renames of a step that is written a second time."""
    for step in (4, 8):
        (copied / f"checkpoint-{step}" / "run.json").unlink()
    (copied / "checkpoint-12").rename(copied / "checkpoint-12.replaced")
    found = checkpoint.find_whole("last", copied)
    assert found.name == "checkpoint-12.replaced"
    checkpoint.remove_old(copied, copied / "checkpoint-8", None)
    assert steps_in(copied) == [8, 4]


@pytest.mark.parametrize("folder", ["empty", "model", "missing"])
def test_a_foreign_folder_is_refused(folder, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    wrong = "is no folder" if folder == "missing" else "holds no checkpoint"
    with pytest.raises(ValueError, match=f"resume_from_checkpoint=.*{folder} {wrong}"):
        run(tmp_path / "out", resume_from_checkpoint=tmp_path / folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("per_device_train_batch_size=2 was 4", {"per_device_train_batch_size": 2}),
        ("gradient_accumulation_steps=1 was 2", {"gradient_accumulation_steps": 1}),
        ("seed=1 was 42", {"seed": 1}),
        ("group_by_length=False was True", {"group_by_length": False}),
        ("weight_decay=0.0 was 0.01", {"weight_decay": 0.0}),
        ("train_samples=37 was 38", {"task": world.make_task(train_samples=37)}),
        ("recipe is missing", {"recipe": "none"}),
        (
            "sets no learning rate",
            {
                "recipe": re.sub("  - !LearningRate.*\n.*\n", "", world.GMP),
                "recipe_changed": "allow",
            },
        ),
    ],
)
def test_another_run_is_refused(message, changed, copied) -> None:
    before = (copied / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=message):
        run(copied, resume_from_checkpoint="last", **changed)
    assert (copied / "metrics.jsonl").read_text() == before


def test_a_recipe_for_a_run_that_had_none_is_another_one(tmp_path) -> None:
    run(tmp_path, "none")
    with pytest.raises(ValueError, match="is another one than the checkpoint's"):
        run(tmp_path, resume_from_checkpoint="last")


def test_another_model_is_refused(copied) -> None:
    model = world.make_model()
    model.head = torch.nn.Linear(12, 4)
    before = weights(model)
    with pytest.raises(ValueError, match="another model: head.bias has the shape"):
        run(copied, model=model, resume_from_checkpoint="last")
    assert all_equal(before, weights(model))


def test_another_teacher_is_refused(tmp_path) -> None:
    run(tmp_path, "drop")
    other = world.make_model()
    with torch.no_grad():
        other.head.bias += 1.0
    with pytest.raises(ValueError, match="distillation_teacher has the hash"):
        run(tmp_path, "drop", model=other, resume_from_checkpoint="last")


def full_disk(function, call: int):
    """Let one call of a function find no space."""
    calls = itertools.count(1)

    def full(*args, **kwargs):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args, **kwargs)

    return full


@pytest.mark.parametrize("call", [5, 7, 8, 10])
def test_a_full_disk_costs_one_checkpoint(
    call, tmp_path, finished, monkeypatch, caplog
) -> None:
    """Which of a checkpoint's files it hits makes no difference."""
    write = full_disk(checkpoint.write_text, call)
    monkeypatch.setattr(checkpoint, "write_text", write)
    with caplog.at_level(logging.WARNING, PACKAGE):
        model, _ = run(tmp_path)
    assert same(model, finished[1])
    assert "No space left on device" in caplog.text
    assert "the training goes on" in caplog.text
    assert len(steps_in(tmp_path)) == 2
    assert not list(tmp_path.glob("*.partial"))
    for path in checkpoint.checkpoints_in(tmp_path):
        assert checkpoint.fault_of(path) is None


def test_a_full_disk_for_the_journal_is_a_clear_error(tmp_path, monkeypatch) -> None:
    """The run stops, and goes on from its last checkpoint."""
    original = Journal.open

    def opened(self, before: str = "") -> None:
        original(self, before)
        file = self._file
        flush = full_disk(file.flush, 9)
        self._file = SimpleNamespace(write=file.write, flush=flush, close=file.close)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "open", opened)
        with pytest.raises(OSError, match="metrics.jsonl cannot be written to"):
            run(tmp_path / "a")
    model, _ = run(tmp_path / "a", resume_from_checkpoint="last")
    whole, _ = run(tmp_path / "b", save_strategy="no")
    assert same(model, whole)
    assert world.records_of(tmp_path / "a") == world.records_of(tmp_path / "b")


def test_no_permission_to_save(tmp_path, finished, monkeypatch, caplog) -> None:
    original = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if self.name == "checkpoint-8.partial":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with caplog.at_level(logging.WARNING, PACKAGE):
        model, _ = run(tmp_path)
    assert same(model, finished[1])
    assert steps_in(tmp_path) == [12, 4]
    assert "the last one is" in caplog.text and "checkpoint-4" in caplog.text


def test_a_recipe_of_one_line_without_a_break_is_resumed(tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{modifiers: [!EpochRangeModifier {start_epoch: 0.0, end_epoch: 3.0}]}"
    )
    for resume in (None, "last"):
        manager = RecipeManager.from_recipe(recipe)
        options = {"save_strategy": "steps", "save_steps": 4}
        config = world.config_of(tmp_path, resume_from_checkpoint=resume, **options)
        result = train(world.make_model(), world.make_task(), config, manager)
    assert result.steps == 15


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("save_strategy", "best", "unknown"),
        ("recipe_changed", "maybe", "unknown"),
        ("save_steps", 0, "not positive"),
        ("save_total_limit", 0, "not positive"),
        ("num_train_epochs", -1.0, "outside"),
        ("warmup_ratio", 3.0, "outside"),
    ],
)
def test_bad_settings(tmp_path, name, value, rule) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} is {rule}"):
        run(tmp_path, **{name: value})


UNKNOWN = f"""{world.HEAD}
  - !ACDCPruningModifier
      compression_sparsity: 0.5
      start_epoch: 0.0
      end_epoch: 2.0
      update_frequency: 1.0
      params: ['re:layers.*weight']
"""


@on_sparseml
def test_a_modifier_whose_state_is_unknown_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="modifier=ACDCPruningModifier has a state"):
        run(tmp_path, UNKNOWN)
    assert not (tmp_path / "metrics.jsonl").exists()
