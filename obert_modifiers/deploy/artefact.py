"""What a path holds: a run, or a file that was exported from one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.deploy.run_folder import load_weights, write_run
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
        tensors = (pair for path in self.files for pair in load_weights(path).items())
        return count_tensors(tensors)

    def as_run(self, scratch: Path) -> Path:
        """Return a folder with it as a plain model, written to `scratch` if need be."""
        if self.kind != RUN:
            return restore(self.path, scratch)
        there = weight_files(self.folder)
        if {*self.files} != {*there}:
            raise ValueError(
                f"model={self.path} is not what its folder's model is loaded from, "
                f"{', '.join(one.name for one in there)}; expected that; name the "
                f"folder, or move the file to one of its own as {there[0].name}"
            )
        return self.folder


def find_artefact(path: Path) -> Artefact:
    """Tell what a path holds: a folder with one model, or a file."""
    path = Path(path)
    check_there(path)
    if path.is_file():
        return _file(path)
    plain = sorted(path.glob("model*.safetensors"))
    patterns = [form.pattern for form in FORMATS.values()]
    files = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    if plain and not files:
        return Artefact(RUN, path, path, tuple(weight_files(path)))
    if len(files) == 1 and not plain:
        return replace(_file(files[0]), path=path, folder=path)
    if not files:
        raise FileNotFoundError(
            f"model={path} holds no model; expected model.safetensors, or what `obert "
            "export` writes; check the path"
        )
    names = ", ".join(file.name for file in (*plain, *files))
    raise ValueError(
        f"model={path} holds several models: {names}; expected one; name the file"
    )


def _file(path: Path) -> Artefact:
    for form in FORMATS.values():
        if form.recognises(path):
            return Artefact(form.name, path, path.parent, form.files(path))
    if path.suffix == ".safetensors":
        return Artefact(RUN, path, path.parent, (path,))
    raise ValueError(
        f"model={path} is no model that is known here; expected a folder, or a file "
        "that ends in .onnx, .xml or .safetensors; name one"
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Name paths by as many of their last parts as tell them apart.

    The same path may be there twice, and has one name.
    """
    parts = [path.resolve().parts for path in paths]
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def restore(path: Path, out: Path) -> Path:
    """Write packed or 2:4 weights as a plain model's folder, and return that.

    `path` is the folder that ``obert export`` wrote, or the file in it.
    """
    artefact = find_artefact(path)
    if artefact.kind == RUN or artefact.is_graph:
        known = ", ".join(name for name, form in FORMATS.items() if not form.is_graph)
        raise ValueError(
            f"model={path} is of the format {artefact.kind}; expected one of {known}; "
            "name a folder of theirs"
        )
    tensors = FORMATS[artefact.kind].load(artefact.files[0])
    return write_run(tensors, artefact.folder, Path(out))
