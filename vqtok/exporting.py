"""From a tokenizer to a published checkpoint's layout: the way back of `vqtok.load`."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtok import adapters, store
from vqtok.adapters.containers import read_entries, read_tensor
from vqtok.adapters.family import Family
from vqtok.architecture import ModelCard
from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError, IntegrityError, MismatchError, escape
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.images import PreprocessSpec
from vqtok.loading import with_weights
from vqtok.networks import AbsentDecoder
from vqtok.store import safetensors
from vqtok.store.commit import commit
from vqtok.store.commit_folder import commit_folder

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_RANGE = ("low", "high", "mean", "std")


def export(
    tokenizer: ImageTokenizer,
    path: str | os.PathLike[str],
    family: str,
    *,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint in a publisher's layout, for the publisher's own program to read.

    Before anything is written, the tensors are read as `vqtok.load` will read them, and latents, codes and pixels of a
    test image must be the tokenizer's own, bit for bit.

    Args:
        tokenizer: from `vqtok.build` or `vqtok.load`.
        path: the file to write: ``.safetensors``, or ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` for torch's zip. For a
            family that publishes several files, the folder.
        family: a key of `vqtok.adapters.FAMILIES`.
        config: the publisher's own configuration, where shapes do not tell the whole model; as of `vqtok.load`.
        overwrite: replace what is there.

    Raises:
        ConfigError: no such family or suffix, or the family has no place for some of the tensors.
        MismatchError: the family's program would compute something else with these tensors.
        OutputError: the file exists or cannot be written.

    >>> import tempfile, vqtok
    >>> tokenizer = vqtok.build("vqgan-tiny", channels=32, groups=32, metric="l2")
    >>> vqtok.export(tokenizer, path := tempfile.mkdtemp() + "/model.ckpt", "taming_vqgan")
    >>> again = vqtok.load(path, family="taming_vqgan")
    >>> torch.equal(again.quantizer.codebook, tokenizer.quantizer.codebook)
    True
    """
    chosen, target = adapters.find_family(family), Path(path)
    if not chosen.parts:
        _check_suffix(target)
    if tokenizer.card is None:
        raise ConfigError("expected a tokenizer from vqtok.build or vqtok.load, got one put together by hand")
    tensors = {name: x.detach().cpu().float() for name, x in tokenizer.inference_tensors().items()}
    theirs = _renamed(tensors, family)
    _check_reread(tokenizer.card, tensors, theirs, chosen, config)
    if chosen.parts:
        files = {name: _packed(Path(name), part, chosen) for name, part in _split(theirs, chosen).items()}
        commit_folder(target, files, overwrite=overwrite)
        return

    def verify(written: Path) -> None:
        entries = read_entries(written)
        same = entries.keys() == theirs.keys()
        if not same or not all(torch.equal(read_tensor(name, entries[name]), x) for name, x in theirs.items()):
            raise IntegrityError("expected the tensors as written, but other ones came back")

    commit(target, _packed(target, theirs, chosen), verify=verify, overwrite=overwrite)


def _renamed(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    try:
        return adapters.export(tensors, family)
    except ConfigError as error:
        raise ConfigError(f"the layout of {family} does not fit this model: {escape(str(error))}") from None


def _check_suffix(target: Path) -> None:
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"expected a checkpoint ending in {' '.join(SUFFIXES)}, got {str(target)!r}")


def _check_reread(
    card: ModelCard,
    tensors: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    family: Family,
    config: str | os.PathLike[str] | Mapping[str, Any] | None,
) -> None:
    """Raise MismatchError unless the family reads the same model out of the tensors."""
    found = adapters.reread(theirs, family.name, config)
    ours, spec = card.architecture.preprocess, found.card.architecture.preprocess
    if wrong := [name for name in _RANGE if getattr(ours, name) != getattr(spec, name)]:
        raise MismatchError(
            f"expected pixels as {family.name} has them, but {_differences(wrong, ours, spec)}: its program would give "
            "the model other pixels than it was trained on"
        )
    own = with_weights(card, lambda shapes: tensors).eval()
    other = with_weights(found.card, found.weights).eval()
    if part := _first_difference(own, other):
        raise MismatchError(
            f"expected a model that {family.name} computes alike, but with the same weights its {part} differ. The "
            f"family reads {found.card.architecture.model_dump(mode='json', exclude={'preprocess'})}: another family, "
            "or the publisher's configuration (config=) for what shapes do not tell?"
        )


def _differences(names: list[str], ours: PreprocessSpec, theirs: PreprocessSpec) -> str:
    return ", ".join(f"{name} is {getattr(ours, name)} here and {getattr(theirs, name)} there" for name in names)


@torch.no_grad()
def _first_difference(own: ImageTokenizer, other: ImageTokenizer) -> str:
    """Return what differs first of an image of noise: ``latents``, ``codes`` or ``pixels``; "" when nothing does."""
    if type(own) is not type(other) or own.factor != other.factor:
        return "kind and factor"
    side = own.spec.size or 4 * own.factor
    pixels = noise(own.spec, 1, side, side)
    if not torch.equal(own.latents(pixels), other.latents(pixels)):
        return "latents"
    tokens, others = own.encode(pixels), other.encode(pixels)
    if own.vocab_size != other.vocab_size or not torch.equal(tokens.ids, others.ids):
        return "codes"
    if not has_decoder(own) or not has_decoder(other):
        return "" if has_decoder(own) == has_decoder(other) else "pixels"
    return "" if torch.equal(_decoded(own, tokens), _decoded(other, others)) else "pixels"


def noise(spec: PreprocessSpec, count: int, height: int, width: int) -> Tensor:
    """Return the test images [count, 3, height, width]: uniform over the range of pixels, always the same."""
    unit = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    return spec.low + (spec.high - spec.low) * unit


def _decoded(tokenizer: ImageTokenizer, tokens: Any) -> Tensor:
    """Return the pixels of tokens; of runs the features, for which a published model needs no decoder of pixels."""
    return tokenizer.decode_features(tokens) if isinstance(tokenizer, DynamicTokenizer) else tokenizer.decode(tokens)


def has_decoder(tokenizer: ImageTokenizer) -> bool:
    """Tell whether a model has the decoder that some publishers leave out.

    >>> import vqtok
    >>> has_decoder(vqtok.load())
    True
    """
    return not any(isinstance(module, AbsentDecoder) for module in tokenizer.modules())


def _split(tensors: Mapping[str, Tensor], family: Family) -> dict[str, dict[str, Tensor]]:
    """Return tensors by file for a family that publishes several; whole pickled modules are never written."""
    parts = next(parts for parts in family.parts if all(Path(name).suffix in SUFFIXES for name in parts))
    files: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
    for name, x in tensors.items():
        file = max((file for file in parts if name.startswith(parts[file])), key=lambda file: len(parts[file]))
        files[file][name.removeprefix(parts[file])] = x
    return files


def _packed(path: Path, tensors: Mapping[str, Tensor], family: Family) -> list[memoryview]:
    """Return a file's content: the container that its suffix names."""
    whole = {name: x.contiguous() for name, x in tensors.items()}
    if path.suffix == ".safetensors":
        # transformers refuses files that do not name their framework.
        return safetensors.serialize({name: x.numpy() for name, x in whole.items()}, {"format": "pt"}, store.CHECKSUM)
    buffer = io.BytesIO()
    torch.save({family.top: whole} if family.top else whole, buffer)
    return [buffer.getbuffer()]
