"""The discriminator while it learns, and what it tells the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqtok.losses import ADVERSARIAL, LeCam, adaptive_weight, r1_penalty
from vqtok.networks.discriminators import PatchDiscriminator, StyleDiscriminator
from vqtok.training.recipe import DiscriminatorSection
from vqtok.training.sharding import load_optimizer, load_whole

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Adversary:
    """A discriminator with its optimizer.

    Args:
        section: of the recipe.
        size: side of the crops, for a discriminator of one size.
        fabric: what spreads it over devices.

    Attributes:
        network: the discriminator itself.
    """

    def __init__(self, section: DiscriminatorSection, size: int, fabric: Fabric) -> None:
        self.section, self.fabric, self.game = section, fabric, ADVERSARIAL[section.loss]
        self.network = build_discriminator(section, size)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.lecam = LeCam().to(fabric.device)
        self.player: Any = fabric.setup_module(self.network)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=section.learning_rate, betas=section.betas)
        self.optimizer: Any = fabric.setup_optimizers(optimizer)

    def minded(self, step: int) -> float:
        """Return the share of its weight that the tokenizer minds at a step."""
        if step < self.section.start:
            return 0.0
        return min(1.0, (step - self.section.start + 1) / max(1, self.section.ramp))

    def learns(self, step: int) -> bool:
        """Tell whether it learns at a step."""
        return step >= self.section.start - self.section.warmup

    def generator_loss(self, fake: Tensor, nll: Tensor, last_layer: Tensor | None, step: int) -> tuple[Tensor, Tensor]:
        """Return what the tokenizer's loss gets, and the weight in it.

        Args:
            fake: reconstructed pixels, with their gradient.
            nll: the reconstruction's loss, for the adaptive weight.
            last_layer: the weight of the decoder's last layer, likewise.
            step: of the training.
        """
        with _frozen(self.network):
            loss = self.game.generator(self.network(fake))
        weight = loss.new_tensor(self.section.weight * self.minded(step))
        if self.section.adaptive and last_layer is not None:
            weight = weight * adaptive_weight(nll, loss, last_layer)
        return weight * loss, weight

    def learn(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """Do one step on real and on reconstructed pixels; return its loss and the mean logits of both."""
        section = self.section
        both = self.player(torch.cat([real, fake.detach()])) if section.kind == "patch" else None
        real_logits, fake_logits = (
            both.chunk(2) if both is not None else (self.player(real), self.player(fake.detach()))
        )
        loss = self.game.discriminator(real_logits, fake_logits)
        if section.lecam:
            loss = loss + section.lecam * self.lecam(real_logits, fake_logits)
        if section.r1 and step % section.r1_every == 0:
            loss = loss + section.r1 * section.r1_every * r1_penalty(self.network, real)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        return {"loss": loss.detach(), "real": real_logits.detach().mean(), "fake": fake_logits.detach().mean()}

    def state(self) -> dict[str, Any]:
        """Return everything a resumed training needs."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lecam": self.lecam.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        load_whole(self.network, state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.lecam.load_state_dict(state["lecam"])


def build_discriminator(section: DiscriminatorSection, size: int) -> nn.Module:
    """Return a fresh discriminator for crops of a size."""
    if section.kind == "style":
        return StyleDiscriminator(size=size, max_channels=section.channels)
    return PatchDiscriminator(channels=section.channels, layers=section.layers)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients through a network, and none into it."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
