"""Images to tokens with the embedded tokenizer: what the lookup is worth when an encoder stands before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import vqtok

from .backends import ours
from .protocol import Call, Case, Contender, Shape, Verdict
from .verdicts import judge_codes


@dataclass(frozen=True, slots=True)
class Photos:
    """Images uint8 [H, W, 3] of one size, and the model that tokenizes them."""

    tokenizer: vqtok.ImageTokenizer
    images: list[npt.NDArray[np.uint8]]

    def pixels(self) -> Tensor:
        """Return float32 [B, 3, H, W] in the model's range."""
        batch = torch.cat([self.tokenizer.preprocess(image) for image in self.images])
        return batch.to(self.tokenizer.device)

    def unit_latents(self) -> Tensor:
        """Return the latents [N, D] of all images, at unit length: the embedded tokenizer compares angles."""
        with torch.inference_mode():
            latents = self.tokenizer.latents(self.pixels())
            return F.normalize(latents.reshape(-1, latents.shape[-1]), dim=1)

    def codebook(self) -> Tensor:
        """Return the rows [K, D] that latents are compared with."""
        codes = torch.arange(self.tokenizer.vocab_size, device=self.tokenizer.device)
        return self.tokenizer.quantizer.decode(codes)


def inputs(shape: Shape, device: str) -> Photos:
    """Return smooth random images."""
    count, height, width = shape
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    resized = [Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC) for x in coarse]
    return Photos(vqtok.load(device=device), [np.asarray(image) for image in resized])


def encoder_and_cdist(photos: Photos) -> Call:
    """Prepare the same encoder, all images in one batch, with torch's lookup behind it."""
    codebook = photos.codebook()
    return lambda: torch.cdist(photos.unit_latents(), codebook).argmin(dim=1).cpu()


def vqtok_tokenize(photos: Photos) -> Call:
    """Prepare nothing."""
    return lambda: torch.from_numpy(photos.tokenizer.tokenize(photos.images).ids.astype(np.int64))


def contenders(device: str) -> list[Contender]:
    """Return the rival and vqtok."""
    rival = Contender("encoder, torch cdist+argmin", encoder_and_cdist)
    return [rival, *ours("nearest_code", device, vqtok_tokenize)]


def judge(photos: Photos, expected: Tensor, answer: Tensor) -> Verdict:
    """Compare codes; another batch may round the encoder's sums elsewise, which widens what is a tie."""
    return judge_codes(photos.unit_latents().cpu(), photos.codebook().cpu(), expected, answer)


CASE = Case(
    name="tokenize",
    summary="images to tokens with the embedded tokenizer photo-f8",
    axes=("images", "pixels high", "pixels wide"),
    shapes=((16, 256, 256), (4, 512, 512)),
    quick_shapes=((2, 64, 64),),
    inputs=inputs,
    contenders=contenders,
    judge=judge,
    flop=lambda shape: 0.0,  # the encoder's share is its own affair
)
