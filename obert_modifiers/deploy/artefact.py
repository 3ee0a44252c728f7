"""What a path holds: a run, or a file that was exported from one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.deploy.formats.format import Format
from obert_modifiers.deploy.run_folder import write_run
from obert_modifiers.deploy.weight import Weight, count_tensors
from obert_modifiers.sizes import check_there, weight_files

RUN = "run"  # a folder as ``save_pretrained`` writes it, or one of its files


@dataclass(frozen=True)
class Artefact:
    """A model on disk."""

    kind: str  # the name of its format, or ``run``
    path: Path  # what was named: a folder, or a file
    folder: Path  # where its configuration and tokenizer are, if it has them
    files: tuple[Path, ...]  # the files that hold its weights

    @property
    def is_graph(self) -> bool:
        """Whether engines read it as it is; else its weights go into the model."""
        return self.kind != RUN and FORMATS[self.kind].is_graph

    def weights(self) -> list[Weight]:
        """Count its numbers, tensor by tensor."""
        if self.kind != RUN:
            return FORMATS[self.kind].weights(self.files)
        found = []
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                found += count_tensors((name, file.get_tensor(name)) for name in names)
        return found

    def as_run(self, scratch: Path) -> Path:
        """Return a folder with it as a plain model, written to `scratch` if need be."""
        return self.folder if self.kind == RUN else restore(self.path, scratch)


def find_artefact(path: Path) -> Artefact:
    """Tell what a path holds: a folder with one model, or a file.

    Raises:
        FileNotFoundError: If there is nothing there, or no model in the folder.
        ValueError: If it is a file of another kind, or the folder has several models.
    """
    path = Path(path)
    check_there(path)
    if path.is_file():
        return _file(path)
    patterns = [one.pattern for one in FORMATS.values()]
    files = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    plain = sorted(path.glob("model*.safetensors"))
    if plain and not files:
        return Artefact(RUN, path, path, tuple(weight_files(path)))
    if len(files) == 1 and not plain:
        found = _file(files[0])
        return Artefact(found.kind, path, path, found.files)
    if not files:
        raise FileNotFoundError(
            f"model={path} holds no model; expected model.safetensors, or what `obert "
            "export` writes; check the path"
        )
    names = ", ".join(one.name for one in (*plain, *files))
    raise ValueError(
        f"model={path} holds several models: {names}; expected one; name the file"
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Name paths by their last parts, by as many as tell them apart.

    The same path may be there twice, and has one name.
    """
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts)):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
        depth += 1
    return ["/".join(own[-depth:]) for own in parts]


def restore(path: Path, out: Path) -> Path:
    """Write packed or 2:4 weights as a plain model's folder again.

    Args:
        path: The folder that ``obert export`` wrote, or the file in it.
        out: The folder that is written.

    Returns:
        That folder; ``from_pretrained`` loads it.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If it is of another format, damaged, foreign, or of a newer version.
    """
    artefact = find_artefact(path)
    if artefact.kind == RUN or artefact.is_graph:
        known = ", ".join(name for name, one in FORMATS.items() if not one.is_graph)
        raise ValueError(
            f"model={path} is of the format {artefact.kind}; expected one of {known}; "
            "name a folder of theirs"
        )
    tensors = FORMATS[artefact.kind].load(artefact.files[0])
    return write_run(tensors, artefact.folder, Path(out))


def _file(path: Path) -> Artefact:
    chosen: Format | None = next(
        (one for one in FORMATS.values() if one.recognises(path)), None
    )
    if chosen is not None:
        return Artefact(chosen.name, path, path.parent, chosen.files(path))
    if path.suffix == ".safetensors":
        return Artefact(RUN, path, path.parent, (path,))
    raise ValueError(
        f"model={path} is no model that is known here; expected a folder, or a file "
        "that ends in .onnx, .xml or .safetensors; name one"
    )
