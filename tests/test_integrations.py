"""What stands in integrations/ runs."""

import runpy
from pathlib import Path

import datasets
import pytest

from tests import tiny
from tests.hosts import on_sparseml

FOLDER = Path(__file__).parents[1] / "integrations"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Return a recipe, a model's folder and a file of sentences."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "recipe.yaml").write_text(tiny.RECIPE, encoding="utf-8")
    rows = datasets.Dataset.from_list(tiny.sentences(48))
    rows.to_parquet(folder / "train.parquet")
    model = tiny.save_model(folder / "model")
    return folder / "recipe.yaml", model, folder / "train.parquet"


@on_sparseml
def test_plain_loop_with_sparsemls_manager(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # SparseML writes its log files where it is run
    script = runpy.run_path(str(FOLDER / "sparseml" / "plain_loop.py"))
    assert script["main"]() == 461 / 576  # round(0.8 * 576)


def test_plain_accelerate_loop(files) -> None:
    script = runpy.run_path(str(FOLDER / "accelerate" / "plain_loop.py"))
    model, sparsity = script["main"](*files, batch_size=8)
    assert sparsity == pytest.approx(0.8, abs=1e-4)
    assert tiny.sparsity(model) == pytest.approx(sparsity)


def test_hugging_face_trainer(files, tmp_path) -> None:
    script = runpy.run_path(str(FOLDER / "transformers" / "train.py"))
    options = {"per_device_train_batch_size": 8, "use_cpu": True}
    callback, model = script["main"](*files, tmp_path, save_strategy="no", **options)
    assert callback.manager.sparsity() == pytest.approx(0.8, abs=1e-4)
    assert tiny.sparsity(model) == pytest.approx(0.8, abs=1e-4)
    assert (tmp_path / "recipe.yaml").is_file()


def test_every_script_is_run_here() -> None:
    found = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.py"))
    assert found == [
        "accelerate/plain_loop.py",
        "composer/obert.py",
        "llmcompressor/obert.py",
        "sparseml/plain_loop.py",
        "transformers/train.py",
    ]
