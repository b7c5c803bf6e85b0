"""Losses against a discriminator, and what keeps that game stable. Logits are larger where an image looks real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.losses.checks import at_least_float32

AdversarialKind: TypeAlias = Literal["hinge", "softplus"]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return (mean relu(1 - real) + mean relu(1 + fake)) / 2 of logits (Lim and Ye 2017; the half is VQGAN's).

    >>> hinge_discriminator(torch.tensor([0.0, 2.0]), torch.tensor([-2.0, 1.0])).item()
    0.75
    """
    return ((1 - at_least_float32(real)).relu().mean() + (1 + at_least_float32(fake)).relu().mean()) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """Return -mean fake of logits.

    >>> hinge_generator(torch.tensor([1.0, 3.0])).item()
    -2.0
    """
    return -at_least_float32(fake).mean()


def softplus_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return (mean softplus(-real) + mean softplus(fake)) / 2 of logits: cross entropy (Goodfellow et al. 2014).

    The half is VQGAN's; StyleGAN has none, which is a weight of 2.

    >>> round(softplus_discriminator(torch.zeros(2), torch.zeros(2)).item(), 4)
    0.6931
    """
    return (F.softplus(-at_least_float32(real)).mean() + F.softplus(at_least_float32(fake)).mean()) / 2


def softplus_generator(fake: Tensor) -> Tensor:
    """Return mean softplus(-fake) of logits: the generator's loss that does not saturate (Goodfellow et al. 2014).

    >>> round(softplus_generator(torch.zeros(2)).item(), 4)
    0.6931
    """
    return F.softplus(-at_least_float32(fake)).mean()


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of one game.

    Attributes:
        discriminator: logits of real and of generated images to the discriminator's loss.
        generator: logits of generated images to the generator's loss.

    >>> ADVERSARIAL["hinge"].generator(torch.ones(1)).item()
    -1.0
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


ADVERSARIAL: Mapping[AdversarialKind, AdversarialLoss] = MappingProxyType(
    {
        "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
        "softplus": AdversarialLoss(softplus_discriminator, softplus_generator),
    }
)


def adaptive_weight(nll: Tensor, generator_loss: Tensor, last_layer: Tensor) -> Tensor:
    """Return VQGAN's weight of the generator's loss (Esser et al. 2021, equation 7), without gradient.

    0.8 clamp(|grad nll| / (|grad generator_loss| + 1e-4), 0, 1e4), gradients by ``last_layer``. 0.8, 1e-4 and 1e4 are
    the published code's. It costs two backward passes through all that lies after the last layer (discriminator and
    perceptual network): leave it out while the generator's loss has no weight yet.

    Args:
        nll: scalar, reconstruction and perceptual loss.
        generator_loss: scalar.
        last_layer: a parameter that both depend on: the weight of the decoder's last layer.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> adaptive_weight((3 * w[0] + 4 * w[1]), 2 * w[0], last_layer=w).item()  # 0.8 * 5 / 2.0001
    1.9999001026153564
    """
    norms = [
        torch.linalg.vector_norm(at_least_float32(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]))
        for loss in (nll, generator_loss)
    ]
    return 0.8 * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)


def r1_penalty(discriminator: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Return half the mean over images of |grad D(x)|^2 at real images (Mescheder et al. 2018, equation 9).

    The paper's gamma is its weight. Where it is applied at every 16th step only (Karras et al. 2020, appendix B), its
    weight there is 16 gamma: 160 for the usual 10.

    Args:
        discriminator: pixels to logits [B, ...]; the logits of an image are summed. BatchNorm in training mode mixes
            the images of a batch, and so their gradients.
        pixels: real images [B, C, H, W]; they get no gradient.

    >>> r1_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, torch.full((2, 1, 1, 2), 3.0)).item()
    9.0
    """
    pixels = pixels.detach().requires_grad_()
    logits = discriminator(pixels)
    (gradient,) = torch.autograd.grad(logits.sum(), pixels, create_graph=True)
    return at_least_float32(gradient).square().flatten(1).sum(dim=1).mean() / 2


class LeCam(nn.Module):
    """Pulls logits towards the other side's moving average (Tseng et al. 2021), for few images.

    mean relu(real - average fake)^2 + mean relu(average real - fake)^2. Equation 5 has no relu; the published code has,
    and so do the tokenizers that were trained with it. Both agree while real logits are above the fakes' average.

    The averages belong to the training state: they are buffers, saved with it, and under torch.distributed the mean
    over all ranks. The first batch starts them; each later one counts after its penalty is taken, in training mode.

    Args:
        decay: of the averages, in [0, 1).

    >>> lecam = LeCam(decay=0.5)
    >>> lecam(torch.tensor([2.0]), torch.tensor([-1.0])).item()  # (2 + 1)^2 twice
    18.0
    >>> _ = lecam(torch.tensor([4.0]), torch.tensor([-1.0]))
    >>> lecam.real_mean.item(), lecam.fake_mean.item()
    (3.0, -1.0)
    """

    real_mean: Tensor
    fake_mean: Tensor
    started: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError(f"expected decay in [0, 1), got {decay}")
        self.decay = decay
        # Float32 whatever torch's default is: averages of small steps need the bits.
        self.register_buffer("real_mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("fake_mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the penalty of the discriminator's logits of real and of generated images."""
        real, fake = at_least_float32(real), at_least_float32(fake)
        now = _over_ranks(torch.stack([real.detach().mean(), fake.detach().mean()]).float())
        before = torch.where(self.started, torch.stack([self.real_mean, self.fake_mean]), now)
        penalty = (real - before[1]).relu().square().mean() + (before[0] - fake).relu().square().mean()
        if self.training:
            self.real_mean, self.fake_mean = (self.decay * before + (1 - self.decay) * now).unbind()
            self.started = torch.ones_like(self.started)
        return penalty


def _over_ranks(means: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(means)
        means = means / dist.get_world_size()
    return means
