"""From a preset or a model folder to a tokenizer."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import torch

from vqtok import adapters, store
from vqtok.architecture import (
    DECODERS,
    ENCODERS,
    FORMAT,
    Architecture,
    DynamicArchitecture,
    HierarchicalArchitecture,
    ModelCard,
    arguments,
    build_quantizer,
    override,
    read_section,
)
from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError, InputError, MismatchError, ResourceError
from vqtok.hierarchy import HierarchicalTokenizer
from vqtok.image_tokenizer import ImageTokenizer, Precision
from vqtok.networks import EvaVit, FeatureDecoder, Merger, Selector, Vqvae2Network
from vqtok.networks.transformer import Mlp
from vqtok.presets import find_preset
from vqtok.quantizers import EmaQuantizer, LevelsQuantizer
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
    model = card.architecture
    if isinstance(model, HierarchicalArchitecture):
        tokenizer = _hierarchical(model)
    elif isinstance(model, DynamicArchitecture):
        tokenizer = _dynamic(model)
    else:
        tokenizer = _grid(model)
    tokenizer.card = card
    return tokenizer


def _grid(architecture: Architecture) -> Tokenizer:
    quantizer = build_quantizer(architecture.quantizer)
    encoder = ENCODERS[architecture.encoder.type](dim=quantizer.latent_dim, **arguments(architecture.encoder))
    statistics = {"out_channels": 6} if architecture.output == "logit-laplace" else {}
    decoder = DECODERS[architecture.decoder.type](dim=quantizer.dim, **arguments(architecture.decoder), **statistics)
    return Tokenizer(encoder, quantizer, decoder, architecture.preprocess, architecture.output)


def _hierarchical(architecture: HierarchicalArchitecture) -> HierarchicalTokenizer:
    top, bottom = (build_quantizer(architecture.quantizer) for _ in range(2))
    network = Vqvae2Network(dim=top.dim, **arguments(architecture.network))
    return HierarchicalTokenizer(network, LevelsQuantizer(top, bottom, network.ratio), architecture.preprocess)


def _dynamic(model: DynamicArchitecture) -> DynamicTokenizer:
    quantizer, spec, width = build_quantizer(model.quantizer), model.preprocess, model.features.width
    size = spec.size or 0
    decoder, pixels = model.feature_decoder, model.pixel_decoder
    return DynamicTokenizer(
        EvaVit(image_size=size, patch=spec.multiple, **arguments(model.features)),
        Selector(width),
        Merger(width=width, **arguments(model.merger)),
        Mlp(width, width, "tanh", quantizer.latent_dim),
        quantizer,
        FeatureDecoder(
            dim=quantizer.dim,
            positions=(size // spec.multiple) ** 2,
            width=decoder.decoder_width or width,
            out_dim=decoder.feature_width or width,
            **{name: getattr(decoder, name) for name in ("depth", "heads", "mlp_width")},
        ),
        None if pixels is None else DECODERS[pixels.type](dim=width, **arguments(pixels)),
        spec,
        unit_latents=model.unit_latents,
        temperature=model.temperature,
    )


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    family: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> ImageTokenizer:
    """Load a tokenizer in eval mode. Nothing in the file is ever executed, and nothing is downloaded.

    Args:
        model: a model folder (``config.json`` and ``model.safetensors``), or a published checkpoint of another
            program: its file, or its folder. The embedded default tokenizer if left out.
        device: where to put it.
        precision: ``"float32"``, or ``"bfloat16"``: faster, other codes near ties.
        family: whose checkpoint it is, a key of `vqtok.adapters.FAMILIES`; told from names and shapes where they can.
        config: the publisher's own configuration, a mapping or the path of its yaml or json, for what shapes cannot
            tell; one that lies beside the checkpoint is found.

    Raises:
        InputError: there is no such folder or file, or it is no checkpoint.
        ConfigError: its configuration is refused, or its family cannot be told.
        MismatchError: its tensors are not those of its configuration or family, or it is of another format version.
        IntegrityError: its weights are damaged, or the file names something that no checkpoint needs.
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
    elif family is None and config is None and is_ours(Path(model)):
        tokenizer = _load_folder(Path(model))
    else:
        tokenizer = _load_foreign(Path(model), family, config)
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


def is_ours(path: Path) -> bool:
    """Tell whether a path is a model folder, or what is nothing of anybody's and so shall be refused as one.

    >>> is_ours(Path("nothing-of-this-name"))
    True
    """
    try:
        if not path.is_dir():
            return not path.is_file()
        config = path / "config.json"
        if not config.is_file():  # a pipe would be waited for
            return config.exists() or not any(path.iterdir())
        with open(config, "rb") as file:
            return FORMAT.split("/")[0].encode() in file.read(1 << 20)
    except OSError:
        return True


def _load_folder(folder: Path) -> ImageTokenizer:
    try:
        kind = os.stat(folder).st_mode
        found = "" if stat.S_ISDIR(kind) else "a pipe or device"
    except OSError as error:
        found = "nothing of that name" if isinstance(error, FileNotFoundError) else str(error.strerror)
    if found:
        raise InputError(
            f"{str(folder)!r}: expected a model folder (config.json, model.safetensors) or a checkpoint, found {found}"
        )
    config = store.read_config(folder)
    config.pop("weights", None)
    if (came := config.pop("format", None)) != FORMAT:
        raise MismatchError(f"{str(folder)!r}: expected a model of format {FORMAT!r}, got {came!r}")
    card = read_section(ModelCard, config, str(folder / "config.json"))

    def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(x) for name, x in store.read_weights(folder, shapes).items()}

    return with_weights(card, weights)


def _load_foreign(
    path: Path, family: str | None, config: str | os.PathLike[str] | Mapping[str, Any] | None
) -> ImageTokenizer:
    found = adapters.open_checkpoint(path, family=family, config=config)
    return with_weights(found.card, found.weights)


def with_weights(
    card: ModelCard, weights: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, torch.Tensor]]
) -> ImageTokenizer:
    """Return the tokenizer of a card with weights that are there already.

    Args:
        card: the model.
        weights: called once with the shapes of all tensors that inference needs, by name; gives those tensors.
    """
    tokenizer = _hollow(card)
    return _filled(tokenizer, weights(_shapes(tokenizer)))


def _hollow(card: ModelCard) -> ImageTokenizer:
    with torch.device("meta"):  # no time is spent on random weights that are replaced at once
        return assemble(card)


def _shapes(tokenizer: ImageTokenizer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in tokenizer.inference_tensors().items()}


def _filled(tokenizer: ImageTokenizer, weights: Mapping[str, torch.Tensor]) -> ImageTokenizer:
    """Give a hollow tokenizer its weights; what only training reads begins anew."""
    state = {
        name: torch.zeros(x.shape, dtype=x.dtype) for name, x in tokenizer.state_dict().items() if name not in weights
    }
    tokenizer.load_state_dict(state | dict(weights), assign=True)
    for module in tokenizer.modules():
        if isinstance(module, EmaQuantizer):
            module.adopt_codebook()
    return tokenizer
