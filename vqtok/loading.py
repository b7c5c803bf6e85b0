"""From a preset or a model folder to a tokenizer."""

from __future__ import annotations

import os
import stat
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import torch

from vqtok import store
from vqtok.architecture import (
    DECODERS,
    ENCODERS,
    FORMAT,
    ModelCard,
    arguments,
    build_quantizer,
    override,
    read_section,
)
from vqtok.errors import ConfigError, InputError, MismatchError, ResourceError
from vqtok.image_tokenizer import ImageTokenizer, Precision
from vqtok.presets import find_preset
from vqtok.quantizers import EmaQuantizer
from vqtok.tokenizer import Tokenizer

DEFAULT_MODEL = "photo-f8"


def build(preset: str, **options: Any) -> ImageTokenizer:
    """Return a tokenizer with fresh random weights.

    Args:
        preset: a name of `vqtok.presets.PRESETS`.
        options: fields of the preset's sections by name, such as ``vocab_size``; checked.

    Raises:
        ConfigError: no such preset, no such option, or a value that is refused.

    >>> build("vqgan-f16-16384", vocab_size=1024, channels=32).vocab_size
    1024
    """
    return assemble(ModelCard(architecture=override(find_preset(preset).architecture, options)))


def assemble(card: ModelCard) -> ImageTokenizer:
    """Return a tokenizer with fresh random weights from its card."""
    architecture = card.architecture
    quantizer = build_quantizer(architecture.quantizer)
    encoder = ENCODERS[architecture.encoder.type](dim=quantizer.latent_dim, **arguments(architecture.encoder))
    decoder = DECODERS[architecture.decoder.type](dim=quantizer.dim, **arguments(architecture.decoder))
    tokenizer = Tokenizer(encoder, quantizer, decoder, architecture.preprocess)
    tokenizer.card = card
    return tokenizer


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> ImageTokenizer:
    """Load a tokenizer in eval mode. Nothing in the folder is ever executed, and nothing is downloaded.

    Args:
        model: a model folder (``config.json`` and ``model.safetensors``); the embedded default tokenizer if left out.
        device: where to put it.
        precision: ``"float32"``, or ``"bfloat16"``: faster, other codes near ties.

    Raises:
        InputError: there is no such folder.
        ConfigError: its configuration is refused.
        MismatchError: its tensors are not those of its configuration, or it is of another format version.
        IntegrityError: its weights are damaged.
        ResourceError: the device is not there.

    >>> load().vocab_size
    8192
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"expected precision to be one of {', '.join(get_args(Precision))}, got {precision!r}")
    target = find_device(device)
    if model is None:
        with resources.as_file(resources.files("vqtok") / "assets" / DEFAULT_MODEL) as folder:
            tokenizer = _load_folder(folder)
    else:
        tokenizer = _load_folder(Path(model))
    tokenizer.precision = precision
    return tokenizer.to(target).eval()


def find_device(device: str | torch.device) -> torch.device:
    """Return a device that works, or say why it does not.

    >>> find_device("cpu")
    device(type='cpu')
    """
    try:
        target = torch.device(device)
        torch.zeros(1, device=target).item()  # not every device that torch knows can hold numbers
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(f"expected a device that this machine has, got {str(device)!r}: {reason}") from None
    return target


def _load_folder(folder: Path) -> ImageTokenizer:
    try:
        kind = os.stat(folder).st_mode
        found = "" if stat.S_ISDIR(kind) else "a file"
    except OSError as error:
        found = "nothing of that name" if isinstance(error, FileNotFoundError) else str(error.strerror)
    if found:
        raise InputError(f"{str(folder)!r}: expected a model folder (config.json, model.safetensors), found {found}")
    config = store.read_config(folder)
    config.pop("weights", None)
    if (came := config.pop("format", None)) != FORMAT:
        raise MismatchError(f"{str(folder)!r}: expected a model of format {FORMAT!r}, got {came!r}")
    card = read_section(ModelCard, config, str(folder / "config.json"))
    with torch.device("meta"):  # no time is spent on random weights that are replaced at once
        tokenizer = assemble(card)
    weights = store.read_weights(folder, {name: tuple(x.shape) for name, x in tokenizer.inference_tensors().items()})
    state = {
        name: torch.zeros(x.shape, dtype=x.dtype) for name, x in tokenizer.state_dict().items() if name not in weights
    }
    tokenizer.load_state_dict(state | {name: torch.from_numpy(x) for name, x in weights.items()}, assign=True)
    for module in tokenizer.modules():
        if isinstance(module, EmaQuantizer):
            module.adopt_codebook()
    return tokenizer
