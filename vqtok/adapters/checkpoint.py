"""From a foreign file to a model's card and weights, and from our weights back to foreign names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vqtok.adapters import rules, settings, sniff
from vqtok.adapters.containers import Entries, Entry, read_tensor
from vqtok.adapters.cosmos import COSMOS_FSQ
from vqtok.adapters.diffusers import DIFFUSERS_VQMODEL
from vqtok.adapters.emu3 import HF_EMU3_VQ
from vqtok.adapters.family import Family, Tensors, table
from vqtok.adapters.files import find_parts
from vqtok.adapters.gumbel import TAMING_GUMBEL
from vqtok.adapters.ibq import SEED_VOKEN_IBQ
from vqtok.adapters.lavit import LAVIT_DYNAMIC
from vqtok.adapters.llamagen import LLAMAGEN_VQ
from vqtok.adapters.maskgit import MASKGIT_VQGAN
from vqtok.adapters.open_magvit2 import OPEN_MAGVIT2_LFQ
from vqtok.adapters.openai_dvae import OPENAI_DVAE
from vqtok.adapters.rules import Shape
from vqtok.adapters.taming import TAMING_VQGAN
from vqtok.adapters.titok import TITOK
from vqtok.adapters.transformers import HF_CHAMELEON_VQ, HF_JANUS_VQ
from vqtok.adapters.vit_vqgan import VIT_VQGAN
from vqtok.adapters.vqvae2 import VQVAE2
from vqtok.architecture import ModelCard
from vqtok.errors import MismatchError, escape

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        TAMING_VQGAN,
        TAMING_GUMBEL,
        LLAMAGEN_VQ,
        HF_JANUS_VQ,
        DIFFUSERS_VQMODEL,
        HF_CHAMELEON_VQ,
        VIT_VQGAN,
        MASKGIT_VQGAN,
        HF_EMU3_VQ,
        TITOK,
        SEED_VOKEN_IBQ,
        OPEN_MAGVIT2_LFQ,
        OPENAI_DVAE,
        VQVAE2,
        LAVIT_DYNAMIC,
        COSMOS_FSQ,
    )
}
_AVERAGES = "model_ema."


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A checkpoint whose family and configuration are known, and whose numbers are not read yet.

    Attributes:
        family: the family.
        card: the model that the checkpoint describes.
    """

    family: Family
    card: ModelCard
    _entries: Entries
    _applied: rules.Applied

    def weights(self, expected: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Read the model's tensors, float32 and finite; all names and shapes are compared before.

        Args:
            expected: shape by our name, all that the model has.

        Raises:
            MismatchError: tensors are missing, left over or of another shape; all are listed.
            IntegrityError: numbers are damaged, not finite or not floating-point.
        """
        shapes = {name: entry.shape for name, entry in self._entries.items()}
        rules.check(table(self.family, [*shapes]), self._applied, expected, shapes)
        sources = self._applied.tensors
        return {
            name: rules.changed(
                read_tensor(sources[name].name, self._entries[sources[name].name]), sources[name].change
            )
            for name in expected
        }


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> ForeignModel:
    """Find out what a foreign checkpoint is. Nothing of it is run, and no weights are read yet.

    Args:
        path: the file, or the folder of a checkpoint of several files.
        family: a key of `FAMILIES`, where names and shapes cannot tell.
        config: the publisher's configuration: a mapping, or the path of a yaml or json file. One that lies beside the
            checkpoint is found.

    Raises:
        InputError: there is no such file, or it is of no kind or family that is known.
        ConfigError: the family cannot be told, or the configuration is not usable.
        MismatchError: configuration and weights are of different models.
        IntegrityError: the file is damaged, or names something that no checkpoint needs.
    """
    place = Path(path)
    entries = find_parts(place, FAMILIES.values())
    beside = settings.find_settings(place) if config is None else config
    said = None if beside is None else settings.read_settings(beside)
    shapes = {name: entry.shape for name, entry in entries.items()}
    chosen = sniff.choose(FAMILIES, shapes, named=family, classes=settings.classes(said))
    if config is None and said is not None and not settings.speaks_of(said, chosen):
        said = None  # another file that happens to lie there
    prefix = sniff.prefix_of(chosen, [*entries]) or ""
    inside = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    stated = settings.stated(said, chosen)
    if chosen.averaged:
        inside = averaged(chosen, inside) if stated.get("averaged", True) else _as_trained(inside)
    return _describe(chosen, inside, stated, place.name)


def _describe(family: Family, entries: Entries, stated: dict[str, Any], name: str) -> ForeignModel:
    applied = rules.apply(table(family, [*entries]), {key: entry.shape for key, entry in entries.items()})
    try:
        architecture = family.architecture(Tensors(applied.tensors), stated, family.preprocess)
    except ValueError as error:  # a section refused what shapes gave
        raise MismatchError(f"expected shapes of a {family.name}, but they make no model: {error}") from None
    settings.compare(stated, family.facts(architecture, stated), family)
    provenance = {"family": family.name, "publisher": family.source, "file": name}
    return ForeignModel(family, ModelCard(architecture=architecture, provenance=provenance), entries, applied)


def averaged(family: Family, entries: Entries) -> Entries:
    """Return a checkpoint with each tensor's average in its place; one without averages as it is.

    An average is named ``model_ema.`` and the tensor's name without its dots. One that is of no tensor stays, for the
    table to leave it over.

    Raises:
        MismatchError: some of the model's tensors have an average and others none.
    """
    averages = {name: f"{_AVERAGES}{name.replace('.', '')}" for name in entries if not name.startswith(_AVERAGES)}
    used = rules.apply(table(family, [*entries]), {name: entry.shape for name, entry in entries.items()}).tensors
    without = [source.name for source in used.values() if averages[source.name] not in entries]
    if without and len(without) < len(used):
        raise MismatchError(
            f"expected averages ({_AVERAGES}) of all tensors or of none, got none of {len(without)}: "
            f"{escape(', '.join(without[:9]))}. Is it whole? Without averages: config={{'use_ema': False}}"
        )
    taken = {*averages.values()}
    return {name: entries.get(averages.get(name, ""), entry) for name, entry in entries.items() if name not in taken}


def _as_trained(entries: Entries) -> Entries:
    return {name: entry for name, entry in entries.items() if not name.startswith(_AVERAGES)}


def find_family(name: str) -> Family:
    """Return a family by name.

    Raises:
        ConfigError: there is none; the nearest name is given.

    >>> find_family("llamagen_vq").source
    'FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py, VQModel'
    """
    return sniff.find_named(FAMILIES, name)


def export(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Return a model's tensors under a publisher's names and in its shapes, for other programs to read.

    Args:
        tensors: by our name, all that inference needs (``tokenizer.inference_tensors()``).
        family: a key of `FAMILIES`.

    Raises:
        ConfigError: no such family, or it has no place for some of the tensors.

    >>> import torch
    >>> export({"quantizer.codebook": torch.zeros(4, 2)}, "taming_vqgan")["quantize.embedding.weight"].shape
    torch.Size([4, 2])
    """
    names = rules.invert(table(find_family(family), [*tensors]), tensors)
    return {foreign: rules.unchanged(tensors[name].detach(), change) for name, (foreign, change) in names.items()}


def reread(
    tensors: Mapping[str, Tensor], family: str, config: str | os.PathLike[str] | Mapping[str, Any] | None = None
) -> ForeignModel:
    """Return what `open_checkpoint` will make of a file with these tensors, which have a publisher's names.

    Args:
        tensors: what `export` gave.
        family: a key of `FAMILIES`.
        config: as of `open_checkpoint`.

    Raises:
        ConfigError: the configuration is not usable.
        MismatchError: the tensors are of no model of the family, or of another than the configuration says.
    """
    chosen = FAMILIES[family]
    said = None if config is None else settings.read_settings(config)
    entries = {name: Entry(tuple(x.shape), x.dtype, lambda x=x: x) for name, x in tensors.items()}
    return _describe(chosen, entries, settings.stated(said, chosen), family)
