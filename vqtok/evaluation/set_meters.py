"""Meters of whole sets: features of each image, and how far those of reconstructions are from those of originals."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vqtok.errors import ResourceError
from vqtok.evaluation.distances import kernel_distance
from vqtok.images import RGB
from vqtok.networks.efficientnet import EfficientNetLite0

Features = npt.NDArray[np.float32]
TILE = 256
_BATCH = 16  # tiles that go through the network at once


@dataclass(frozen=True, slots=True)
class EffLite0Meter:
    """Features of tiles; images that are smaller go whole."""

    network: EfficientNetLite0
    device: torch.device

    @torch.inference_mode()
    def features(self, image: RGB) -> Features:
        """Return the features [n, 1280] of an image's tiles."""
        found = [self.network.pooled(part.to(self.device)) for part in batch(tiles(image)).split(_BATCH)]
        return torch.cat(found).cpu().numpy()

    def distance(self, originals: Features, others: Features) -> float:
        """Return KID."""
        return kernel_distance(originals, others)


@dataclass(frozen=True, slots=True)
class InceptionMeter:
    """Features and distance of torch-fidelity; each image is one sample, resized to 299 x 299 as it does."""

    network: nn.Module
    device: torch.device

    @torch.inference_mode()
    def features(self, image: RGB) -> Features:
        """Return the features [1, 2048] of an image."""
        (found,) = self.network(batch(image, torch.uint8).to(self.device))
        return found.cpu().numpy()

    def distance(self, originals: Features, others: Features) -> float:
        """Return FID."""
        fid = library("torch_fidelity.metric_fid", "torch-fidelity")
        statistics = [fid.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (originals, others)]
        return float(fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])


def library(module: str, package: str) -> Any:
    """Import a library of the extra ``eval``; ResourceError when it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(f"expected the package {package}, got: {error}: pip install 'vqtok[eval]'") from None


def batch(images: npt.NDArray[np.uint8], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 [..., H, W, 3] as [B, 3, H, W]."""
    stacked = images if images.ndim == 4 else images[None]
    return torch.tensor(stacked.transpose(0, 3, 1, 2), dtype=dtype)  # a copy: images may be read-only


def tiles(image: RGB) -> npt.NDArray[np.uint8]:
    """Return disjoint tiles [n, h, w, 3] from the middle of an image; the whole of a smaller one."""
    height, width = image.shape[:2]
    if min(height, width) < TILE:
        return image[None]
    rows, columns = height // TILE, width // TILE
    top, left = (height - rows * TILE) // 2, (width - columns * TILE) // 2
    inner = image[top : top + rows * TILE, left : left + columns * TILE]
    return inner.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
