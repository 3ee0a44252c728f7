"""Folders of sentence-transformers: pooling, the longest text, prompts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obert_modifiers.core.embedding import MODES, Embeds, Pooling, embed_

MODULES = "modules.json"
_ABOUT, _TEXTS = "config_sentence_transformers.json", "sentence_bert_config.json"
_KNOWN = ("Transformer", "Pooling", "Normalize")
# How older releases name the modes.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceFolder:
    """What a folder says of the embeddings of its encoder."""

    embeds: Embeds
    max_length: int | None = None  # tokens of a text
    lower: bool = False  # whether texts are lower-cased before they are tokenized
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  # the name of one
    given: bool = True  # False where mean pooling is our choice

    def prompt(self, *names: str) -> str:
        """Return the first prompt of these names, else the default one, or none."""
        chosen = next((name for name in names if name in self.prompts), None)
        return self.prompts.get(chosen or self.default_prompt or "", "")


def is_sentence_folder(folder: Path) -> bool:
    """Tell a folder that says how its tokens are pooled."""
    return (folder / MODULES).is_file()


def module_files(folder: Path) -> list[str]:
    """Name the files of a folder that tell sentence-transformers what to do."""
    if not is_sentence_folder(folder):
        return []
    names = [MODULES, _ABOUT, _TEXTS]
    paths = [module["path"] for module in _json(folder / MODULES) if module["path"]]
    names += [f"{path}/{one.name}" for path in paths for one in _files(folder / path)]
    return [name for name in names if (folder / name).is_file()]


def read_folder(folder: Path, width: int) -> SentenceFolder:
    """Read a folder, or choose mean pooling and unit length where it says nothing.

    Args:
        folder: Of ``config.json``.
        width: Of the hidden states, which a new description of pooling names.

    Returns:
        What it says.

    Raises:
        ValueError: If it has modules or pooling that are not computed here.
    """
    if not is_sentence_folder(folder):
        pooling = Pooling()
        return SentenceFolder(Embeds(pooling, _described(pooling, width)), given=False)
    modules = _json(folder / MODULES)
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if tuple(kinds) not in (_KNOWN, _KNOWN[:2]):
        raise ValueError(
            f"{folder / MODULES} lists {', '.join(kinds)}; expected "
            f"{', '.join(_KNOWN)}, the last one if need be; take another model"
        )
    about = _json(folder / _ABOUT) if (folder / _ABOUT).is_file() else {}
    texts = _json(folder / _TEXTS) if (folder / _TEXTS).is_file() else {}
    where = folder / modules[1]["path"] / "config.json"
    prompts = {k: v for k, v in (about.get("prompts") or {}).items() if v}
    pooling = Pooling(_modes(where, bool(prompts)), unit="Normalize" in kinds)
    files = {name: (folder / name).read_bytes() for name in module_files(folder)}
    return SentenceFolder(
        Embeds(pooling, files),
        texts.get("max_seq_length"),
        bool(texts.get("do_lower_case")),
        prompts,
        about.get("default_prompt_name"),
    )


def embed_as_saved_(model: Any, folder: Path) -> None:
    """Let a loaded encoder of transformers embed sentences, if its folder says how."""
    if is_sentence_folder(folder):
        embed_(model, read_folder(folder, model.config.hidden_size).embeds)


def _modes(path: Path, prompts: bool) -> tuple[str, ...]:
    config = _json(path)
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = (named,) if isinstance(named, str) else tuple(named)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise ValueError(
            f"{path} pools by {', '.join(unknown)}; expected {', '.join(MODES)}; take "
            "another model"
        )
    if prompts and not config.get("include_prompt", True):
        raise ValueError(
            f"{path} has include_prompt=False; expected prompts that are pooled like "
            "other text; take another model"
        )
    return modes


def _described(pooling: Pooling, width: int) -> dict[str, bytes]:
    kinds = _KNOWN if pooling.unit else _KNOWN[:2]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    pooled: dict[str, Any] = {"word_embedding_dimension": width}
    pooled |= {flag: _FLAGS[flag] in pooling.modes for flag in list(_FLAGS)[:4]}
    written = {MODULES: modules, "1_Pooling/config.json": pooled}
    if pooling.unit:
        written["2_Normalize/config.json"] = {}
    return {
        name: (json.dumps(value, indent=2) + "\n").encode()
        for name, value in written.items()
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected JSON as sentence-transformers "
            "writes it; save the model again"
        ) from error


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.is_file()]
