"""The whole engine against PyTorch's fake quantization."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Timer

import numpy as np
import pytest
import torch

from obert_modifiers.deploy.checks import FEW_STEPS, SAME
from obert_modifiers.runtime import SparseEncoder, file, group, jit, prepared, team
from obert_modifiers.runtime.meeting import came
from obert_modifiers.runtime.paths import PATHS, available
from tests.runtime.models import (
    CLASSES,
    SCHEMES,
    VOCAB,
    batch,
    make,
    prune_,
    quantized_,
    write,
)

LENGTHS = [9, 41, 3, 30, 1, 25]
MEDIAN = 1e-2  # of the largest output: one step of 8 bits somewhere moves as much


def farthest(found, expected, mask) -> tuple[float, float]:
    """Return the largest distance and the median one, of the largest output."""
    if expected.shape[: mask.ndim] == mask.shape:
        expected, found = expected[mask], found[mask]
    away = np.abs(found - expected) / np.abs(expected).max()
    return float(away.max()), float(np.median(away))


@torch.no_grad()
def references(model, given) -> list[dict[str, np.ndarray]]:
    found = [model(**given), model.double()(**given)]
    model.float()
    return [{k: v.float().numpy() for k, v in one.items()} for one in found]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("family", "head"), CLASSES.values(), ids=CLASSES)
def test_outputs_are_those_of_pytorch(family, head, scheme, tmp_path) -> None:
    if family == "XLMRoberta" and scheme != "int8":
        pytest.skip("RoBERTa's code under another name")
    model = make(family, head, **({"num_labels": 2} if "Question" in head else {}))
    prune_(model, 1 if scheme == "float" else 4)
    given = batch(LENGTHS, types=family in ("Bert", "Electra"))
    quantized_(model, SCHEMES[scheme], given)
    encoder = SparseEncoder.load(write(model, tmp_path / "model.safetensors"))
    found = encoder(**{name: one.numpy() for name, one in given.items()})
    expected = references(model, given)
    assert found.keys() == expected[0].keys()
    mask = given["attention_mask"].numpy().astype(bool)
    for name, array in found.items():
        assert array.dtype == np.float32 and array is getattr(found, name)
        near = [farthest(array, one[name], mask) for one in expected]
        most, median = min(near)
        assert most <= (SAME if scheme == "float" else FEW_STEPS), name
        assert median <= (SAME if scheme == "float" else MEDIAN), name


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("Bert", "ForMaskedLM"),
        ("DistilBert", "ForMaskedLM"),
        ("Roberta", "ForMaskedLM"),
        ("Electra", "ForMaskedLM"),
        ("Electra", "ForSequenceClassification"),
    ],
)
def test_heads_have_activations_of_their_own(family, head, tmp_path) -> None:
    key = "activation" if family == "DistilBert" else "hidden_act"
    model = make(family, head, **{key: "relu"})
    given = batch([9, 5], types=False)
    encoder = SparseEncoder.load(write(model, tmp_path / "model.safetensors"))
    found = encoder(**{name: one.numpy() for name, one in given.items()}).logits
    mask = given["attention_mask"].numpy().astype(bool)
    assert farthest(found, references(model, given)[0]["logits"], mask)[0] <= SAME


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    torch.manual_seed(0)
    model = make("Bert", "ForTokenClassification", hidden_size=64)
    prune_(model, 4)
    given = batch([40, 17])
    quantized_(model, SCHEMES["int8 attention"], given)
    return write(model, tmp_path_factory.mktemp("model") / file.FILE_NAME)


@pytest.fixture(scope="module")
def given():
    torch.manual_seed(1)
    return {name: one.numpy() for name, one in batch([7, 70, 33, 1, 64, 12]).items()}


def test_paths_threads_and_tiles_give_the_same_bits(quantized, given, monkeypatch):
    expected = None
    for name in available():
        for registers in (1, PATHS[name].registers):
            monkeypatch.setattr(
                prepared.Prepared, "registers_for", lambda *_, n=registers: n
            )
            for threads in (1, 2, 3, 7):
                encoder = SparseEncoder.load(quantized, cpu_path=name, threads=threads)
                found = encoder(**given).logits
                expected = found if expected is None else expected
                np.testing.assert_array_equal(found, expected)


@pytest.fixture
def shared(monkeypatch):
    """Let any sentence be worth sharing; how many took part, and whether all came."""
    monkeypatch.setattr(prepared.Prepared, "layer_seconds", lambda *_: 1.0)
    monkeypatch.setattr(team, "cores", lambda: 64)
    runs = []
    run = team.Team.run

    def counted(self, library, parts, control):
        run(self, library, parts, control)
        runs.append((len(parts), came(int(control[0, 0]))))

    monkeypatch.setattr(team.Team, "run", counted)
    return runs


def one_sentence(length: int = 75) -> np.ndarray:
    return np.random.default_rng(0).integers(5, VOCAB, (1, length))


@pytest.mark.parametrize("registers", [1, 2, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_sentence_is_shared_by_threads(
    scheme, registers, shared, monkeypatch, tmp_path
):
    """Over tiles where there are enough of them, else over rows and heads."""
    monkeypatch.setattr(prepared.Prepared, "registers_for", lambda *_: registers)
    torch.manual_seed(0)
    model = make("Electra", "ForTokenClassification")  # with a layer for embeddings
    prune_(model, 1 if scheme == "float" else 4)
    quantized_(model, SCHEMES[scheme], batch([40, 17], types=False))
    path = write(model, tmp_path / file.FILE_NAME)
    ids = one_sentence()
    alone = SparseEncoder.load(path, threads=1)(ids).logits
    assert not shared
    for threads in (2, 3, 5):
        found = SparseEncoder.load(path, threads=threads)(ids).logits
        np.testing.assert_array_equal(found, alone)
    assert [count for count, _ in shared] == [2, 3, 5]  # they meet once in Python


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM"])
def test_heads_of_a_shared_sentence(head, shared, monkeypatch, tmp_path):
    monkeypatch.setattr(group, "_WORTH_DIVIDING", 0.0)
    model = make("Bert", head)
    path = write(model, tmp_path / file.FILE_NAME)
    alone = SparseEncoder.load(path, threads=1)(one_sentence()).logits
    found = SparseEncoder.load(path, threads=3)(one_sentence()).logits
    np.testing.assert_array_equal(found, alone)
    assert shared


def test_more_threads_than_cores(quantized, shared):
    expected = SparseEncoder.load(quantized, threads=1)(one_sentence()).logits
    encoder = SparseEncoder.load(quantized, threads=16)
    for _ in range(30):
        np.testing.assert_array_equal(encoder(one_sentence()).logits, expected)
    assert {count for count, _ in shared} == {16}
    assert any(all_came for _, all_came in shared)


def test_sentences_of_several_callers(quantized, shared):
    """Those for whom no thread is left run alone."""
    encoder = SparseEncoder.load(quantized, threads=3)
    inputs = [one_sentence(length) for length in (75, 20, 33, 1, 64, 50)]
    alone = SparseEncoder.load(quantized, threads=1)
    expected = [alone(ids).logits for ids in inputs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(10):
            found = pool.map(lambda ids: encoder(ids).logits, inputs)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    assert encoder._team._busy == 0
    assert len(shared) < 60


def test_a_thread_that_stays_away_is_not_waited_for(quantized, shared):
    expected = SparseEncoder.load(quantized, threads=1)(one_sentence()).logits
    encoder = SparseEncoder.load(quantized, threads=3)
    release = Event()
    held = [encoder._team._sharing.submit(release.wait) for _ in range(2)]
    np.testing.assert_array_equal(encoder(one_sentence()).logits, expected)
    assert shared == [(3, False)]
    release.set()
    assert all(one.result() for one in held)
    np.testing.assert_array_equal(encoder(one_sentence()).logits, expected)


def test_a_caller_that_is_interrupted_leaves_nobody_waiting(
    quantized, shared, monkeypatch
):
    encoder = SparseEncoder.load(quantized, threads=3)
    expected = encoder(one_sentence()).logits
    run = jit.Library.run

    def interrupted(self, records, kind="sequence", *others):
        if kind == "lead":
            raise KeyboardInterrupt
        run(self, records, kind, *others)

    with monkeypatch.context() as patch:
        patch.setattr(jit.Library, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoder(one_sentence())
    encoder._team._sharing.shutdown()  # returns: those who came have left
    assert encoder._team._busy == 0
    np.testing.assert_array_equal(encoder(one_sentence()).logits, expected)
    assert shared[-1] == (3, False)  # there are no threads to be had any more


def test_one_core_is_never_shared(quantized, shared, monkeypatch):
    monkeypatch.setattr(team, "cores", lambda: 1)
    SparseEncoder.load(quantized, threads=5)(one_sentence())
    assert not shared


def test_a_short_sentence_is_not_worth_sharing(quantized, shared, monkeypatch):
    monkeypatch.setattr(prepared.Prepared, "layer_seconds", lambda *_: 1e-5)
    SparseEncoder.load(quantized, threads=5)(one_sentence())
    assert not shared


@pytest.mark.parametrize("single", [False, True])
def test_a_forked_process_has_threads_of_its_own(quantized, given, shared, single):
    given = {"input_ids": one_sentence()} if single else given
    encoder = SparseEncoder.load(quantized, threads=2)
    expected = encoder(**given).logits
    encoder._team._busy = 2  # as in the midst of another thread's call
    child = os.fork()
    if child == 0:
        shared.clear()
        same = np.array_equal(encoder(**given).logits, expected)
        os._exit(0 if same and bool(shared) == single else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_what_another_thread_does(quantized):
    encoder = SparseEncoder.load(quantized, threads=1)
    parts = encoder, encoder._prepared, encoder._store
    for lock in (*(part._lock for part in parts), jit._LOCK):
        lock.acquire()
        timer = Timer(0.2, lock.release)
        timer.start()
        child = os.fork()
        if child == 0:
            os._exit(not lock.acquire(timeout=5))
        assert os.waitpid(child, 0)[1] == 0
        timer.join()
        assert not lock.locked()


def test_what_cannot_be_kept_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(jit.os, "replace", full)
    jit._keep(tmp_path / "cache" / "a.o", b"a kernel")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_sentence_does_not_depend_on_its_neighbours(quantized, given):
    encoder = SparseEncoder.load(quantized)
    whole = encoder(**given).logits
    for row, length in enumerate(given["attention_mask"].sum(1)):
        one = {name: array[row : row + 1, :length] for name, array in given.items()}
        found = encoder(**one).logits
        np.testing.assert_array_equal(found[0], whole[row, :length])
        assert not whole[row, length:].any()


def test_masked_tokens_are_not_attended_to(tmp_path):
    model = make("Bert", "Model")
    prune_(model, 4)
    given = batch([12, 12, 9])
    given["attention_mask"][:, [2, 5]] = 0
    given["attention_mask"][1, 0] = 0
    encoder = SparseEncoder.load(write(model, tmp_path / "model.safetensors"))
    found = encoder(**{name: one.numpy() for name, one in given.items()})
    expected = references(model, given)[0]["last_hidden_state"]
    reached = np.arange(12) < np.array([12, 12, 9])[:, None]
    most, _ = farthest(found.last_hidden_state, expected, reached)
    assert most <= SAME


def test_several_threads_at_once(quantized, given):
    encoder = SparseEncoder.load(quantized, threads=2)
    expected = encoder(**given).logits
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(lambda: encoder(**given).logits) for _ in range(24)]
        for future in futures:
            np.testing.assert_array_equal(future.result(), expected)


def test_empty_batches(quantized):
    found = SparseEncoder.load(quantized)(np.zeros((0, 5), int))
    assert found.logits.shape == (0, 5, 3)


def changed(given, **changes) -> dict:
    return {name: changes.get(name, array) for name, array in given.items()}


def wrong_inputs(given):
    ids, mask = given["input_ids"], given["attention_mask"]
    huge, negative, nothing = ids.copy(), ids.copy(), mask.copy()
    huge[0, 0], negative[0, 0], nothing[2] = VOCAB, -1, 0
    return {
        "an id beyond the vocabulary": (changed(given, input_ids=huge), "input_ids"),
        "a negative id": (changed(given, input_ids=negative), "input_ids"),
        "a type beyond": (
            changed(given, token_type_ids=np.full_like(ids, 2)),
            "token_type_ids",
        ),
        "types that are no numbers": (
            changed(given, token_type_ids=np.full(ids.shape, np.nan)),
            "token_type_ids.*float64",
        ),
        "another shape": (changed(given, attention_mask=mask[:1]), "attention_mask"),
        "nothing to attend to": (changed(given, attention_mask=nothing), "row 2"),
        "floats": (changed(given, input_ids=ids.astype(float)), "dtype float64"),
        "one dimension": ({"input_ids": ids[0]}, "shape"),
        "too long": ({"input_ids": np.full((1, 81), 5)}, "81 tokens.*80"),
    }


@pytest.mark.parametrize("case", range(9))
def test_wrong_inputs_are_refused(quantized, given, case):
    cases = wrong_inputs(given)
    assert len(cases) == 9
    inputs, said = list(cases.values())[case]
    with pytest.raises(ValueError, match=said):
        SparseEncoder.load(quantized)(**inputs)


def test_padding_beyond_the_positions_is_no_fault(quantized):
    ids = np.full((1, 100), 5)
    mask = (np.arange(100) < 20)[None].astype(int)
    encoder = SparseEncoder.load(quantized)
    found = encoder(ids, mask).logits
    np.testing.assert_array_equal(found[:, :20], encoder(ids[:, :20]).logits)


def test_too_little_memory_is_said(quantized, given, monkeypatch):
    encoder = SparseEncoder.load(quantized)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(encoder._store, "take", full)
    with pytest.raises(MemoryError, match="6 x 70 tokens"):
        encoder(**given)


@pytest.mark.parametrize("options", [{"threads": 0}, {"cpu_path": "avx9"}])
def test_wrong_options_are_refused(quantized, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SparseEncoder.load(quantized, **options)


ALONE = """
import sys
for name in ("torch", "transformers", "sparseml", "onnx", "numba", "accelerate"):
    sys.modules[name] = None
import numpy as np
from obert_modifiers.runtime import SparseEncoder
encoder = SparseEncoder.load(sys.argv[1], threads=1)
print(encoder(np.arange(5, 25)[None]).logits.shape)
"""


def test_it_needs_neither_torch_nor_transformers(quantized):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(quantized)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(1, 20, 3)"


def test_kernels_are_compiled_once(quantized, tmp_path, monkeypatch, given):
    monkeypatch.setenv(jit.CACHE_VARIABLE, str(tmp_path))
    told = []
    first = SparseEncoder.load(quantized, tell=told.append)
    assert len(told) == 1 and "compiling" in told[0]
    kept = sorted(tmp_path.iterdir())
    assert kept
    SparseEncoder.load(quantized, tell=told.append)
    assert len(told) == 1
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # as a full disk leaves it
    again = SparseEncoder.load(quantized, tell=told.append)
    assert len(told) == 2
    np.testing.assert_array_equal(again(**given).logits, first(**given).logits)
    told.clear()
    monkeypatch.setenv(jit.CACHE_VARIABLE, "/dev/null/none")
    SparseEncoder.load(quantized, tell=told.append)
    assert len(told) == 1


def test_a_change_of_a_source_file_is_another_kernel(monkeypatch, tmp_path):
    before = jit._sources()
    changed_file = tmp_path / "kernels.py"
    changed_file.write_text("# another")
    monkeypatch.setattr(jit.kernels, "__file__", str(changed_file))
    assert jit._sources.__wrapped__() != before


def test_texts_are_tokenized(tmp_path):
    from tests import tiny

    run = tiny.save_model(tmp_path)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(run).eval()
    write(model, tmp_path / file.FILE_NAME)
    encoder = SparseEncoder.load(tmp_path)
    texts = [row["sentence"] for row in tiny.sentences(6)]
    pairs = list(zip(texts, reversed(texts), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(run)
    for some in (texts, pairs):
        given = tokenizer(
            some, padding=True, truncation=True, max_length=9, return_tensors="pt"
        )
        with torch.no_grad():
            expected = model(**given).logits.numpy()
        np.testing.assert_allclose(
            encoder.texts(some, max_length=9).logits, expected, atol=1e-4
        )
    assert encoder.texts([]).logits.shape == (0, 2)
    with pytest.raises(ValueError, match="texts="):
        encoder.texts([3])
    with pytest.raises(ValueError, match="texts=.*one text"):
        encoder.texts("abc")
    with pytest.raises(ValueError, match="max_length=0 leaves nothing"):
        encoder.texts(texts, max_length=0)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        SparseEncoder.load(tmp_path).texts(texts)


def test_tiles_are_as_wide_as_the_tokens_need(quantized):
    encoder = SparseEncoder.load(quantized, cpu_path=available()[0])
    lanes, most = encoder.path.lanes, encoder.path.registers
    choose = encoder._prepared.registers_for
    assert choose(lanes) == 1 and choose(lanes * most) == most
    assert choose(100 * lanes * most) == most
    assert replace(encoder.path, registers=2).tokens == 2 * lanes
    encoder._prepared.path = PATHS["avx512vnni"]
    assert choose(128, 2) == 4  # a tile for each thread
    assert choose(40, 2) == choose(64, 4) == 4  # rows: narrow tiles take too long


def test_threads_are_the_cores_that_the_process_may_use(quantized, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert SparseEncoder.load(quantized).threads == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert SparseEncoder.load(quantized).threads == 5
