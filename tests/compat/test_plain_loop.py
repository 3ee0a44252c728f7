"""One import in an existing script: SparseML's manager runs our modifiers."""

import subprocess
import sys

import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from obert_modifiers import modifiers
from obert_modifiers.compat import replaced
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.host import bases
from tests import tiny
from tests.hosts import on_sparseml
from tests.modifiers.driving import STEPS, pruners, recipe_of
from tests.modifiers.table import PRUNERS
from tests.modifiers.test_contract_saved import SHAPE, inputs, losses

HEAD = "modifiers:\n    - !EpochRangeModifier\n        start_epoch: 0.0\n"
HEAD += "        end_epoch: 4.0\n    - "
SILENT = {"loggers": bases.silent_loggers()}


def manager_of(row):
    text = recipe_of(row, HEAD) + "\n"
    return bases.ScheduledModifierManager.from_yaml(text)


def tiny_bert(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**SHAPE))


def sampler() -> dict:
    """SparseML's own form: ``(args, kwargs, target)`` items and a mean loss."""

    def build(options=None):
        for seed in range(12):
            batch = inputs(seed, (options or {}).get("batch_size", 4))
            yield [], {"input_ids": batch["input_ids"]}, batch["labels"]

    def loss(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    return {"data_loader_builder": build, "loss_function": loss}


def source() -> GradientSource:
    return GradientSource(lambda request: [inputs(i) for i in range(12)], losses)


def train(manager, structure: bool = False, **offered) -> torch.nn.Module:
    """Train a tiny BERT in SparseML's manager."""
    model = tiny_bert()
    if structure:
        manager.apply_structure(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = manager.modify(
        model, optimizer, steps_per_epoch=STEPS, **SILENT, **offered
    )
    for step in range(4 * STEPS):
        loss = model(**inputs(100 + step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    manager.finalize(model)
    assert torch.isfinite(loss)
    return model


@pruners
def test_modify_with_a_grad_sampler_of_sparsemls(row) -> None:
    manager = manager_of(row)
    (pruner,) = manager.pruning_modifiers
    model = train(manager, grad_sampler=sampler())
    assert type(pruner) is row.cls
    assert [event.epoch for event in pruner.events] == list(row.epochs)
    assert tiny.sparsity(model) == row.final


@pruners
def test_apply_is_the_same_with_their_sampler_and_our_source(row) -> None:
    found = []
    for offered in ({"grad_sampler": sampler()}, {"gradient_source": source()}):
        model = tiny_bert()
        manager_of(row).apply(model, **SILENT, **offered)
        assert tiny.sparsity(model) == row.final
        found.append(model.state_dict())
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-5, atol=1e-6)


def test_apply_without_finalizing_keeps_the_masks_in_training() -> None:
    manager, model = manager_of(PRUNERS[0]), tiny_bert()
    manager.apply(model, finalize=False, grad_sampler=sampler(), **SILENT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(5):
        model(**inputs(step)).loss.backward()
        optimizer.step()
        manager.optimizer_post_step(model, optimizer, 4.0 + step / STEPS, STEPS)
    assert tiny.sparsity(model) == PRUNERS[0].final


def test_a_manager_without_a_source_of_gradients_says_so() -> None:
    optimizer = torch.optim.SGD([torch.ones(1)], 0.1)
    with pytest.raises(RuntimeError, match="gradient_source and grad_sampler are both"):
        manager_of(PRUNERS[0]).modify(tiny_bert(), optimizer, STEPS)


def trained(recipe: str, mode: str | None, structure: bool = False):
    """Train on SparseML's modifiers or on ours."""
    with replaced(mode):
        manager = bases.ScheduledModifierManager.from_yaml(recipe)
    return train(manager, structure)


QUANTIZATION = """!QuantizationModifier
        start_epoch: 1.0
        disable_quantization_observer_epoch: 2.0
        freeze_bn_stats_epoch: 2.0
        ignore: [LayerNorm, Tanh, GELUActivation, Dropout, classifier]
        scheme_overrides:
            Embedding:
                input_activations: null
                weights: {num_bits: 8, symmetric: True}
"""


@on_sparseml
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SparseML's own, of pydantic
def test_quantization_runs_on_this_torch_again() -> None:
    recipe = HEAD + QUANTIZATION
    found = quantizers_of(trained(recipe, "same"))
    assert all(one.ready and not one.observing for one in found.values())
    names = {name.rpartition(":")[0] for name in found}
    assert "bert.encoder.layer.0.output.dense" in names and "classifier" not in names
    assert "bert.embeddings.word_embeddings:weight" in found
    with pytest.raises((AttributeError, TypeError)):
        trained(recipe, None)  # its QConfig takes no further attribute


@on_sparseml
def test_a_model_with_dropped_layers_runs_again() -> None:
    recipe = HEAD + "!LayerPruningModifier\n        layers: [bert.encoder.layer.1]\n"
    model = trained(recipe, "same", structure=True)
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 1
    with pytest.raises(RuntimeError, match="parameters of dropped layers"):
        trained(recipe, "same")  # the optimizer was made first
    with pytest.raises((AttributeError, TypeError), match="tuple"):
        trained(recipe, None, structure=True)


SCRIPT = """
import warnings
warnings.simplefilter("ignore")
{first}
{second}
from sparseml.pytorch.optim import ScheduledModifierManager
text = '''modifiers:
    - !GMPStarPruningModifier
        final_sparsity: 0.9
        end_epoch: 3.0
'''
manager = ScheduledModifierManager.from_yaml(text)
(found,) = manager.modifiers
print(type(found).__module__)
"""


@on_sparseml
@pytest.mark.slow  # two processes that import SparseML
def test_one_import_is_enough_in_any_order(tmp_path) -> None:
    ours, theirs = "import obert_modifiers.modifiers", "import sparseml.pytorch.optim"
    for first, second in ((ours, theirs), (theirs, ours)):
        script = SCRIPT.format(first=first, second=second)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.stdout.strip() == "obert_modifiers.modifiers.gmp_star", done.stderr


@on_sparseml
def test_distillation_is_sparsemls_kl_with_padding() -> None:
    text = "modifiers:\n    - !DistillationModifier\n        hardness: 0.7\n"
    text += "        temperature: 3.0\n        distill_output_keys: [{}]\n"
    batch = inputs(0)
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0]] * 4)
    ids = torch.ones(4, 5, dtype=torch.long)
    tokens = {**batch, "labels": ids.masked_fill(batch["attention_mask"] == 0, -100)}
    starts = {k: v for k, v in batch.items() if k != "labels"}
    starts |= {"start_positions": ids[:, 0], "end_positions": ids[:, 1]}
    for name, keys, given in (
        ("BertForSequenceClassification", "logits", batch),
        ("BertForTokenClassification", "logits", tokens),
        ("BertForQuestionAnswering", "start_logits, end_logits", starts),
    ):
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        student, teacher = cls(BertConfig(**SHAPE)), cls(BertConfig(**SHAPE)).eval()
        other = {**given, "input_ids": given["input_ids"].flip(0)}
        shown = {"student_inputs": given, "teacher_inputs": other}
        found = []
        for mode in (None, "same", "ours"):
            with replaced(mode):
                manager = bases.ScheduledModifierManager.from_yaml(text.format(keys))
            manager.initialize(student, distillation_teacher=teacher, **SILENT)
            torch.manual_seed(1)
            outputs = student(**given)
            where = outputs.loss, student, None, 0.5, STEPS
            found.append(manager.loss_update(*where, student_outputs=outputs, **shown))
        torch.testing.assert_close(found[0], found[1])
        alike = name == "BertForSequenceClassification"  # no token, so no padding
        assert torch.allclose(found[0], found[2]) is alike


def test_the_teacher_gets_the_inputs_that_are_named() -> None:
    class Teacher(torch.nn.Linear):
        def forward(self, a):
            return {"logits": super().forward(a)}

    keys = {"hardness": 1.0, "teacher_input_keys": ["a"]}
    modifier, student = modifiers.LogitDistillationModifier(**keys), Teacher(2, 2)
    modifier.initialize(student, distillation_teacher=Teacher(2, 2))
    given = {"a": torch.ones(3, 2), "b": torch.ones(3, 2)}
    where = (torch.ones(()), student, None, 0.0, STEPS)
    outputs = student(given["a"])
    modifier.loss_update(*where, student_outputs=outputs, student_inputs=given)
    with pytest.raises(ValueError, match="names a, which the student does not get"):
        modifier.loss_update(
            *where, student_outputs=outputs, student_inputs={"b": given["b"]}
        )
    for wrong in ([], [1]):
        with pytest.raises(ValueError, match="are not names"):
            modifiers.LogitDistillationModifier(teacher_input_keys=wrong)
