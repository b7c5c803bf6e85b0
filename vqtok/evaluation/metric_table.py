"""What a reconstruction is measured by: of each image beside its original, or of all of them together.

A metric whose weights or library are not on this machine says how to get them; nothing is downloaded.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from vqtok.adapters.containers import read_entries
from vqtok.adapters.metric_weights import find_weights
from vqtok.adapters.perceptual_networks import PerceptualNetwork, perceptual_network
from vqtok.errors import ConfigError, ResourceError
from vqtok.evaluation.metrics import psnr
from vqtok.evaluation.set_meters import TILE, EffLite0Meter, Features, InceptionMeter, batch, library
from vqtok.images import RGB
from vqtok.networks.efficientnet import EfficientNetLite0

_SSIM_WINDOW = 11


class PairMeter(Protocol):
    """Compares an image with what came back."""

    def __call__(self, original: RGB, back: RGB, /) -> float:
        """Return the value of one image."""
        ...


class SetMeter(Protocol):
    """Compares all images with all that came back, by features that it takes of each."""

    def features(self, image: RGB) -> Features:
        """Return the features [n, D] of an image, which may be several samples."""
        ...

    def distance(self, originals: Features, others: Features) -> float:
        """Return the value of the whole set, at least 2 samples [N, D] each."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A metric that is ready.

    Attributes:
        meter: what measures.
        record: what a protocol says of it: settings, and the weights' sha256.
    """

    meter: PairMeter | SetMeter
    record: Mapping[str, Any]


Place = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name.

    Attributes:
        label: what people call it.
        better: which values are better.
        whole: whether it is of the whole set, and no image has a value.
        digits: decimals that mean something.
        least: height and width that an image needs.
        open: (device, where weights are) to what measures; raises ResourceError when it cannot here.
    """

    label: str
    better: Literal["higher", "lower"]
    open: Callable[[torch.device, Place], Opened]
    whole: bool = False
    digits: int = 4
    least: int = 1


def _open_psnr(device: torch.device, weights: Place) -> Opened:
    return Opened(psnr, {"peak": 255, "over": "all pixels and channels; an image without loss is left out of the mean"})


def _open_ssim(device: torch.device, weights: Place) -> Opened:
    function = library("torchmetrics.functional.image", "torchmetrics").structural_similarity_index_measure
    settings = {"kernel_size": _SSIM_WINDOW, "sigma": 1.5, "k1": 0.01, "k2": 0.03, "data_range": 255.0}

    def ssim(original: RGB, back: RGB) -> float:
        return float(function(batch(back).double(), batch(original).double(), gaussian_kernel=True, **settings))

    made_by = {"library": f"torchmetrics {_version('torchmetrics')}"}
    return Opened(ssim, settings | made_by | {"over": "RGB channels in float64"})


def _open_perceptual(name: str) -> Callable[[torch.device, Place], Opened]:
    def open_network(device: torch.device, weights: Place) -> Opened:
        network = perceptual_network(name, weights, low=0, high=255).to(device)

        @torch.inference_mode()
        def distance(original: RGB, back: RGB) -> float:
            return float(network.distance(batch(back).to(device), batch(original).to(device)))

        return Opened(distance, {"weights": _records(network)})

    return open_network


def _open_kid(device: torch.device, weights: Place) -> Opened:
    network = perceptual_network("efficientnet-lite0", weights, low=0, high=255).to(device)
    if not isinstance(features := network.features, EfficientNetLite0):
        raise TypeError("expected EfficientNet-Lite0")
    record = {
        "features": "EfficientNet-Lite0, pooled, 1280",
        "samples": f"disjoint {TILE} x {TILE} tiles in the middle of each image; smaller images whole",
        "estimator": "U-statistic of pairs, kernel (x . y / D + 1)^3, all samples",
        "weights": _records(network),
    }
    return Opened(EffLite0Meter(features, device), record)


def _open_rfid(device: torch.device, weights: Place) -> Opened:
    module = library("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
    file = find_weights("inception-fid", weights)
    state = io.BytesIO()
    # It reads weights with pickle, which may run anything: it gets bytes that are written here.
    torch.save({name: entry.read() for name, entry in read_entries(file.path).items()}, state)
    state.seek(0)
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=state)
    record = {
        "library": f"torch-fidelity {_version('torch_fidelity')}",
        "samples": "whole images, 299 x 299; of few, compare only over the same ones",
        "weights": [file.record()],
    }
    return Opened(InceptionMeter(network.to(device), device), record)


METRICS = {
    "psnr": Metric("PSNR", "higher", _open_psnr, digits=3),
    "ssim": Metric("SSIM", "higher", _open_ssim, least=_SSIM_WINDOW),
    "st-lpips-alex": Metric("ST-LPIPS (AlexNet)", "lower", _open_perceptual("st-lpips-alex"), least=32),
    "st-lpips-vgg": Metric("ST-LPIPS (VGG16)", "lower", _open_perceptual("st-lpips-vgg"), least=32),
    "lpips-alex": Metric("LPIPS (AlexNet)", "lower", _open_perceptual("lpips-alex"), least=32),
    "lpips-vgg": Metric("LPIPS (VGG16)", "lower", _open_perceptual("lpips-vgg"), least=32),
    "kid-efflite0": Metric("KID-EffLite0", "lower", _open_kid, whole=True, digits=6),
    "rfid": Metric("rFID", "lower", _open_rfid, whole=True, digits=3),
}


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics that are ready, and why others are not.

    Attributes:
        opened: by name.
        not_computed: how to get each of those that this machine lacks, by name.
    """

    opened: Mapping[str, Opened]
    not_computed: Mapping[str, str] = field(default_factory=dict)


def open_metrics(
    names: Sequence[str] | None = None, *, device: torch.device | str = "cpu", weights: Place = None
) -> Metrics:
    """Load what metrics need, once for many evaluations.

    Args:
        names: keys of `METRICS`; all that this machine has when not given.
        device: where networks run.
        weights: a folder with files of weights under their published names, beside the packages that are installed.

    Raises:
        ConfigError: there is no such metric.
        ResourceError: one that is named cannot be computed here; the message says what it lacks.

    >>> [*open_metrics(["psnr"]).opened]
    ['psnr']
    """
    if unknown := [name for name in names or () if name not in METRICS]:
        raise ConfigError(f"unknown metric {unknown[0]!r}: {', '.join(METRICS)} are known")
    opened, missing = {}, {}
    for name in dict.fromkeys(names or METRICS):
        try:
            opened[name] = METRICS[name].open(torch.device(device), weights)
        except ResourceError as error:
            if names:
                raise ResourceError(f"{name}: {error}") from None
            missing[name] = str(error)
    return Metrics(opened, missing)


def _version(module: str) -> str:
    return str(importlib.import_module(module).__version__)


def _records(network: PerceptualNetwork) -> list[dict[str, str]]:
    return [file.record() for file in network.weights]
