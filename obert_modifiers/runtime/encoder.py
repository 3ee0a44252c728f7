"""A sparse encoder that runs: token ids in, what its Hugging Face model returns out."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from obert_modifiers.runtime import model, paths
from obert_modifiers.runtime.forking import fork_safe_lock
from obert_modifiers.runtime.group import Group
from obert_modifiers.runtime.jit import YIELD
from obert_modifiers.runtime.memory import Memory, Store
from obert_modifiers.runtime.model import Model, Output
from obert_modifiers.runtime.packing import Packing, divide, pack, uneven
from obert_modifiers.runtime.prepared import Prepared
from obert_modifiers.runtime.team import Team, cores

logger = logging.getLogger(__name__)

_GROUP_TOKENS = 2048  # computed at a time by a thread: what bounds its memory
_WORTH = 1e-4  # seconds of a layer that a thread of several should have
_MEETING = 5e-4  # seconds that sharing should save: half of it, threads are waited for


class Outputs(dict[str, np.ndarray]):
    """Arrays by name, and as attributes."""

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class SparseEncoder:
    """An encoder of the BERT family on a CPU, made by `obert export --format sparse`.

    Safe for use from several threads. A token's outputs do not depend on the other
    sentences of the batch, on padding, or on the number of threads: the bits are the
    same.

    Args:
        loaded: What the file holds.
        folder: Of the tokenizer; None for a model without.
        threads: How many are used; None for all cores that the process may use.
        cpu_path: Which instructions, a name of `runtime.paths.PATHS`; None for the
            fastest here.
        tell: Called with a line where something takes a while.
    """

    def __init__(
        self,
        loaded: Model,
        folder: Path | None = None,
        *,
        threads: int | None = None,
        cpu_path: str | None = None,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads} is too few; expected 1 or more")
        self.threads = threads or cores()
        self.path = paths.choose(cpu_path)
        self.about = loaded.about
        self._model, self._folder = loaded, folder
        self._prepared = Prepared(loaded, self.path, tell)
        self._store = Store(16 * self.threads)
        self._lock = fork_safe_lock()
        self._team = Team(self.threads)
        self._tokenizer: Any = None

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> "SparseEncoder":
        """Load a file, or the folder that `obert export --format sparse` wrote.

        Args:
            path: Of either.
            options: Of the class: ``threads``, ``cpu_path``, ``tell``.

        Returns:
            The encoder, ready to run.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, of another version, or an option is wrong.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        return cls(model.read(path), folder, **options)

    @property
    def size_bytes(self) -> int:
        """Bytes of weights in memory, as this CPU multiplies them."""
        return self._prepared.size_bytes

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What it computes."""
        return self._model.outputs

    def width(self, name: str) -> int:
        """Say how many features an output has."""
        output = next(one for one in self._model.outputs if name in one.names)
        return self._width(output) if len(output.names) == 1 else 1

    @property
    def max_length(self) -> int:
        """The most tokens of a sentence."""
        return self.about["positions"] - self.about["position_offset"]

    # -- running

    def __call__(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None
    ) -> Outputs:
        """Compute the model's outputs.

        Args:
            input_ids: ``(batch, length)`` integers.
            attention_mask: ``(batch, length)``, 1 for tokens that are attended to;
                None for all. What follows the last of them in a row is not computed.
            token_type_ids: ``(batch, length)``; None for zeros.

        Returns:
            float32 arrays by the names that the Hugging Face model uses; zero for
            tokens that are not computed.

        Raises:
            ValueError: If shapes differ, an id is not in the vocabulary, a sentence is
                longer than the model's positions, or nothing in it is attended to.
            MemoryError: If there is too little memory.
        """
        ids, mask, types = self._checked(input_ids, attention_mask, token_type_ids)
        given = (ids, types, self._positions(ids))
        found = [self._empty(output, *ids.shape) for output in self._model.outputs]
        team = self._threads()

        def run(rows: np.ndarray, threads: int = 1) -> None:
            lengths = _lengths(mask[rows])
            registers = self._prepared.registers_for(int(lengths.sum()), threads)
            packing = pack(rows, mask, self.path.lanes * registers)
            inputs = [np.zeros(len(packing.own), np.int32) for _ in given]
            for array, values in zip(inputs, given, strict=True):
                array[packing.slots] = np.concatenate([
                    values[row, :n] for row, n in zip(rows, lengths, strict=True)
                ])
            with Memory(self._store) as memory:
                group = Group(self._prepared, packing, registers, memory, team, threads)
                group.encode(inputs)
                for output, array in zip(self._model.outputs, found, strict=True):
                    features = _ended(group.output(output), packing, mask, output)
                    _put(array, features, packing, output.of_sentence)

        groups, wanted = self._groups(mask)
        try:
            with team.some(max(wanted, min(len(groups), self.threads))) as threads:
                if wanted > 1:
                    for rows in groups:
                        run(rows, threads)
                else:
                    team.each(run, groups)
        except MemoryError as error:
            raise MemoryError(
                f"a batch of {ids.shape[0]} x {ids.shape[1]} tokens does not fit into "
                "memory; expected less; give fewer sentences at a time"
            ) from error
        outputs = Outputs()
        for output, array in zip(self._model.outputs, found, strict=True):
            if len(output.names) == 1:
                outputs[output.names[0]] = array
            else:
                outputs |= {
                    name: np.ascontiguousarray(array[..., i])
                    for i, name in enumerate(output.names)
                }
        return outputs

    def texts(
        self, texts: Sequence[str | tuple[str, str]], max_length: int | None = None
    ) -> Outputs:
        """Tokenize sentences, or pairs of them, and compute the outputs.

        An embedder gets texts as sentence-transformers gives them to it: after its
        default prompt, in lower case if it says so, and cut at its length.

        Args:
            texts: The sentences.
            max_length: Tokens after which one is cut; None for the model's own.

        Returns:
            As from a call.

        Raises:
            ValueError: If the model has no tokenizer, a text is not a string, or
                `max_length` is less than 1.
        """
        if isinstance(texts, str):  # whose letters are texts, too
            raise ValueError(
                f"texts={texts[:80]!r} is one text; expected a list of them; put it in "
                "brackets"
            )
        if max_length is not None and max_length < 1:
            raise ValueError(
                f"max_length={max_length} leaves nothing of a text; expected 1 or more;"
                " leave it out for the model's most"
            )
        tokenizer, told = self.tokenizer, self._model.texts
        wanted = max_length or told["length"] or self.max_length
        length = min(wanted, self.max_length)
        with self._lock:  # its settings are its own
            tokenizer.enable_truncation(length)
            tokenizer.no_padding()
            try:
                encoded = tokenizer.encode_batch([self._given(one) for one in texts])
            except TypeError as error:
                raise ValueError(
                    f"texts={str(texts)[:80]} are not texts; expected strings or pairs "
                    "of them"
                ) from error
        width = max((len(one) for one in encoded), default=0)
        ids, mask, types = (np.zeros((len(encoded), width), np.int64) for _ in range(3))
        ids += self.about["pad"]
        for row, one in enumerate(encoded):
            ids[row, : len(one)] = one.ids
            mask[row, : len(one)] = 1
            types[row, : len(one)] = one.type_ids
        return self(ids, mask, types if self.about["types"] > 1 else None)

    def _given(self, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        told = self._model.texts
        text = (told["prompt"] or "") + text
        return text.lower() if told["lower"] else text

    @property
    def tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer`` beside the model."""
        with self._lock:
            if self._tokenizer is None:
                from tokenizers import Tokenizer

                path = (self._folder or Path()) / "tokenizer.json"
                if self._folder is None or not path.is_file():
                    raise ValueError(
                        f"tokenizer={path} is not there; expected the folder that "
                        "`obert export --format sparse` writes; copy the run's "
                        "tokenizer.json, or pass input_ids"
                    )
                self._tokenizer = Tokenizer.from_file(str(path))
            return self._tokenizer

    # -- what is given, and how it is divided

    def _checked(self, *given: Any) -> list[np.ndarray]:
        ids = np.asarray(given[0])
        if ids.ndim != 2 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"input_ids of shape {ids.shape} and dtype {ids.dtype} are no batch; "
                "expected integers of shape (batch, length)"
            )
        found = [ids]
        for name, one, default in (
            ("attention_mask", given[1], 1),
            ("token_type_ids", given[2], 0),
        ):
            one = np.full_like(ids, default) if one is None else np.asarray(one)
            if one.shape != ids.shape:
                raise ValueError(
                    f"{name} is of shape {one.shape}; expected that of input_ids, "
                    f"{ids.shape}"
                )
            found.append(one)
        if found[2].size and found[2].dtype.kind not in "iub":
            raise ValueError(
                f"token_type_ids are of dtype {found[2].dtype}; expected integers; "
                "leave them out for zeros"
            )
        mask = found[1].astype(bool)
        if len(ids):
            empty = np.nonzero(~mask.any(axis=1))[0]
            if len(empty):
                raise ValueError(
                    f"attention_mask attends to nothing in row {empty[0]}; expected a "
                    "token at least; leave the row out"
                )
        for name, one, size in (
            ("input_ids", ids, self.about["vocab"]),
            ("token_type_ids", found[2], max(1, self.about["types"])),
        ):
            if one.size and (one.min() < 0 or one.max() >= size):
                raise ValueError(
                    f"{name} has {one.min()} to {one.max()}; expected 0 to {size - 1}; "
                    "use the tokenizer of this model"
                )
        longest = 0
        if ids.size:
            longest = int(_lengths(mask).max())
        if longest > self.max_length:
            raise ValueError(
                f"a sentence has {longest} tokens; expected at most {self.max_length}, "
                "the model's positions; cut it"
            )
        return [ids, mask, found[2]]

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        if self.about["position_offset"]:  # RoBERTa counts from behind the padding's id
            real = ids != self.about["pad"]
            found = np.cumsum(real, axis=1) * real + self.about["pad"]
            return np.minimum(found, self.about["positions"] - 1)
        held = np.minimum(np.arange(ids.shape[1]), self.about["positions"] - 1)
        return np.broadcast_to(held, ids.shape)

    def _empty(self, output: Output, rows: int, length: int) -> np.ndarray:
        width = self._width(output)
        shape = (rows, width) if output.of_sentence else (rows, length, width)
        return np.zeros(shape, np.float32)

    def _width(self, output: Output) -> int:
        names = [name for kind, name, *_ in output.steps if kind == "linear"]
        return self._model.linears[names[-1]].rows if names else self.about["hidden"]

    def _groups(self, mask: np.ndarray) -> tuple[list[np.ndarray], int]:
        """Divide the rows; how many threads share each part."""
        if not mask.size:
            return [], 1
        lengths = _lengths(mask)
        total = int(lengths.sum())
        count = -(-total // _GROUP_TOKENS)
        count = -(-count // self.threads) * self.threads
        groups = divide(lengths, min(count, len(lengths)))
        most = max(int(lengths[rows].sum()) for rows in groups)
        if self.threads == 1 or not uneven(most, self.threads, total):
            return groups, 1
        if count > self.threads and not uneven(most, count, total):
            return groups, 1
        few = divide(lengths, -(-total // _GROUP_TOKENS))
        tokens = max(int(lengths[rows].sum()) for rows in few)
        layer = self._prepared.layer_seconds(tokens)
        useful = min(int(layer / _WORTH), self.threads)
        saved = len(self._model.layers) * layer * (1 - 1 / max(1, useful))
        if saved < _MEETING or not YIELD:
            return groups, 1
        return few, useful

    def _threads(self) -> Team:
        if self._team.process != os.getpid():
            self._team = Team(self.threads)
        return self._team


def _lengths(mask: np.ndarray) -> np.ndarray:
    """Count the tokens of each row up to the last that is attended to."""
    return mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)


def _ended(
    found: np.ndarray, packing: Packing, mask: np.ndarray, output: Output
) -> np.ndarray:
    """Take the mean of the tokens of each sentence, and give it the length 1."""
    if "mean" in output.ends:
        parts = zip(packing.rows, packing.lengths, strict=True)
        kept = np.concatenate([mask[row, :length] for row, length in parts])
        starts = np.cumsum([0, *packing.lengths[:-1]])
        counts = np.add.reduceat(kept.astype(np.float32), starts)
        found = np.add.reduceat(found * kept[:, None], starts) / counts[:, None]
    if "unit" in output.ends:
        lengths = np.sqrt(np.square(found).sum(axis=-1, keepdims=True))
        found = found / np.maximum(lengths, 1e-12)
    return found


def _put(array: np.ndarray, found: np.ndarray, packing: Packing, first: bool) -> None:
    """Write a group's output into that of the batch."""
    if first:
        array[packing.rows] = found
        return
    at = 0
    for row, length in zip(packing.rows, packing.lengths, strict=True):
        array[row, :length] = found[at : at + length]
        at += length
