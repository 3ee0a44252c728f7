"""``torch.compile`` with masks on: the same bits, the same names, no recompiling."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.training import RecipeStepper
from tests import tiny
from tests.modifiers.table import TinyModel, make_model
from tests.tasks import inputs
from tests.training.test_precision import COMPOUND, PRUNED
from tests.training.test_training import GMP, OBERT, masks_of, run


def bits(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def graphs(monkeypatch):
    """Return how many graphs were compiled by the end of each optimizer step."""
    torch._dynamo.reset()
    counters.clear()
    found: list[int] = []
    original = RecipeStepper.step

    def step(self):
        seen = len(self._manager.events)
        advanced = original(self)
        found.append(counters["stats"]["unique_graphs"])
        self._model.events = len(self._manager.events)
        assert len(found) not in {5, 9, 13, 17} or len(self._manager.events) > seen
        return advanced

    monkeypatch.setattr(RecipeStepper, "step", step)
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("recipe", [OBERT, GMP])
def test_no_pruning_event_compiles_anything(tmp_path, graphs, recipe, backend) -> None:
    options = {"group_by_length": False}
    plain, _ = run(tmp_path / "plain", recipe, **options)
    assert graphs.pop() == 0
    graphs.clear()
    saving = {"save_strategy": "epoch", "save_total_limit": 1}
    model, result = run(
        tmp_path / "out", recipe, torch_compile=backend, **options, **saving
    )
    assert result.steps == 24 and len(result.events) == 4
    # One graph to train; the first evaluation, after step 8, compiles another.
    train, both = graphs[0], graphs[8]
    assert 0 < train < both
    assert graphs == [train] * 8 + [both] * 16
    if backend == "eager":
        assert bits(model) == bits(plain)
    names = list(plain.state_dict())
    assert list(model.state_dict()) == names
    [checkpoint] = (tmp_path / "out").glob("checkpoint-*")
    saved = load_file(checkpoint / "model.safetensors")
    assert not [name for name in saved if "_orig_mod" in name]


def test_a_model_that_an_event_changes_would_be_seen(
    tmp_path, graphs, monkeypatch
) -> None:
    """Negative control: a number that the graph depends on changes with each event."""
    forward = TinyModel.forward

    def changing(self, tokens):
        out = forward(self, tokens)
        return {"logits": out["logits"] + 0.0 * getattr(self, "events", 0)}

    monkeypatch.setattr(TinyModel, "forward", changing)
    make_model()
    run(tmp_path, GMP, torch_compile="eager", group_by_length=False)
    assert len(set(graphs)) > 2 and len(set(graphs[:8])) > 1


def test_a_compiled_run_goes_on_from_a_checkpoint(tmp_path) -> None:
    """Compiled or not, the checkpoint is the same."""
    options = {"group_by_length": False, "save_strategy": "epoch"}
    whole, _ = run(tmp_path / "a", GMP, torch_compile="eager", **options)
    [first] = (tmp_path / "a").glob("checkpoint-8")
    for backend in ("eager", None):
        again, result = run(
            tmp_path / str(backend),
            GMP,
            torch_compile=backend,
            resume_from_checkpoint=first,
            **options,
        )
        assert result.steps == 24 and bits(again) == bits(whole)


# torch's compiler itself looks at it where it resumes after a break in the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compound_recipe_runs_compiled(tmp_path) -> None:
    """Distillation begins with the run and quantization within it."""
    torch._dynamo.reset()
    model, result = run(tmp_path, COMPOUND, dtype=torch.float32, torch_compile="eager")
    assert int((~masks_of(model)).sum()) == PRUNED
    assert quantizers_of(model) and result.steps == 24


def test_an_unknown_compiler_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="torch_compile=gcc is unknown; .*inductor"):
        run(tmp_path, GMP, torch_compile="gcc")


def test_the_command_compiles(tmp_path) -> None:
    """The saved model has no trace of it, and loads as any other."""
    torch._dynamo.reset()
    counters.clear()
    data = str(tiny.write_rows(tmp_path / "rows.json", tiny.sentences(32)))
    (tmp_path / "recipe.yaml").write_text(tiny.RECIPE)
    flags = {
        "model_name_or_path": tiny.save_model(tmp_path / "model"),
        "train_file": data,
        "validation_file": data,
        "recipe": tmp_path / "recipe.yaml",
        "output_dir": tmp_path / "out",
        "cache_dir": tmp_path / "cache",
        "torch_compile_backend": "eager",
    }
    record = inputs.run("text_classification", **flags)
    assert counters["stats"]["unique_graphs"] > 0
    assert record["sparsity"] == 13107 / 16384
    assert record["config"]["torch_compile"] == "eager"
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in saved if "_orig_mod" in name]
