"""Embeddings: pooling, their losses, and the Fisher that needs no labels."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from obert_modifiers.core import embedding as emb
from obert_modifiers.core.embedding import Embeds, Pooling, embed_
from obert_modifiers.core.embedding_folder import module_files, read_folder
from obert_modifiers.core.pruning.gradients import collect_gradients
from obert_modifiers.core.pruning.layer_signals import Signals

SEED = 3


def tokens(seed: int = 0, rows: int = 4, length: int = 6, width: int = 5):
    """Make hidden states and a mask; every row has padding but the first."""
    torch.manual_seed(seed)
    hidden = torch.randn(rows, length, width, dtype=torch.float64)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        mask[row, length - row :] = 0
    return hidden, mask


def slow_pool(mode: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = []
    for states, kept in zip(hidden, mask, strict=True):
        own = states[: int(kept.sum())]
        rows.append(
            {
                "mean": own.mean(0),
                "cls": own[0],
                "max": own.max(0).values,
                "mean_sqrt_len_tokens": own.sum(0) / len(own) ** 0.5,
            }[mode]
        )
    return torch.stack(rows)


@pytest.mark.parametrize("mode", emb.MODES)
def test_pooling_leaves_padding_out(mode) -> None:
    hidden, mask = tokens()
    expected = slow_pool(mode, hidden, mask)
    found = Pooling((mode,), unit=False)(hidden, mask)
    torch.testing.assert_close(found, expected)
    added = (1.0 - mask[:, None, None].double()) * torch.finfo(torch.float64).min
    torch.testing.assert_close(Pooling((mode,), unit=False)(hidden, added), expected)
    unit = Pooling((mode,))(hidden, mask)
    torch.testing.assert_close(unit, expected / expected.norm(dim=1, keepdim=True))
    if mode != "cls":
        assert not torch.allclose(Pooling((mode,), unit=False)(hidden), expected)


def test_several_modes_stand_one_after_the_other() -> None:
    hidden, mask = tokens()
    found = Pooling(("cls", "mean"), unit=False)(hidden, mask)
    assert found.shape == (4, 10)
    torch.testing.assert_close(found[:, :5], hidden[:, 0])


class Encoder(nn.Module):
    """Two linear layers over tokens, as an encoder of transformers returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.first, self.second = nn.Linear(4, 3, bias=False), nn.Linear(3, 3)
        self.pooler = nn.Linear(3, 3)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        hidden = self.second(torch.tanh(self.first(self.words(input_ids))))
        return {"last_hidden_state": hidden, "pooler_output": hidden[:, 0]}


def encoder() -> nn.Module:
    torch.manual_seed(1)
    return embed_(Encoder().double(), Embeds())


def batch_of(rows: int = 5):
    torch.manual_seed(2)
    ids = torch.randint(0, 9, (rows, 4))
    mask = torch.ones_like(ids)
    mask[::2, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_an_encoder_returns_embeddings_and_keeps_its_names(tmp_path) -> None:
    plain = Encoder().double()
    names = list(plain.state_dict())
    model = embed_(copy.deepcopy(plain), Embeds())
    batch = batch_of()
    found, expected = model(**batch), plain(**batch)["last_hidden_state"]
    assert set(found) == {"sentence_embedding", "last_hidden_state"}
    assert type(model).__name__ == "Encoder" and list(model.state_dict()) == names
    pooled = Pooling()(expected, batch["attention_mask"])
    torch.testing.assert_close(found["sentence_embedding"], pooled)
    again = copy.deepcopy(model)(**batch)
    assert torch.equal(again["sentence_embedding"], found["sentence_embedding"])
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["pooler.weight", "pooler.bias"]
    by_place = model(batch["input_ids"], batch["attention_mask"], return_dict=False)
    assert torch.equal(by_place["sentence_embedding"], found["sentence_embedding"])
    unmasked = model(batch["input_ids"])["sentence_embedding"]  # the negative control
    assert not torch.allclose(unmasked, found["sentence_embedding"])


def jacobians(model: nn.Module, batch: dict) -> torch.Tensor:
    """Return d e / d first.weight of each sample, (k, H, d)."""
    weight = model.first.weight.detach()

    def embed(value: torch.Tensor) -> torch.Tensor:
        found = functional_call(model, {"first.weight": value}, (), batch)
        return found["sentence_embedding"]

    return jacrev(embed)(weight).flatten(2)


def probed(model: nn.Module, batch: dict, ids: torch.Tensor, seed: int = SEED):
    """Collect the gradients of probes, (k, d), as an event does."""
    found, asked = [], []

    def losses(model, batch):
        asked.append(batch)
        embeddings = model(**batch)["sentence_embedding"]
        return emb.probe_losses(embeddings, ids, seed)

    def consume(gradients):
        (part,) = gradients.parts
        if isinstance(part, Signals):
            part = part.output_grads.mT @ part.inputs
        found.append(part.flatten(1))

    collect_gradients(model, [model.first.weight], [batch], losses, consume)
    assert len(asked) == 1  # all samples in one backward pass
    return torch.cat(found)


def gauss_newton(model: nn.Module, batch: dict) -> torch.Tensor:
    """Return the mean of J^T J over the samples, from its definition."""
    found = jacobians(model, batch).detach()
    return sum(j.T @ j for j in found) / len(found)


def test_a_probe_has_the_gradient_of_its_sample() -> None:
    model, batch = encoder(), batch_of()
    ids = torch.tensor([7, 3, 11, 0, 5])
    vectors = [
        torch.autograd.functional.jacobian(
            lambda e, n=n: emb.probe_losses(e, torch.tensor([n]), SEED),
            torch.zeros(1, 3, dtype=torch.float64),
        ).flatten()
        for n in ids.tolist()
    ]
    expected = torch.stack([
        v @ j for v, j in zip(vectors, jacobians(model, batch), strict=True)
    ])
    torch.testing.assert_close(probed(model, batch, ids), expected)
    # A sample has the same vector whatever batch it is in.
    half = {name: one[3:] for name, one in batch.items()}
    torch.testing.assert_close(probed(model, half, ids[3:]), expected[3:])
    assert not torch.allclose(probed(model, batch, ids, seed=SEED + 1), expected)


def fisher_error(rows: torch.Tensor, expected: torch.Tensor) -> float:
    found = rows.T @ rows / len(rows)
    return float((found - expected).norm() / expected.norm())


def test_probes_give_the_gauss_newton_matrix_and_planted_ones_do_not() -> None:
    model, one = encoder(), batch_of(4)
    expected = gauss_newton(model, one)
    count = 4000
    batch = {name: rows.repeat(count // 4, 1) for name, rows in one.items()}
    ids = torch.arange(count)
    found = probed(model, batch, ids)
    # The error of m samples is about sqrt(2 / m) of the trace: 0.03 to 0.06 here.
    assert fisher_error(found, expected) < 0.1
    same = probed(model, batch, torch.zeros_like(ids))  # one vector for all samples
    assert fisher_error(same, expected) > 0.3
    ones = jacobians(model, one).detach().sum(1)  # v = 1 for all
    assert fisher_error(ones, expected) > 0.3


def test_the_matrix_predicts_how_far_embeddings_turn() -> None:
    model, batch = encoder(), batch_of()
    before = model(**batch)["sentence_embedding"]
    torch.manual_seed(0)
    step = 1e-3 * torch.randn_like(model.first.weight)
    expected = step.flatten() @ gauss_newton(model, batch) @ step.flatten() / 2
    with torch.no_grad():
        model.first.weight += step
    turned = emb.cosine_losses(model(**batch)["sentence_embedding"], before).mean()
    assert float(turned.detach()) == pytest.approx(float(expected), rel=0.02)


def test_the_fisher_of_the_distance_is_zero_at_the_teacher() -> None:
    model, batch = encoder(), batch_of()
    teacher = model(**batch)["sentence_embedding"].detach()
    losses = emb.squared_losses(model(**batch)["sentence_embedding"], teacher)
    (grad,) = torch.autograd.grad(losses.sum(), [model.first.weight])
    assert not grad.any()
    assert float(gauss_newton(model, batch).trace()) > 0.01


def test_losses_against_their_definitions() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 3, dtype=torch.float64)
    a, b = (one / one.norm(dim=1, keepdim=True) for one in (ours, theirs))
    near = torch.testing.assert_close
    near(emb.cosine_losses(ours, theirs), 1 - (a * b).sum(1))
    scale = sum(float(row @ row) for row in theirs) / 4
    near(emb.squared_losses(ours, theirs), ((ours - theirs) ** 2).sum(1) / scale)
    near(emb.squared_losses(a, b), 2 * emb.cosine_losses(a, b))
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    errors = [(float(a[i] @ a[j]) - float(b[i] @ b[j])) ** 2 for i, j in pairs]
    assert float(emb.similarity_loss(ours, theirs)) == pytest.approx(sum(errors) / 12)
    assert float(emb.similarity_loss(ours[:1], theirs[:1])) == 0.0
    scores = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    near(emb.score_losses(ours, theirs, scores), ((a * b).sum(1) - scores) ** 2)
    with pytest.raises(ValueError, match=r"teacher embeddings .*same width"):
        emb.cosine_losses(ours, theirs[:, :2])


def test_a_text_that_is_there_twice_is_no_negative_of_itself() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 4, dtype=torch.float64)
    second[2] = second[0]
    found = emb.contrastive_losses(first, second, torch.tensor([5, 8, 5]))
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], -1)
    exps = (cosines / emb.TEMPERATURE).exp()
    expected = [
        -torch.log(exps[i, i] / (exps[i, i] + exps[i, j])) for i, j in ((0, 1), (2, 1))
    ]
    torch.testing.assert_close(found[[0, 2]], torch.stack(expected))
    everyone = emb.contrastive_losses(first, second, torch.arange(3))
    assert everyone[0] > found[0]


def folder(path, modules=("Transformer", "Pooling", "Normalize"), **pooling):
    path.mkdir()
    listed = [
        {"idx": i, "path": f"{i}_{kind}" * bool(i), "type": f"models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def test_a_folder_says_how_it_pools_and_is_kept(tmp_path) -> None:
    old = folder(tmp_path / "old", pooling_mode_cls_token=True)
    about = {"prompts": {"query": "q: ", "passage": ""}, "default_prompt_name": None}
    (old / "config_sentence_transformers.json").write_text(json.dumps(about))
    texts = {"max_seq_length": 99, "do_lower_case": True}
    (old / "sentence_bert_config.json").write_text(json.dumps(texts))
    found = read_folder(old, 8)
    assert found.embeds.pooling == Pooling(("cls",), True)
    assert (found.max_length, found.lower, found.given) == (99, True, True)
    assert found.prompt("query") == "q: " and found.prompt("passage") == ""
    assert sorted(found.embeds.files) == sorted(module_files(old))
    assert len(module_files(old)) == 4
    new = folder(tmp_path / "new", ("Transformer", "Pooling"), pooling_mode="max")
    assert read_folder(new, 8).embeds.pooling == Pooling(("max",), False)
    none = read_folder(tmp_path, 8)
    assert none.embeds.pooling == Pooling() and not none.given
    for name, content in none.embeds.files.items():
        path = tmp_path / "written" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert read_folder(tmp_path / "written", 8).embeds.pooling == Pooling()


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ({"modules": ("Transformer", "Pooling", "Dense")}, r"modules.json .*Dense"),
        ({"pooling_mode": "lasttoken"}, r"1_Pooling.*pools by lasttoken"),
    ],
)
def test_what_is_not_computed_here_is_refused(tmp_path, made, match) -> None:
    with pytest.raises(ValueError, match=match):
        read_folder(folder(tmp_path / "model", **made), 8)


def test_prompts_that_are_not_pooled_are_refused(tmp_path) -> None:
    path = folder(tmp_path / "model", pooling_mode="mean", include_prompt=False)
    assert read_folder(path, 8).given
    about = {"prompts": {"query": "find: "}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="include_prompt=False"):
        read_folder(path, 8)
