"""Hand a run's folder on to the Hugging Face hub; never its token.

The hub is the one of HF_ENDPOINT, the token that of HF_TOKEN or `hf auth login`:
huggingface_hub finds both. A token is no flag, as a command line is kept in files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What stays here: what a run can go on from, what was predicted, and what names the
# data's files and this machine; the card has its figures. `*` takes in folders.
STAYS = [
    *("checkpoint-*", "tensorboard/*", "*.part", "*.jsonl", "*metrics.json"),
    *("*predictions*.*", "*null_odds.json", "*report.html", "*report.png"),
]


def check_ready(name: str) -> None:
    """Check what can be checked without the hub, before anything slow happens."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"--hub_model_id={name} is no repository's name; expected NAME or "
            "OWNER/NAME, of letters, digits, '-', '_' and '.'; choose such a name"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            "--push_to_hub needs the hub, and HF_HUB_OFFLINE keeps it away; expected a "
            "network; unset HF_HUB_OFFLINE, or leave --push_to_hub out"
        )
    if not get_token():
        raise ValueError(
            "--push_to_hub has no token; expected one that may write; run `hf auth "
            "login`, or set HF_TOKEN"
        )


def open_repository(name: str, private: bool) -> str:
    """Make a model repository, or find that it is there; return OWNER/NAME."""
    from huggingface_hub import HfApi

    wanted = private or None  # else as its owner's are
    with _asking("take", name):
        return HfApi().create_repo(name, private=wanted, exist_ok=True).repo_id


def push(folder: Path, repository: str) -> str:
    """Upload a run's folder, without what stays here; return the page's address."""
    from huggingface_hub import HfApi, constants

    with _asking("get all of", repository):
        HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Model and card, written by obert_modifiers",
            ignore_patterns=list(STAYS),
        )
    return f"{constants.ENDPOINT}/{repository}"


@contextmanager
def _asking(verb: str, repository: str) -> Iterator[None]:
    """Turn what the hub or the network answers into one message without the token."""
    from huggingface_hub import constants, get_token

    try:
        yield
    except Exception as error:  # the hub's, those of the HTTP library, or the system's
        said = str(error).replace(get_token() or "\n", "TOKEN")
        said = " ".join(said.split())[:300] or type(error).__name__
        raise ValueError(
            f"hub={constants.ENDPOINT} did not {verb} {repository} ({said}); expected "
            "a token that may write to it, and a network; nothing here is lost: `obert "
            "card RUN --push_to_hub` tries again"
        ) from None  # a traceback would show what was answered
