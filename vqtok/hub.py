"""Models on the Hugging Face Hub: two files down, two files up, never any code."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqtok.errors import ConfigError, InputError, OutputError, ResourceError, VqtokError, escape
from vqtok.image_tokenizer import ImageTokenizer, Precision
from vqtok.loading import is_ours, load
from vqtok.store.reading import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

# Nothing else is fetched, so nothing else can be opened: no pickles, no programs, no folders of larger models' parts.
FETCHED = ["config.json", "*.safetensors", "*.safetensors.index.json"]
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_OURS = ["config.json", "model.safetensors"]
_COMMIT = re.compile("[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder with a model, and where it came from.

    Attributes:
        folder: where it lies.
        origin: ``repo`` and ``revision`` (the commit's hash) of what came from the hub; empty for a folder.
    """

    folder: Path
    origin: Mapping[str, str]


def fetch(
    model: str | os.PathLike[str],
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Fetched:
    """Return where a model's files lie: a local folder as it is, or a repository's files, downloaded once.

    Raises:
        InputError: there is no such folder, repository or revision.
        ConfigError: a revision of a local folder, which has none.
        ResourceError: the extra ``vqtok[hub]`` is not installed.

    >>> fetch(tempfile.mkdtemp()).origin
    {}
    """
    if os.path.isdir(model):
        if revision is not None:
            raise ConfigError(f"expected a revision with a repository only, but {str(model)!r} is a folder")
        return Fetched(Path(model), {})
    if not _REPOSITORY.fullmatch(str(model)):
        raise InputError(f"{str(model)!r}: expected a folder or a repository such as 'owner/name', found no folder")
    hub = _library()
    with _hub_errors(InputError, f"{str(model)!r}"):
        place = hub.snapshot_download(
            str(model),
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=FETCHED,
            ignore_patterns=["*/*"],
            library_name="vqtok",
            library_version=version("vqtok"),
        )
    commit = Path(place).name  # of the hub's cache, snapshots/<commit>
    if not _COMMIT.fullmatch(commit):
        raise InputError(f"{str(model)!r}: expected a snapshot named by its commit, got {escape(str(place))!r}")
    return Fetched(Path(place), {"repo": str(model), "revision": commit})


def load_fetched(
    fetched: Fetched,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    family: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> ImageTokenizer:
    """Load what was fetched, strictly and from safetensors only, and record in its card where it came from.

    Raises:
        InputError: it has no weights in safetensors; and all that `vqtok.load` raises.
    """
    ours = family is None and config is None and is_ours(fetched.folder)
    weights = fetched.folder / _OURS[1] if ours else _weights(fetched.folder)
    model = fetched.folder if ours else weights
    tokenizer = load(model, device=device, precision=precision, family=family, config=config)
    if tokenizer.card is not None:
        hashes = {name: file_sha256(fetched.folder / name, "a file of the model") for name in _files(weights)}
        record = {**fetched.origin, "sha256": hashes}
        provenance = {**tokenizer.card.provenance, "loaded_from": record}
        tokenizer.card = tokenizer.card.model_copy(update={"provenance": provenance})
    return tokenizer


def push(tokenizer: ImageTokenizer, repository: str, *, revision: str | None, private: bool, message: str) -> str:
    """Upload a tokenizer's model folder and return the commit's hash; see `ImageTokenizer.push_to_hub`."""
    hub = _library()
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save(folder := Path(place, "model"))
        with _hub_errors(OutputError, f"cannot write {repository!r}"):
            api = hub.HfApi(library_name="vqtok", library_version=version("vqtok"))
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=message,
                revision=revision,
                allow_patterns=_OURS,
            )
    return str(done.oid)


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ResourceError(f"expected the package huggingface_hub ({error}): pip install 'vqtok[hub]'") from None


@contextmanager
def _hub_errors(kind: type[VqtokError], what: str) -> Iterator[None]:
    """Turn what the hub's library raises into one line: no such thing, no permission, no network, a refused name."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
        text = " ".join(str(error).split())
        raise kind(f"{what}: expected the Hugging Face Hub to take part, but {escape(text)}") from None


def _weights(folder: Path) -> Path:
    """Return the file of a foreign model's weights: an index of shards, a name that publishers use, the only one."""
    names = [*(f"{name}.index.json" for name in _WEIGHTS), *_WEIGHTS]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    came = ", ".join(escape(file.name) for file in found[:9]) or "none"
    raise InputError(
        f"{str(folder)!r}: expected weights in one .safetensors, got {came}. Other formats only vqtok.load opens, "
        "from a file that you have and trust"
    )


def _files(weights: Path) -> list[str]:
    """Return the names of what a model was read from: weights, or all shards, and the configuration beside them."""
    names = [weights.name]
    if weights.name.endswith(".index.json"):
        names += sorted(set(json.loads(weights.read_bytes())["weight_map"].values()))
    return [*names, *(["config.json"] if (weights.parent / "config.json").is_file() else [])]
