"""A tiny model and tiny data sets, made once, and what runs a task with them."""

from types import SimpleNamespace

import pytest

from tests import tiny
from tests.tasks import inputs


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Return paths of a tiny model, its data, a recipe and a cache folder."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "recipe.yaml").write_text(tiny.RECIPE, encoding="utf-8")
    return SimpleNamespace(
        folder=folder,
        model=tiny.save_model(folder / "model"),
        train=tiny.write_rows(folder / "train.json", tiny.sentences(256)),
        validation=tiny.write_rows(folder / "validation.json", tiny.sentences(48, 1)),
        recipe=folder / "recipe.yaml",
        cache=folder / "cache",
    )


@pytest.fixture(scope="session")
def data_set(shared_data):
    """Return the folder of a data set that is not shipped, or skip the test."""

    def data_set(name):
        folder = shared_data / name
        if not folder.is_dir():
            pytest.skip(f"no {folder}; name its parent in OBERT_SHARED_DATA")
        return folder

    return data_set


@pytest.fixture(scope="session")
def run_in(small):
    """Run a task for an epoch, with the tiny model, into a folder."""
    common = {"model_name_or_path": small.model, "cache_dir": small.cache}
    common["num_train_epochs"] = 1

    def run_in(out, task, do="", **flags):
        return inputs.run(task, do, **common | {"output_dir": out} | flags)

    return run_in


@pytest.fixture
def run_task(run_in, tmp_path):
    """Run a task for an epoch, with the tiny model, into `tmp_path/out`."""
    return lambda *task, out="out", **flags: run_in(tmp_path / out, *task, **flags)
