"""An encoder whose folder, here or on the hub, says how sentences are embedded."""

from pathlib import Path
from typing import Any

from transformers import AutoModel
from transformers.utils.hub import cached_file

from obert_modifiers.core.embedding import embed_
from obert_modifiers.core.embedding_folder import MODULES, SentenceFolder, read_folder

_FILES = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")
_FILES += ("1_Pooling/config.json", "config.json")


class EmbeddingModel:
    """Stands where the tasks have a class of transformers."""

    @staticmethod
    def from_pretrained(name: str | Path, **options: Any) -> Any:
        """Load an encoder as ``AutoModel`` does; it returns sentence_embedding too."""
        found = AutoModel.from_pretrained(name, **options)
        model = found[0] if isinstance(found, tuple) else found
        where = {key: options.get(key) for key in ("cache_dir", "revision")}
        embed_(model, sentence_folder(name, model.config.hidden_size, **where).embeds)
        return found


def sentence_folder(
    name: str | Path,
    width: int,
    cache_dir: str | None = None,
    revision: str | None = None,
) -> SentenceFolder:
    """Read what a folder or hub id says of embeddings; see `read_folder`."""
    folder = Path(name)
    if not folder.is_dir():
        where = {"cache_dir": cache_dir, "revision": revision or "main"}
        quiet = {"_raise_exceptions_for_missing_entries": False}
        paths = [cached_file(str(name), file, **where, **quiet) for file in _FILES]
        folder = Path(paths[-1]).parent
    return read_folder(folder, width)
