"""``obert train``: checkpoints, SIGTERM and resuming from the command line."""

import json
import os
import shlex
import signal

import pytest
import torch
from safetensors.torch import load_file

from obert_modifiers import cli
from obert_modifiers.training import RecipeStepper
from tests import tiny
from tests.tasks.inputs import words_of

QAT = "  - !QATModifier\n      start_epoch: 0.5\n      disable_observer_epoch: 1.5\n"


@pytest.fixture
def words(small, tmp_path):
    """Return the command of a small run; it distils from the model as it starts."""
    rows = tiny.write_rows(tmp_path / "rows.json", tiny.sentences(48))
    recipe = tmp_path / "recipe.yaml"
    text = tiny.RECIPE + QAT + "  - !LogitDistillationModifier\n      hardness: 0.5\n"
    recipe.write_text(text, encoding="utf-8")
    command = "train text_classification --use_cpu --do_train --do_eval".split()
    return command + words_of(
        model_name_or_path=small.model,
        train_file=rows,
        validation_file=rows,
        cache_dir=small.cache,
        recipe=recipe,
        distill_teacher="self",
        per_device_train_batch_size=4,
        output_dir=tmp_path / "out",
    )


def result(folder) -> tuple[dict, dict, list]:
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    figures = {k: record[k] for k in ("accuracy", "loss", "sparsity", "steps")}
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    written = [one for one in map(json.loads, lines) if one["kind"] == "step"]
    steps = [(one["step"], one["loss"]) for one in written]
    return figures, load_file(folder / "model.safetensors"), steps


def terminate_at(monkeypatch, number) -> None:
    original = RecipeStepper.step

    def step(self):
        if self.steps == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(RecipeStepper, "step", step)


def test_sigterm_saves_and_says_how_to_go_on(words, tmp_path, monkeypatch, capsys):
    assert cli.main([*words, "--overwrite_output_dir"]) == 0
    whole = result(tmp_path / "out")
    stopped = [*words, "--output_dir", str(tmp_path / "stopped")]
    with monkeypatch.context() as patched:
        terminate_at(patched, 16)
        capsys.readouterr()
        assert cli.main(stopped) == 0
    out = capsys.readouterr().out
    assert "stopped by SIGTERM; saved in" in out
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    command = shlex.split(out.strip().splitlines()[-1])
    assert command == ["obert", *stopped, "--resume_from_checkpoint", "last"]
    assert cli.main(command[1:]) == 0
    assert "resuming from" in capsys.readouterr().out
    resumed = result(tmp_path / "stopped")
    assert (resumed[0], resumed[2]) == (whole[0], whole[2])
    for name, values in whole[1].items():
        assert torch.equal(values, resumed[1][name]), name


def test_checkpoints_go_where_the_flags_say(words, tmp_path, capsys) -> None:
    steps = "--save_strategy steps --save_steps 5 --save_total_limit 2".split()
    assert cli.main([*words, *steps]) == 0
    out = tmp_path / "out"
    kept = sorted(path.name for path in out.glob("check*"))
    assert kept == ["checkpoint-15", "checkpoint-20"]
    # Another run in the folder does not leave them to be resumed from by mistake.
    assert cli.main([*words, "--overwrite_output_dir"]) == 0
    assert not list(out.glob("check*"))
    capsys.readouterr()
    recipe = tmp_path / "recipe.yaml"
    assert cli.main([*words, *steps, "--overwrite_output_dir"]) == 0
    recipe.write_text(recipe.read_text().replace("0.8", "0.7"), encoding="utf-8")
    resume = ["--resume_from_checkpoint", str(out / "checkpoint-15")]
    assert cli.main([*words, *resume]) == 2
    errors = capsys.readouterr().err
    assert "is another one than the checkpoint's" in errors
    assert "+" in errors and "final_sparsity: 0.7" in errors
