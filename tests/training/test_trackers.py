"""What TensorBoard and Weights & Biases get; ``metrics.jsonl`` has it always."""

import logging

import pytest

from obert_modifiers.tasks.text_classification import TASK
from obert_modifiers.training import journal
from obert_modifiers.training.journal import trackers_of
from tests.training.toy import GMP, records, run


class Recorder:
    """Stands for a tracker of accelerate."""

    def __init__(self, name, *args, fails_at=None, **kwargs) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs
        self.calls, self.fails_at = [], fails_at

    def store_init_configuration(self, values) -> None:
        self.settings = values

    def log(self, values, step) -> None:
        if self.fails_at is not None and len(self.calls) >= self.fails_at:
            raise OSError("no network")
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append("finished")


@pytest.fixture
def made(monkeypatch):
    """Install both trackers, which record; returns those that were made."""
    found = []

    def make(name, **options):
        def build(*args, **kwargs):
            found.append(Recorder(name, *args, **options, **kwargs))
            return found[-1]

        return build

    monkeypatch.setattr(journal, "_has", lambda package: True)
    monkeypatch.setattr(journal, "TensorBoardTracker", make("tensorboard"))
    monkeypatch.setattr(journal, "WandBTracker", make("wandb", fails_at=3))
    return found


@pytest.mark.parametrize(
    ("installed", "wanted", "expected"),
    [
        ("tensorboard wandb", None, ["tensorboard"]),
        ("tensorboardX", None, ["tensorboard"]),
        ("wandb", None, []),
        ("", None, []),
        ("tensorboard wandb", "none", []),
        ("tensorboard wandb", "wandb", ["wandb"]),
        ("tensorboard wandb", "all", ["tensorboard", "wandb"]),
        ("wandb", "all", ["wandb"]),
        ("", "all", []),
    ],
)
def test_who_is_reported_to(monkeypatch, installed, wanted, expected) -> None:
    monkeypatch.setattr(journal, "_has", installed.split().__contains__)
    assert trackers_of(wanted) == expected


def test_what_is_missing_or_unknown_is_an_error_at_the_start(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(journal, "_has", lambda package: False)
    for name, rule in (("wandb", "not installed; .*pip install"), ("ml", "unknown")):
        with pytest.raises(ValueError, match=f"report_to={name} is {rule}"):
            run(tmp_path, GMP, report_to=name)
    assert not list(tmp_path.iterdir())


def test_every_number_of_the_log_is_reported(tmp_path, made) -> None:
    run(tmp_path, GMP)
    [board] = made
    assert board.args == ("tensorboard", tmp_path)
    assert board.settings["seed"] == 42 and board.settings["output_dir"]
    *calls, last = board.calls
    assert last == "finished"
    kinds = {"step": "train", "eval": "eval", "prune": "prune"}
    numbers = [r for r in records(tmp_path) if r["kind"] in kinds]
    for (step, values), record in zip(calls, numbers, strict=True):
        kind = kinds[record.pop("kind")]
        assert step == record.pop("step")
        plain = {k: v for k, v in record.items() if isinstance(v, (int, float))}
        assert values == {f"{kind}/{name}": value for name, value in plain.items()}
    pruned = [step for step, values in calls if "prune/sparsity_after" in values]
    assert pruned == [4, 8, 12, 16]
    assert len([1 for _, values in calls if "eval/accuracy" in values]) == 3
    assert calls[0][1].keys() >= {"train/loss", "train/learning_rate"}


def test_a_tracker_that_fails_does_not_end_the_training(tmp_path, made, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="obert_modifiers"):
        _, result = run(tmp_path, GMP, report_to="all")
    board, online = made
    assert online.args == ("obert_modifiers",)
    assert online.kwargs == {"dir": str(tmp_path)}
    assert len(online.calls) == 3 and board.calls[-1] == "finished"
    assert result.steps == 24
    told = [r.getMessage() for r in caplog.records if "no network" in r.getMessage()]
    assert told == [
        "wandb failed (no network) and gets nothing more; metrics.jsonl goes on"
    ]


def test_a_resumed_run_goes_on_and_a_new_one_starts_over(tmp_path, made) -> None:
    options = {"save_strategy": "epoch"}
    run(tmp_path, GMP, **options)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events").touch()
    run(tmp_path, GMP, resume_from_checkpoint=tmp_path / "checkpoint-16", **options)
    assert (tmp_path / "tensorboard" / "events").exists()
    assert not hasattr(made[1], "settings")
    assert min(step for step, _ in made[1].calls[:-1]) >= 16
    run(tmp_path, GMP, report_to="none")
    assert not (tmp_path / "tensorboard").exists() and len(made) == 2


def test_the_flag() -> None:
    for words, expected in (("", None), ("--report_to wandb", "wandb")):
        found = TASK.parse(words.split())
        assert found.train.report_to == expected
    with pytest.raises(ValueError, match="invalid choice: 'comet'"):
        TASK.parse(["--report_to", "comet"])


@pytest.mark.skipif(
    "tensorboard" not in trackers_of("all"), reason="TensorBoard is not installed"
)
@pytest.mark.filterwarnings("ignore")  # of the trackers themselves
def test_tensorboard_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "out", GMP)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    files = list((tmp_path / "out" / "tensorboard").rglob("events.*"))
    assert files and b"prune/sparsity_after" in b"".join(f.read_bytes() for f in files)
