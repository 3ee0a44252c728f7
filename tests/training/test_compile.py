"""``torch.compile`` with masks on: the same bits, the same names, no recompiling."""

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from obert_modifiers.core.quantization.scheme import quantizers_of
from tests import tiny
from tests.modifiers.table import TinyModel
from tests.tasks import inputs
from tests.training.test_precision import COMPOUND, PRUNED
from tests.training.toy import GMP, OBERT, digest, each_step, masks_of, run


def state_of(model) -> tuple[list[str], str]:
    """Return the names of a model's tensors, and their bits as a hash."""
    state = model.state_dict()
    return list(state), digest(state.values())


@pytest.fixture(autouse=True)
def fresh():
    """Begin and end without compiled graphs."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs():
    """Return how many graphs were compiled by the end of each optimizer step."""
    found: list[int] = []

    def count(stepper, step):
        manager = stepper._manager
        seen = len(manager.events)
        advanced = step()
        found.append(counters["stats"]["unique_graphs"])
        stepper._model.events = len(manager.events)
        assert len(found) not in {5, 9, 13, 17} or len(manager.events) > seen
        return advanced

    with each_step(count):
        yield found


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
        assert state_of(model) == state_of(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
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
    run(tmp_path, GMP, torch_compile="eager", group_by_length=False)
    assert len(set(graphs)) > 2 and len(set(graphs[:8])) > 1


def test_a_compiled_run_goes_on_from_a_checkpoint(tmp_path) -> None:
    """Compiled or not, the checkpoint is the same."""
    options = {"group_by_length": False, "save_strategy": "epoch"}
    whole, _ = run(tmp_path / "a", GMP, torch_compile="eager", **options)
    [first] = (tmp_path / "a").glob("checkpoint-8")
    options["resume_from_checkpoint"] = first
    for backend in ("eager", None):
        folder = tmp_path / str(backend)
        again, result = run(folder, GMP, torch_compile=backend, **options)
        assert result.steps == 24 and state_of(again) == state_of(whole)


# torch's compiler itself looks at it where it resumes after a break in the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compound_recipe_runs_compiled(tmp_path) -> None:
    """Distillation begins with the run and quantization within it."""
    model, result = run(tmp_path, COMPOUND, dtype=torch.float32, torch_compile="eager")
    assert int((~masks_of(model)).sum()) == PRUNED
    assert quantizers_of(model) and result.steps == 24


def test_an_unknown_compiler_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="torch_compile=gcc is unknown; .*inductor"):
        run(tmp_path, GMP, torch_compile="gcc")


def test_the_command_compiles(tmp_path) -> None:
    """The saved model has no trace of it, and loads as any other."""
    flags = tiny.flags(tmp_path, 32) | {"torch_compile_backend": "eager"}
    record = inputs.run("text_classification", output_dir=tmp_path / "out", **flags)
    assert counters["stats"]["unique_graphs"] > 0
    assert record["sparsity"] == 13107 / 16384
    assert record["config"]["torch_compile"] == "eager"
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in saved if "_orig_mod" in name]
