"""QATModifier: when ranges move, what stays zero, what a state brings back."""

import copy
import logging
import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.quantization.fake_quant import AVERAGING
from obert_modifiers.core.quantization.scales import (
    load_quantization_,
    save_quantization,
)
from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.modifiers import OBERTPruningModifier, QATModifier
from obert_modifiers.modifiers._states import from_tensors
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.modifiers.qat import CALIBRATION_SAMPLES
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from tests.modifiers.driving import SMALL, STEPS, copied, same, train
from tests.modifiers.table import (
    SCHEDULE,
    make_batch,
    make_model,
    make_source,
    sample_loss,
)
from tests.recipe.broken import brief

RECIPE = """
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 4.0}
  - !GMPStarPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.75
      start_epoch: 0.0
      end_epoch: 1.0
      update_frequency: 0.5
      mask_type: block4
  - !QATModifier
      start_epoch: 1.5
      disable_observer_epoch: 3.0
      quantize_attention_matmuls: true
"""


def bert(**config) -> BertForSequenceClassification:
    torch.manual_seed(0)
    shape = SMALL | {"vocab_size": 40, "num_hidden_layers": 2, "initializer_range": 0.2}
    config = BertConfig(**shape | {"max_position_embeddings": 24} | config)
    return BertForSequenceClassification(config)


def inputs(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (8, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 1] % 2}


def run(manager, model, optimizer, steps, start=0, watch=None) -> list[float]:
    """Train with dropout drawn from the step, so that a run can be taken up."""
    losses = []

    def loss(step: int) -> torch.Tensor:
        torch.manual_seed(step)
        losses.append(model(**inputs(step)).loss)
        return losses[-1]

    train(manager, model.train(), optimizer, steps, start, loss=loss, watch=watch)
    return [one.item() for one in losses]


def started(recipe=RECIPE, rate=1e-2):
    model, manager = bert(), RecipeManager.from_recipe(recipe)
    manager.initialize(model)
    return manager, model, torch.optim.AdamW(model.parameters(), lr=rate)


def begun(**keys) -> tuple[torch.nn.Module, QATModifier]:
    """The table's model, quantized, with ranges of a batch."""
    model, modifier = make_model(), QATModifier(**keys)
    modifier.initialize(model)
    modifier.scheduled_update(model, None, 0.0, STEPS)
    sample_loss(model, make_batch()).mean()
    return model, modifier


def test_pruned_weights_stay_zero_and_masks_in_force() -> None:
    manager, model, optimizer = started()
    qat = manager.modifiers[-1]
    held = list(model.parameters())
    active, scales = [], []

    def watch(step: int) -> None:
        active.append(qat.active)
        found = quantizers_of(model)
        if found:
            scales.append({n: q.scale.clone() for n, q in found.items()})
        masks = manager.pruning[0].module_masks
        for name, mask in zip(masks.names, masks.param_masks, strict=True):
            weight = model.get_parameter(name)
            assert (weight[~mask] == 0).all()
            if f"{name[:-7]}:weight" in found:
                rounded = found[f"{name[:-7]}:weight"](weight, False)
                assert (rounded[~mask] == 0).all()
        if step >= 4:
            assert masks.sparsity() == 0.75

    run(manager, model, optimizer, 16, watch=watch)
    # On at step 6 = epoch 1.5; the ranges of steps 12 to 15 are the same.
    assert active == [False] * 6 + [True] * 10
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    assert len(scales[-1]) == 3 + 2 * (6 * 2 + 4) + 2 * 2
    for name in scales[-1]:
        assert torch.equal(scales[6][name], scales[-1][name]), name
    assert any(not torch.equal(scales[4][n], scales[6][n]) for n in scales[-1])
    assert qat.frozen
    manager.finalize(model)
    assert model.state_dict().keys() == bert().state_dict().keys()
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not hasattr(module, "parametrizations")
    assert not any(one.observing for one in quantizers_of(model).values())


def test_a_second_order_event_takes_gradients_of_the_quantized_model() -> None:
    model, _ = begun()
    obert = OBERTPruningModifier(**SCHEDULE, num_grads=8)
    obert.initialize(model, gradient_source=make_source())
    obert.scheduled_update(model, None, 1.0, STEPS)
    assert obert.module_masks.sparsity() == pytest.approx(0.3, abs=2e-3)
    assert obert.events[0].num_gradients == 8
    ranges = quantizers_of(model)["head:input"].scale.clone()
    sample_loss(model.eval(), make_batch()).mean()
    assert torch.equal(quantizers_of(model)["head:input"].scale, ranges)


def test_every_parameter_learns_through_the_rounding() -> None:
    manager, model, optimizer = started(RECIPE.replace("1.5", "0.0"))
    run(manager, model, optimizer, 2)
    model(**inputs(9)).loss.backward()
    for name, parameter in model.named_parameters():
        # A key's bias moves all scores of a query alike: softmax does not see it.
        if not name.endswith("key.bias"):
            assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


def test_training_in_8_bits_learns() -> None:
    begin = started(RECIPE.replace("1.5", "0.0"), 3e-3)
    seen = [loss for _ in range(12) for loss in run(*begin, 2)]
    assert sum(seen[-4:]) < 0.5 * sum(seen[:4])


@pytest.mark.parametrize("stop", [7, 13])  # ranges move; ranges are fixed
def test_a_state_goes_on_in_mid_schedule(stop: int) -> None:
    whole = manager, model, optimizer = started()
    run(*whole, stop)
    weights, state = copied(model), manager.state_dict()
    # An optimizer's state is not copied when it is loaded.
    rates = copy.deepcopy(optimizer.state_dict())

    resumed = again, other, fresh = started()
    other.load_state_dict(weights)
    again.load_state_dict(state)
    fresh.load_state_dict(rates)
    assert quantizers_of(other).keys() == quantizers_of(model).keys()
    assert run(*resumed, 16, stop) == run(*whole, 16, stop)
    for name, one in quantizers_of(model).items():
        two = quantizers_of(other)[name]
        assert torch.equal(one.scale, two.scale) and one.observing == two.observing
    assert same(model, other)


def test_states_that_do_not_fit() -> None:
    model, modifier = make_model(), QATModifier()
    with pytest.raises(RuntimeError, match="uninitialized modifier"):
        modifier.load_state_dict({})
    modifier.initialize(model)
    state = modifier.state_dict()
    assert not from_tensors(state)["__schedule__"]["active"] and len(state) == 1
    modifier.scheduled_update(model, None, 0.0, STEPS)
    with pytest.raises(IndexError, match="state has other layers than the model"):
        modifier.load_state_dict(state)
    full = modifier.state_dict()
    other = QATModifier(ignore="head")
    other.initialize(make_model())
    with pytest.raises(IndexError, match="extra .'head:input', 'head:weight'"):
        other.load_state_dict(full)


def test_freeze_activations_lets_scales_follow_the_weights() -> None:
    model, modifier = begun(disable_observer_epoch=1.0, freeze="activations")
    modifier.scheduled_update(model, None, 1.0, STEPS)
    assert modifier.frozen and not modifier.update_ready(1.25, STEPS)
    found = quantizers_of(model)
    before = {name: one.scale.clone() for name, one in found.items()}
    with torch.no_grad():
        model.head.weight.mul_(3.0)
        model.embedding.weight.mul_(3.0)
    sample_loss(model, make_batch(1)).mean()
    assert torch.equal(found["head:input"].scale, before["head:input"])
    torch.testing.assert_close(found["head:weight"].scale, 3 * before["head:weight"])
    modifier.finalize(model)
    assert not found["head:weight"].observing


def test_end_epoch_fixes_all_and_leaves_the_model_quantized() -> None:
    model, modifier = begun(start_epoch=-1, end_epoch=1.0)
    assert modifier.update_ready(1.0, STEPS)
    modifier.scheduled_update(model, None, 1.0, STEPS)
    assert not any(one.observing for one in quantizers_of(model).values())
    assert modifier.ended and modifier.active


def test_ranges_without_a_training_step_are_refused(caplog) -> None:
    model, modifier = make_model(), QATModifier(disable_observer_epoch=0.5)
    modifier.initialize(model)
    with pytest.raises(RuntimeError, match="start_epoch=0 is less than a step before"):
        modifier.scheduled_update(model, None, 0.75, STEPS)
    late = QATModifier(start_epoch=9.0)
    late.initialize(make_model())
    with caplog.at_level(logging.WARNING):
        late.finalize()
    assert "start_epoch=9 was not reached: the model is not quantized" in caplog.text


def batch_source(seen=None) -> GradientSource:
    def batches(request):
        assert request.num_samples == CALIBRATION_SAMPLES
        return [inputs(seed) for seed in range(4)]

    def losses(model, batch):
        if seen is not None:
            seen.append(model.training)
        return model(**batch).loss.expand(len(batch["labels"]))

    return GradientSource(batches, losses)


def test_at_once_ranges_are_means_over_the_batches() -> None:
    model, plain, training = bert(), bert().eval(), []
    model.train()
    before = copied(model)
    modifier = QATModifier(quantize_attention_matmuls=True, ignore=["bert.embeddings"])
    modifier.initialize(model, math.inf, gradient_source=batch_source(training))
    assert training == [False] * 4 and model.training
    assert modifier.active and modifier.frozen
    found = quantizers_of(model)
    assert not any(one.observing for one in found.values())
    limits = []  # of what the first layer sees, whose inputs nothing quantizes
    for seed in range(4):
        with torch.no_grad():
            hidden = plain.bert.embeddings(inputs(seed)["input_ids"])
        limits.append(torch.stack(torch.aminmax(hidden)))
    low, high = torch.stack(limits).mean(dim=0)
    query = found["bert.encoder.layer.0.attention.self.query:input"]
    torch.testing.assert_close(query.scale, ((high - low) / 255).reshape(1))
    modifier.finalize(model)
    assert same(model, before)
    batch = inputs(50)
    with torch.no_grad():
        rounded, exact = model.eval()(**batch).logits, plain(**batch).logits
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.1 * exact.norm()
    # The observers go on with their own averaging when training follows.
    assert quantizers_of(model)["classifier:input"].averaging == AVERAGING


def test_at_once_a_recipe_prunes_first_and_quantizes_what_is_left() -> None:
    model, order = bert(), []
    manager = RecipeManager.from_recipe("""
modifiers:
  - !QATModifier {quantize_attention_matmuls: true}
  - !OBERTPruningModifier
      {init_sparsity: 0.75, final_sparsity: 0.75, start_epoch: 0.0, end_epoch: 0.0,
       update_frequency: 1.0, num_grads: 8, fisher_block_size: 16}
""")

    def losses(model, batch):
        order.append(bool(quantizers_of(model)))
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        loss = torch.nn.functional.cross_entropy
        return loss(logits, batch["labels"], reduction="none")

    source = GradientSource(lambda request: [inputs(seed) for seed in range(4)], losses)
    manager.initialize(model, epoch=math.inf, gradient_source=source)
    manager.finalize(model)
    assert order == sorted(order) and {*order} == {False, True}
    found = quantizers_of(model)
    assert len(found) == 3 + 2 * (6 * 2 + 4) + 2 * 2
    pruned = 0
    for name in encoder_weights(model):
        weight = model.get_parameter(name).detach()
        rounded = found[f"{name.removesuffix('.weight')}:weight"](weight, False)
        assert (rounded[weight == 0] == 0).all()
        pruned += int((weight == 0).sum())
    assert pruned == 0.75 * 2 * (4 * 32 * 32 + 2 * 32 * 64)


def test_at_once_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch=inf cannot be trained at"):
        QATModifier().apply(bert())
    empty = GradientSource(lambda request: [], lambda model, batch: None)
    with pytest.raises(ValueError, match="gradient_source gives no batch for the rang"):
        QATModifier().apply(bert(), gradient_source=empty)


def test_linear_layers_of_gpt2_are_refused_by_name() -> None:
    shape = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 11}
    model = GPT2ForSequenceClassification(GPT2Config(**shape, pad_token_id=0))
    model.config.architectures = None
    said = r"layer=transformer.h.0.attn.c_attn is a Conv1D; .*; name it under ignore"
    with pytest.raises(ValueError, match=said):
        QATModifier().initialize(model)
    assert len(encoder_weights(model)) == 4  # they can be pruned
    left = QATModifier(ignore=["transformer.h"]).resolve_targets(model)
    assert left == ["transformer.wte", "transformer.wpe", "score"]


def test_layers_that_are_not_in_use_are_named(caplog) -> None:
    model = make_model()
    model.spare = torch.nn.Linear(3, 3)
    modifier = QATModifier()
    modifier.initialize(model)
    modifier.scheduled_update(model, None, 0.0, STEPS)
    sample_loss(model, make_batch()).mean()
    with caplog.at_level(logging.WARNING):
        modifier.finalize(model)
    assert "not in use, and so not quantized: spare" in caplog.text


def test_the_saved_model_loads_without_us_and_with_its_scales(tmp_path) -> None:
    manager, model, optimizer = started()
    run(manager, model, optimizer, 16)
    manager.finalize(model)
    model.eval()
    model.save_pretrained(tmp_path)
    assert save_quantization(model, tmp_path).name == "quantization.json"
    again = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = inputs(50)
    with torch.no_grad():
        expected, plain = model(**batch).logits, again(**batch).logits
        assert load_quantization_(again, tmp_path)
        assert torch.equal(again(**batch).logits, expected)
    assert not torch.equal(plain, expected)
    assert type(BertForSequenceClassification.from_pretrained(tmp_path)) is type(model)


def test_submodules_outside_of_which_nothing_is_quantized() -> None:
    model = make_model()

    def found(**keys) -> list[str]:
        return QATModifier(**keys).resolve_targets(model)

    inside = found(submodules=["layers.0", "embedding"])
    assert inside == ["embedding", "layers.0.0", "layers.0.2"]
    assert {"head", "layers.1.0"} <= set(found()) - set(inside)
    kept = found(submodules=["layers"], ignore=["re:.*[.]2"])
    assert kept == found(submodules=["re:lay.*0$"]) == ["layers.0.0", "layers.1.0"]
    for wrong, said in (
        (["body"], "submodules=body matches no layer"),
        ([], r"submodules=\[\] leaves no layer"),
        (3, "submodules=3 is not a name"),
    ):
        with pytest.raises(ValueError, match=said):
            found(submodules=wrong)


@pytest.mark.parametrize("names", [[""], "", ["layers", ""]])
def test_the_empty_name_is_the_whole_model(names) -> None:
    model = make_model()
    everything = QATModifier().resolve_targets(model)
    assert QATModifier(submodules=names).resolve_targets(model) == everything
    rest = QATModifier(submodules=names, ignore=["head"]).resolve_targets(model)
    assert rest == [name for name in everything if name != "head"]
    with pytest.raises(ValueError, match="ignore= is not a name"):
        QATModifier(ignore=[""])


def problems(body: str, model=None) -> list[str]:
    lines = "".join(f"      {line}\n" for line in body.splitlines())
    with pytest.raises(RecipeError) as error:
        manager = RecipeManager.from_recipe(f"modifiers:\n  - !QATModifier\n{lines}")
        manager.check_model(model)
    return [brief(problem) for problem in error.value.problems]


UNKNOWN_KEYS = "start_epoch: 1.0\nfreze: all\nper_chanel: true"
MATMULS = "quantize_attention_matmuls"


@pytest.mark.parametrize(
    ("body", "model", "found"),
    [
        (UNKNOWN_KEYS, bert, ["4 freze UNKNOWN", "5 per_chanel UNKNOWN"]),
        ("start_epoch: x\ndisable_observer_epoch: 5", bert, ["3 start_epoch NUMBER"]),
        ("ignore: ['re:*']", bert, ["3 ignore PATTERN"]),
        ("freeze: al", bert, ["3 freeze CHOICE"]),
        ("start_epoch: 1.0\nignore: [bert.poolr]", bert, ["4 ignore MODEL"]),
        ("submodules: [head]\nignore: [head]", make_model, ["4 ignore MODEL"]),
        (f"{MATMULS}: true", make_model, [f"3 {MATMULS} MODEL"]),
    ],
)
def test_the_checks_of_a_recipe_and_of_a_model_name_the_key(body, model, found) -> None:
    assert [one.replace("QATModifier.", "") for one in problems(body, model())] == found
