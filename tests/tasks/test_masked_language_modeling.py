"""Masked language modelling: masks, blocks of text, figures, and upstream pruning."""

import json
import math
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer

from obert_modifiers.core.distillation import output_losses, read_outputs
from obert_modifiers.core.losses import token_loss
from obert_modifiers.tasks.masked_language_modeling import (
    TASK,
    MaskedSamples,
    Masking,
    masked_metrics,
    masking_of,
)
from tests import tiny
from tests.tasks import inputs
from tests.tasks.inputs import refused, unmasked

MASK, WORDS = 4, 1000
MASKING = Masking(0.15, MASK, WORDS, special=(0, 2, 3, 4))


def block(length: int, seed: int = 0) -> list[int]:
    middle = np.random.default_rng(seed).integers(5, WORDS, length).tolist()
    return [2, *middle, 3]


BLOCKS = Dataset.from_dict({"input_ids": [block(40, i) for i in range(6)]})


def test_the_shares_are_berts() -> None:
    tokens = np.array(block(200_000))
    ids, labels = map(np.array, MASKING.mask(tokens.tolist(), [0]))
    chosen = labels != -100
    assert (labels[chosen] == tokens[chosen]).all()
    assert (ids[~chosen] == tokens[~chosen]).all()
    # Four standard deviations of 200,000, and of 30,000 draws.
    assert chosen.mean() == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 2e5) ** 0.5)
    masked, kept = ids[chosen] == MASK, ids[chosen] == tokens[chosen]
    spread = 4 * (0.25 / 3e4) ** 0.5
    assert masked.mean() == pytest.approx(0.8, abs=spread)
    assert kept.mean() == pytest.approx(0.1, abs=spread)
    others = ids[chosen][~masked & ~kept]
    assert others.min() >= 0 and others.max() < WORDS
    assert len(np.unique(others)) > 0.9 * WORDS


def test_special_tokens_are_never_chosen_and_one_token_always_is() -> None:
    for seed in range(50):
        ids, labels = MASKING.mask([2, 7, 3, 0, 0], [seed])
        assert labels == [-100, 7, -100, -100, -100]
        assert ids[0] == 2 and ids[2:] == [3, 0, 0]


def test_masks_depend_on_seed_epoch_and_place_alone() -> None:
    ahead, alone = (MaskedSamples(BLOCKS, MASKING, seed=3) for _ in range(2))
    first = [ahead[i] for i in range(6)]
    ahead.start_epoch(1)
    second = [ahead[i] for i in range(6)]
    assert first != second
    # A run that goes on at epoch 1, in another order.
    alone.start_epoch(1)
    assert [alone[i] for i in reversed(range(6))] == second[::-1]
    assert MaskedSamples(BLOCKS, MASKING, seed=4)[0] != first[0]
    same = Dataset.from_dict({"input_ids": [block(40)] * 2})
    twins = MaskedSamples(same, MASKING, seed=3)
    assert twins[0] != twins[1]


def test_validation_is_masked_alike_in_every_epoch() -> None:
    fixed = MaskedSamples(BLOCKS, MASKING, seed=None)
    before = [fixed[i] for i in range(6)]
    fixed.start_epoch(5)
    assert [fixed[i] for i in range(6)] == before
    assert len(fixed) == 6 and fixed.token_counts() == [42] * 6


def test_no_generator_is_disturbed() -> None:
    before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    samples = MaskedSamples(BLOCKS, MASKING, seed=3)
    samples.start_epoch(2)
    assert len([samples[i] for i in range(6)]) == 6
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_tokenizer_tells_what_is_special(small) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    found = masking_of(tokenizer, 0.15)
    assert found.mask_id == tokenizer.mask_token_id
    assert found.vocab_size == len(tokenizer)
    names = tokenizer.convert_ids_to_tokens(found.special)
    assert set(names) == {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}  # not [UNK]
    tokenizer.mask_token = None
    with refused("has no mask token"):
        masking_of(tokenizer, 0.15)


def lines(count: int, seed: int = 0) -> list[str]:
    """Sentences in which every good word is followed by film, every bad by plot."""
    draw = random.Random(seed)
    pairs = [f"{w} film" for w in tiny.GOOD] + [f"{w} plot" for w in tiny.BAD]
    return [" ".join(draw.choices(pairs, k=draw.randrange(2, 8))) for _ in range(count)]


def write(path, texts):
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def prepare(small, tmp_path, texts, **flags):
    path = write(tmp_path / "a.txt", texts)
    made = inputs.prepare(TASK.name, tmp_path, small.model, 7, train_file=path, **flags)
    return made[1], made[0]


def test_lines_are_joined_and_cut_into_blocks(small, tmp_path) -> None:
    texts = ["", *lines(30), "   ", *lines(5, 1)]
    tokenizer, data = prepare(small, tmp_path, texts, max_seq_length=16)
    found = unmasked(data.train)
    assert [len(block) for block in found[:-1]] == [16] * (len(found) - 1)
    assert 0 < len(found[-1]) <= 16
    words = " ".join(f"[CLS] {text} [SEP]" for text in texts if text.strip()).split()
    assert tokenizer.convert_ids_to_tokens(sum(found, [])) == words


def test_or_each_line_is_a_sample(small, tmp_path) -> None:
    texts = ["", *lines(8), "  "]
    flags = {"max_seq_length": 9, "line_by_line": True}
    tokenizer, data = prepare(small, tmp_path, texts, **flags)
    found = [tokenizer.decode(ids[1:-1]) for ids in unmasked(data.train)]
    assert found == [" ".join(text.split()[:7]) for text in texts if text.strip()]
    batch = data.collate([data.train[0], data.train[1]])
    assert set(batch) >= {"input_ids", "attention_mask", "labels"}
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


@pytest.mark.parametrize(
    ("texts", "flags", "message"),
    [
        (["", " "], {}, "no words in its train split"),
        (["a"], {"text_column_name": "txet"}, "mean text\\?"),
        (["a"], {"max_seq_length": 0}, "not positive"),
        (["a"], {"mlm_probability": 1.5}, "mlm_probability=1.5 is outside"),
    ],
)
def test_what_does_not_fit(small, tmp_path, texts, flags, message) -> None:
    with refused(message):
        TASK.flags(**flags).check()
        prepare(small, tmp_path, texts, **flags)


def test_figures_are_over_tokens() -> None:
    sums, counts, hits = (np.array(x) for x in ([2.0, 9.0], [1, 3], [1, 0]))
    found = masked_metrics(sums, counts, hits)
    assert found == {"loss": 11 / 4, "perplexity": math.exp(11 / 4), "accuracy": 0.25}
    assert found["loss"] != (2 / 1 + 9 / 3) / 2  # the mean over samples
    assert masked_metrics(sums * 1e6, counts, hits)["perplexity"] == math.inf


def test_distillation_counts_the_masked_tokens_alone(small, tmp_path) -> None:
    _, data = prepare(small, tmp_path, lines(6), line_by_line=True)
    batch = data.collate([data.train[i] for i in range(6)])
    marks = {name: batch[name] for name in ("attention_mask", "labels")}
    width = batch["labels"].shape
    torch.manual_seed(0)
    pair = [read_outputs({"logits": torch.randn(*width, 9)}) for _ in range(2)]
    found = output_losses(*pair, 2.0, **marks)
    assert len(found.values) == int((batch["labels"] != -100).sum()) < width.numel()
    loss = token_loss({"logits": torch.randn(*width, len(tiny.SPECIAL) + 40)}, batch)
    assert loss.shape == (6,)


@pytest.fixture
def command(run_task, tmp_path):
    flags = {
        "train_file": write(tmp_path / "train.txt", lines(64)),
        "validation_file": write(tmp_path / "validation.txt", lines(24, 1)),
        "num_train_epochs": None,
        "per_device_train_batch_size": 4,
        "max_seq_length": 24,
    }
    return lambda do="", **other: run_task(TASK.name, do, **flags | other)


def test_from_text_to_a_sparse_model_that_guesses_words(small, command, tmp_path):
    out = tmp_path / "out"
    start = command("--do_eval", out="start")
    record = command("--mlm_probability 0.3", recipe=small.recipe)
    assert record["headline"] == ["perplexity", "accuracy"]
    assert record["perplexity"] < 0.7 * start["perplexity"]
    assert record["perplexity"] == math.exp(record["loss"])
    assert record["sparsity"] == 13107 / 16384 and record["pruning_events"] == 3
    # The masks are fixed by the data: another seed, batch size or process is the same.
    flags = "--do_eval --seed 9 --per_device_eval_batch_size 3 --mlm_probability 0.3"
    again = command(flags, out="a", model_name_or_path=out)
    assert again["accuracy"] == record["accuracy"]
    assert again["loss"] == pytest.approx(record["loss"], rel=1e-6)
    model, report = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with refused("nothing to predict in masked_language"):
        command("--do_predict", out="b")


SMALL_OBERT = {"num_grads": 8, "grad_batch_size": 2, "pruning_update_frequency": 1.0}
UPSTREAM = {
    "bert-base_mlm_teacher-10ep_dense0": {"num_epochs": 1.0},
    "bert-base_mlm_obert-3ep_unstructured90": SMALL_OBERT | {"lr_cycle_epochs": 1.0},
    "bert-base_mlm_gmp-star-3ep_unstructured90": {},
    "roberta-base_mlm_gmp-5ep_unstructured90": {},
    "roberta-base_mlm_distill-5ep_dense0": {},
    "roberta-base_mlm_gmp-10ep_unstructured90": {},
    "roberta-base_mlm_obert-5ep_unstructured90": SMALL_OBERT,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_recipes_run(command, repo, name) -> None:
    files = (repo / "recipes").glob("*_mlm_*.yaml")
    # Those that drop layers want more of them than there are here.
    whole = {f.stem for f in files if "LayerDropModifier" not in f.read_text()}
    assert set(UPSTREAM) == whole
    record = command(
        recipe=repo / "recipes" / f"{name}.yaml",
        recipe_args=json.dumps(UPSTREAM[name]),
        distill_teacher=None if "teacher" in name else "self",
        max_train_samples=40,
        max_eval_samples=4,
    )
    # GMP and oBERTa prune each layer alike, oBERT all of them together.
    dense = name.endswith("dense0")
    expected = 0 if dense else round(0.9 * 16384)
    if not dense and ("gmp" in name or "roberta" in name):
        expected = 8 * round(0.9 * 1024) + 4 * round(0.9 * 2048)
    assert record["sparsity"] == expected / 16384
