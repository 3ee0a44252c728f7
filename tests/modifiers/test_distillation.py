"""The distillation modifier on transformers of every task, and where its teacher is."""

import importlib

import pytest
import torch
import transformers
from torch import nn
from transformers import BertConfig

from obert_modifiers.core.distillation import output_losses, read_outputs
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.host import bases
from obert_modifiers.modifiers import LogitDistillationModifier
from obert_modifiers.modifiers._classes import order_for, places_of
from obert_modifiers.modifiers._losses import with_distillation
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe_text.problems import RecipeError
from tests import reference
from tests.hosts import on_sparseml
from tests.modifiers.driving import SMALL, copied, same
from tests.modifiers.table import make_model

SPARSEML = f"{bases.Modifier.__module__.rpartition('.')[0]}.distillation"
T = 3.0
SIZE = SMALL | {"vocab_size": 20, "max_position_embeddings": 16}
SIZE["initializer_range"] = 0.4
TASKS = {
    "classes": transformers.BertForSequenceClassification,
    "tokens": transformers.BertForTokenClassification,
    "mlm": transformers.BertForMaskedLM,
    "answers": transformers.BertForQuestionAnswering,
}


def make(task: str, layers: int = 4, seed: int = 0, **config) -> nn.Module:
    torch.manual_seed(seed)
    return TASKS[task](BertConfig(**SIZE, num_hidden_layers=layers, **config)).eval()


def three(task: str, width: int = 7) -> tuple[nn.Module, nn.Module, dict]:
    """A student, a teacher and a batch."""
    return make(task), make(task, seed=1), make_batch(task, width)


def make_batch(task: str, width: int = 7) -> dict[str, torch.Tensor]:
    """Three samples of 7, 4 and 2 tokens; padded to ``width``."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 20, (3, 7), generator=generator)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    labels = torch.randint(0, 2, (3, 7), generator=generator)
    labels[mask == 0] = labels[:, 0] = -100
    pad = width - 7
    batch = {
        "input_ids": nn.functional.pad(ids * mask, (0, pad)),
        "attention_mask": nn.functional.pad(mask, (0, pad)),
    }
    if task in ("tokens", "mlm"):
        batch["labels"] = nn.functional.pad(labels, (0, pad), value=-100)
    elif task == "classes":
        batch["labels"] = torch.tensor([0, 1, 1])
    else:
        batch["start_positions"] = batch["end_positions"] = torch.tensor([1, 2, 1])
    return batch


def run(model: nn.Module, batch: dict[str, torch.Tensor]):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def distiller(student, teacher, **keys) -> LogitDistillationModifier:
    made = LogitDistillationModifier(hardness=1.0, temperature=T, **keys)
    loggers = bases.silent_loggers()
    made.initialize(student, loggers=loggers, distillation_teacher=teacher)
    return made


def mixed(made, student, batch, task_loss=0.0) -> torch.Tensor:
    given = {"student_outputs": run(student, batch), "student_inputs": batch}
    return made.loss_update(torch.tensor(task_loss), student, None, 0.0, 4, **given)


def value(*args) -> float:
    return float(mixed(*args).detach())


def rows_of(one, two, rule=reference.softened_kl) -> list[float]:
    """What an oracle says of each row of two tensors of logits."""
    pairs = zip(one.detach().numpy(), two.detach().numpy(), strict=True)
    return [rule(ours, theirs, T) for ours, theirs in pairs]


@pytest.mark.parametrize("task", TASKS)
def test_padding_changes_no_loss(task) -> None:
    """Padded further, every task has the same loss; SparseML's has another."""
    # The loss of answers is 5e-5: of float32 only a part of its digits are left.
    student, teacher = make(task).double(), make(task, seed=1).double()
    short, long = make_batch(task), make_batch(task, 12)
    ours = distiller(student, teacher)
    assert torch.allclose(mixed(ours, student, short), mixed(ours, student, long))
    for batch in (short, long):
        losses = ours.sample_losses(run(student, batch), batch)
        assert losses.shape == (3,) and (losses > 0).all()
    hosts = distiller(student, teacher, mask_padding=False)
    one, two = mixed(hosts, student, short), mixed(hosts, student, long)
    assert torch.allclose(one, two) == (task == "classes")  # control


MASKS = {"padding and unlabelled": {}, "padding": {"mask_unlabelled": False}}
MASKS |= {"none": {"mask_padding": False}, "both": {"mask_unlabelled": True}}
MASKS |= {"unlabelled": {"mask_padding": False, "mask_unlabelled": True}}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("task", ["tokens", "mlm"])
def test_padding_and_tokens_without_a_label_are_two_keys(task, case) -> None:
    """Against the rows written out; before the second key the first meant both."""
    student, teacher, batch = three(task, 9)
    made = distiller(student, teacher, **MASKS[case])
    kept = torch.ones(3, 9, dtype=torch.bool)
    if case not in ("none", "unlabelled"):
        kept &= batch["attention_mask"] != 0
    if case not in ("none", "padding"):
        kept &= batch["labels"] != -100
    rows = [run(one, batch)["logits"][kept] for one in (student, teacher)]
    oracle = sum(rows_of(*rows)) / int(kept.sum())
    assert value(made, student, batch) == pytest.approx(oracle, rel=1e-4)
    if case == "padding":  # control
        both = value(distiller(student, teacher), student, batch)
        assert both != pytest.approx(oracle, rel=1e-3)


def test_a_recipe_from_before_the_second_key_has_its_meaning_and_identity() -> None:
    for text in ("hardness: 0.5", "mask_padding: true", "mask_padding: false"):
        recipe = f"modifiers:\n  - !LogitDistillationModifier\n      {text}"
        (one,) = RecipeManager.from_recipe(recipe).modifiers
        assert "mask_unlabelled" not in one.props(only_serializable=True)
        assert "mask_unlabelled" not in one.identifier()
    recipe += "\n      mask_unlabelled: true"
    (one,) = RecipeManager.from_recipe(recipe).modifiers
    assert one.props(only_serializable=True)["mask_unlabelled"] is True


def kldiv_loss(*args):
    found = importlib.import_module(f"{SPARSEML}.modifier_distillation_base")
    return found.kldiv_loss(*args)


@on_sparseml
@pytest.mark.parametrize("task", TASKS)
def test_without_masks_it_is_sparsemls_loss(task) -> None:
    student, teacher, batch = three(task)
    hosts = kldiv_loss(dict(run(student, batch)), dict(run(teacher, batch)), T)
    made = distiller(student, teacher, mask_padding=False)
    torch.testing.assert_close(mixed(made, student, batch), hosts)
    direct = output_losses(
        read_outputs(run(student, batch)), read_outputs(run(teacher, batch)), T
    )
    torch.testing.assert_close(direct.mean(), hosts)
    # What the upstream recipes say, whose blocks have no padding.
    whole = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    if task != "answers":
        hosts = kldiv_loss(dict(run(student, whole)), dict(run(teacher, whole)), T)
        upstream = distiller(student, teacher, mask_unlabelled=False)
        torch.testing.assert_close(mixed(upstream, student, whole), hosts)


FORMS = {
    "tensor": lambda tokens: tokens,
    "tuple": lambda tokens: (tokens,),
    "list": lambda tokens: [tokens],
    "mapping": lambda tokens: {"tokens": tokens},
}


@on_sparseml
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", [False, True], ids=["student's", "teacher's own"])
def test_inputs_of_every_form_give_sparsemls_loss(form, own) -> None:
    student, teacher, given = make_model(), make_model(1), FORMS[form]
    tokens = torch.arange(15).reshape(3, 5) % 11
    shown = tokens.flip(0) if own else tokens
    logits = student(tokens)["logits"]
    with torch.no_grad():
        expected = kldiv_loss(logits, teacher(shown)["logits"], T)
    inputs = {"student_outputs": (logits,), "student_inputs": given(tokens)}
    if own:
        inputs["teacher_inputs"] = given(shown)
    modifier = LogitDistillationModifier(hardness=0.25, temperature=T)
    modifier.initialize(student, distillation_teacher=teacher)
    task = torch.tensor(2.0)
    found = modifier.loss_update(task, student, None, 0.0, 4, **inputs)
    torch.testing.assert_close(found, 0.75 * task + 0.25 * expected)


def test_names_of_inputs_without_names_are_refused() -> None:
    student, tokens = make_model(), torch.ones(2, 5, dtype=torch.long)
    modifier = LogitDistillationModifier(teacher_input_keys=["tokens"])
    modifier.initialize(student, distillation_teacher=make_model(1))
    given = {"student_outputs": student(tokens), "student_inputs": tokens}
    with pytest.raises(ValueError, match=r"teacher_input_keys=\['tokens'\] names inp"):
        modifier.loss_update(torch.tensor(1.0), student, None, 0.0, 4, **given)


def test_sample_losses_of_tokens_are_means_over_their_own_labels() -> None:
    student, teacher, batch = three("tokens")
    ours, wanted = (run(one, batch)["logits"] for one in (student, teacher))
    kept = batch["labels"] != -100
    rows = [rows_of(ours[i, kept[i]], wanted[i, kept[i]]) for i in range(3)]
    made = distiller(student, teacher)
    found = made.sample_losses(run(student, batch), batch)
    for loss, sample in zip(found.tolist(), rows, strict=True):
        assert loss == pytest.approx(sum(sample) / len(sample), rel=1e-4)
    every = [one for sample in rows for one in sample]
    mean = value(made, student, batch)
    assert mean == pytest.approx(sum(every) / len(every), rel=1e-4)
    assert mean != pytest.approx(float(found.detach().mean()), rel=1e-3)  # control


def test_the_teacher_is_left_as_it_is() -> None:
    student, teacher, batch = three("classes")
    teacher = teacher.bfloat16().train()
    before = copied(teacher)
    loss = mixed(distiller(student, teacher), student, batch)
    assert loss.dtype == torch.float32
    loss.backward()
    assert not teacher.training and teacher.dtype == torch.bfloat16
    assert all(p.grad is None for p in teacher.parameters())
    assert same(teacher, before)
    with pytest.raises(ValueError, match="distillation_teacher is the student itself"):
        distiller(student, student)


def test_hidden_states_of_a_shallow_student() -> None:
    """The sum of both losses, from the models' own hidden states."""
    student, teacher = make("classes", 2), make("classes", 4, 1)
    batch = make_batch("classes")
    plain = value(distiller(student, teacher), student, batch)
    made = distiller(student, teacher, hidden_weight=0.5, layer_map="uniform")
    assert student.config.output_hidden_states
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        ours = student(**inputs, output_hidden_states=True).hidden_states
        wanted = teacher(**inputs, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].numpy()
    hidden = sum(
        reference.square_head(ours[one].numpy(), wanted[two].numpy(), mask)
        for one, two in ((1, 2), (2, 4))
    )
    found = value(made, student, batch)
    assert found == pytest.approx(plain + 0.5 * hidden / 2, rel=1e-4)
    samples = made.sample_losses(run(student, batch), batch)
    assert float(samples.detach().mean()) == pytest.approx(found, rel=1e-5)
    by_list = distiller(student, teacher, hidden_weight=0.5, layer_map=[1, 3])
    assert value(by_list, student, batch) == pytest.approx(found, rel=1e-6)
    other = distiller(student, teacher, hidden_weight=0.5, layer_map=[0, 1])
    assert value(other, student, batch) != pytest.approx(found, rel=1e-3)
    samples.sum().backward()
    assert student.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


def test_the_configuration_is_set_back() -> None:
    student = make("classes", 2)
    made = distiller(student, "self", hidden_weight=1.0)
    assert student.config.output_hidden_states
    made.finalize(student)
    assert not student.config.output_hidden_states
    # Also where two of them have switched it.
    both = [distiller(student, "self", hidden_weight=1.0) for _ in range(2)]
    assert student.config.output_hidden_states
    for one in both:
        one.finalize(student)
    assert not student.config.output_hidden_states
    plain = distiller(make_model(), make_model(1), hidden_weight=1.0)
    with pytest.raises(ValueError, match="student gives no hidden_states; expected th"):
        tokens = {"tokens": torch.zeros(2, 3, dtype=torch.long)}
        plain.sample_losses(make_model()(**tokens), tokens)


RECIPE = """\
modifiers:
  - !LogitDistillationModifier
      hardness: 1.0
      teacher: {0}
      hidden_weight: 1.0
      layer_map: [0, 3]
      end_epoch: 1.0
  - !LogitDistillationModifier
      hardness: 0.5
      start_epoch: 1.0
      teacher: {1}
"""


def test_the_recipe_names_the_teacher() -> None:
    manager = RecipeManager.from_recipe(RECIPE.format("self", "self"))
    assert manager.teacher == "self"
    manager.check_teacher(None)
    student = make("classes")
    manager.initialize(student)
    for one in manager.distillation:
        assert one._teacher_model is not student
        assert one._teacher_model.config is not student.config
    # A teacher that is given comes before it.
    given, teacher = RecipeManager.from_recipe(RECIPE.format("a", "a")), make("classes")
    assert given.teacher == "a"
    given.check_teacher(teacher)
    given.initialize(make("classes"), teacher=teacher)
    assert all(one._teacher_model is teacher for one in given.distillation)
    pruned = RECIPE.format("self", "self").replace("end_epoch: 1.0", "end_epoch: -1.0")
    pruned += """\
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.5
      start_epoch: 0.5
      end_epoch: 0.5
      update_frequency: 1.0
      fisher_loss: distillation
"""
    with pytest.raises(RecipeError, match="fisher_loss=distillation has no teacher"):
        RecipeManager.from_recipe(pruned).check_teacher("disable")
    lost = RecipeManager.from_recipe(RECIPE.format("path/a", "path/a"))
    with pytest.raises(RecipeError, match="teacher=path/a cannot be distilled from"):
        lost.check_teacher(None)
    with pytest.raises(ValueError, match="distillation_teacher=path/a is unknown"):
        lost.initialize(make("classes"))
    with pytest.raises(
        RecipeError, match="teacher=path/b is not the path/a of another"
    ):
        RecipeManager.from_recipe(RECIPE.format("path/a", "path/b"))


def test_yaml_of_every_key() -> None:
    manager = RecipeManager.from_recipe(RECIPE.format("self", "self"))
    again = RecipeManager.from_recipe(manager.text)
    first = again.distillation[0].props(only_serializable=True)
    assert first["layer_map"] == [0, 3] and first["teacher"] == "self"
    assert [m.identifier() for m in again.modifiers] == [
        m.identifier() for m in manager.modifiers
    ]


KINDS = {"regression": 1, "multi_label_classification": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_several_labels_in_training_and_in_the_fisher(kind) -> None:
    """Loss and gradients of each sample, against float64 and sums written out."""
    sizes = {"num_labels": KINDS[kind], "problem_type": kind}
    student, teacher = (make("classes", 1, i, **sizes).double() for i in range(2))
    batch = make_batch("classes")
    made = distiller(student, teacher)

    def square(ours, theirs, _temperature) -> float:
        return float((ours - theirs)[0] ** 2)

    rule = square if kind == "regression" else reference.softened_binary_kl
    ours, theirs = run(student, batch)["logits"], run(teacher, batch)["logits"]
    oracle = rows_of(ours, theirs, rule)
    assert value(made, student, batch) == pytest.approx(sum(oracle) / 3, rel=1e-6)
    planted = rows_of(ours, theirs)
    assert sum(planted) != pytest.approx(sum(oracle), rel=1e-2)  # control

    bias = student.classifier.bias
    source = GradientSource(
        lambda request: [batch],
        lambda model, one: run(model, one)["logits"].sum(-1),
        forward=run,
        inputs=lambda one: {k: v for k, v in one.items() if k != "labels"},
        output_loss=lambda outputs, one: outputs["logits"].sum(-1),
    )
    losses = with_distillation(source, [made], lambda: 0.0).other_losses
    found = losses["distillation"](student, batch)
    step = 1e-5
    for sample in range(3):
        grad = torch.autograd.grad(found[sample], bias, retain_graph=True)[0]
        for label in range(len(bias)):
            moved = ours[sample].detach().repeat(2, 1)
            moved[:, label] += torch.tensor([step, -step])
            up, down = rows_of(moved, theirs[sample].repeat(2, 1), rule)
            slope = (up - down) / (2 * step)
            assert float(grad[label]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def _named(names: list[str], seed: int) -> nn.Module:
    return make("classes", 1, seed, id2label=dict(enumerate(names)))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["CONTRADICTION", "Not Entailment ", "neutral"], [1, 2, 0]),
        (["contradiction", "neutral", "not-entailment"], [2, 1, 0]),
        (["not_entailment", "NEUTRAL", "contradiction"], [0, 1, 2]),
        (["contradiction", "neutral", "other"], [0, 1, 2]),
    ],
)
def test_a_teachers_classes_come_in_the_students_order(names, order, caplog) -> None:
    student = _named(["not_entailment", "neutral", "contradiction"], 0)
    teacher, batch = _named(names, 1), make_batch("classes")
    with caplog.at_level("INFO", logger="obert_modifiers"):
        made = distiller(student, teacher)
    assert ("student's order" in caplog.text) == (order != [0, 1, 2])
    ours, theirs = run(student, batch)["logits"], run(teacher, batch)["logits"]
    as_they_stand = sum(rows_of(ours, theirs))
    wanted = sum(rows_of(ours, theirs[:, order]))
    found = float(made.sample_losses(run(student, batch), batch).detach().sum())
    assert found == pytest.approx(wanted, rel=1e-4)
    if order != [0, 1, 2]:  # control
        assert found != pytest.approx(as_they_stand, rel=1e-2)
    itself = distiller(student, "self")
    assert value(itself, student, batch) == pytest.approx(0.0, abs=1e-6)


def test_names_are_read_as_a_person_reads_them() -> None:
    assert places_of(["b per", "O"], ["o", "B_PER"]) == [1, 0]
    assert places_of(["a", "A"], ["A", "a"]) == [1, 0]  # told apart by case alone
    assert places_of(["a-b"], ["A_B", "a b"]) is None  # could be both
    assert places_of(["-1"], ["1", "0"]) is None
    assert order_for(["Yes", "no"], ["no", "yes", "maybe"]) is None
    assert order_for(["yes", "YES "], ["no", "yes"]) is None


def test_a_teacher_that_gives_something_else_is_refused() -> None:
    student, teacher, _ = three("classes")
    student.config.problem_type = "single_label_classification"
    teacher.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="problem_type=multi_label_classification; ex"):
        distiller(student, teacher)


def test_a_teacher_gets_its_own_token_types_and_none_that_it_has_not() -> None:
    student, teacher, batch = three("classes")
    outputs = run(student, batch)
    types = batch["attention_mask"] * torch.tensor([0, 0, 0, 1, 1, 1, 1])
    made = distiller(student, teacher)
    found = made.sample_losses(outputs, batch | {"teacher_token_type_ids": types})
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    theirs = teacher(**inputs, token_type_ids=types)["logits"]
    oracle = rows_of(outputs["logits"], theirs)
    assert found.tolist() == pytest.approx(oracle, rel=1e-4, abs=1e-7)
    without = distiller(student, teacher).sample_losses(outputs, batch)
    assert without[0].item() != pytest.approx(oracle[0], rel=1e-2)  # control
    shape = {"vocab_size": 20, "dim": 32, "n_heads": 2, "n_layers": 1, "hidden_dim": 64}
    config = transformers.DistilBertConfig(**shape)
    plain = transformers.DistilBertForSequenceClassification(config)
    one = distiller(student, plain)
    with_types = one.sample_losses(outputs, batch | {"token_type_ids": types})
    assert torch.equal(with_types, one.sample_losses(outputs, batch))
