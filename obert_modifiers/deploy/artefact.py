"""What a path holds: a run, or a file that was exported from one."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from obert_modifiers.deploy.formats import container, safetensors_packed, torch24
from obert_modifiers.deploy.run_folder import write_run
from obert_modifiers.sizes import check_there, weight_files

RUN, ONNX, OPENVINO = "run", "onnx", "openvino"
PACKED, TORCH24 = "safetensors", "torch24"
_KINDS = {safetensors_packed.FORMAT: PACKED, torch24.FORMAT: TORCH24}
_FILES = {safetensors_packed.FILE_NAME: PACKED, torch24.FILE_NAME: TORCH24}
# What reads the formats of ours as the weights of a plain model.
LOADERS: Mapping[str, Callable[[Path], dict[str, Tensor]]] = {
    PACKED: safetensors_packed.load_packed,
    TORCH24: torch24.load_torch24,
}


@dataclass(frozen=True)
class Artefact:
    """A model on disk.

    Attributes:
        kind: ``run`` (as ``save_pretrained`` writes it), ``onnx``, ``openvino``,
            ``safetensors`` (packed) or ``torch24``.
        path: What was named: a folder, or a file.
        folder: Where its configuration and tokenizer are, if it has them.
        files: The files that hold its weights.
    """

    kind: str
    path: Path
    folder: Path
    files: tuple[Path, ...]


def find_artefact(path: Path) -> Artefact:
    """Tell what a path holds.

    Args:
        path: A run's folder, a folder with one exported model, or an exported file.

    Returns:
        What it is and which files it has.

    Raises:
        FileNotFoundError: If there is nothing there, or no model in the folder.
        ValueError: If it is a file of another kind, or the folder has several models.
    """
    path = Path(path)
    check_there(path)
    if path.is_file():
        return _file(path)
    files = [path / name for name in _FILES if (path / name).is_file()]
    files += sorted(path.glob("*.onnx")) + sorted(path.glob("*.xml"))
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

    Args:
        paths: Files and folders; the same one may be there twice.

    Returns:
        A name for each.
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
    """  # noqa: DOC502  raised by what is called
    artefact = find_artefact(path)
    if artefact.kind not in LOADERS:
        raise ValueError(
            f"model={path} is of the format {artefact.kind}; expected one of "
            f"{', '.join(LOADERS)}; name a folder of theirs"
        )
    return write_run(LOADERS[artefact.kind](artefact.path), artefact.folder, Path(out))


def _file(path: Path) -> Artefact:
    if path.suffix == ".onnx":
        return Artefact(ONNX, path, path.parent, (path, *_external(path)))
    if path.suffix == ".xml":
        return Artefact(OPENVINO, path, path.parent, (path, _weights_of(path)))
    if path.suffix == ".safetensors":
        kind = _KINDS.get(container.kind_of(path) or "", RUN)
        # A damaged file is still what its name says, and its loader tells what is
        # wrong with it.
        kind = _FILES.get(path.name, kind)
        return Artefact(kind, path, path.parent, (path,))
    raise ValueError(
        f"model={path} is no model that is known here; expected a folder, or a file "
        "that ends in .onnx, .xml or .safetensors; name one"
    )


def _external(path: Path) -> list[Path]:
    """Find the files that an ONNX file keeps its larger weights in.

    Returns:
        Their paths, mostly none.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError):
        return []  # whoever reads it says what is wrong
    names = {
        entry.value
        for one in model.graph.initializer
        for entry in one.external_data
        if entry.key == "location"
    }
    return sorted(path.parent / name for name in names)


def _weights_of(path: Path) -> Path:
    weights = path.with_suffix(".bin")
    try:
        root = ElementTree.parse(path).getroot().tag
    except ElementTree.ParseError as error:
        raise ValueError(
            f"model={path} is no whole XML file ({error}); expected an OpenVINO IR; "
            "export it again"
        ) from error
    if root != "net" or not weights.is_file():
        what = f"has no {weights.name} beside it" if root == "net" else "has no <net>"
        raise ValueError(
            f"model={path} {what}; expected an OpenVINO IR, an .xml file and a .bin "
            "file; export it again"
        )
    return weights
