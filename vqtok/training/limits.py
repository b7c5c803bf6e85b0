"""From which numbers on a training is said to go wrong: data, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Limit:
    """A number and why it is this one."""

    value: float
    why: str


# Rows are those of metrics.jsonl, each of which holds means over the steps since the row before.
LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "recent": Limit(3, "rows whose median is what holds now: one odd row, as after a restart, decides nothing"),
        "long": Limit(5, "rows for what is normal for a moment: a discriminator ahead, a slow disk"),
        "collapse.warmup": Limit(500, "steps: a codebook with random codes starts at a few and spreads from there"),
        "collapse.usage": Limit(0.1, "share of the codes: below it nine in ten cost memory and tell nothing"),
        "collapse.rising": Limit(1.1, "factor between one median of three rows and the next: it is on its way up"),
        "collapse.fell": Limit(0.5, "part of its highest: batches of other shapes change usage by less"),
        "collapse.perplexity": Limit(3.0, "latents that share three codes say less than two bits a token"),
        "collapse.small": Limit(0.5, "share: where more codes are in use the codebook itself is that small"),
        "winning.loss": Limit(0.05, "of the hinge loss: nearly every patch lies beyond the hinge and has no gradient"),
        "winning.gap": Limit(3.0, "real less fake logit; the hinge asks for 2"),
        "winning.weight": Limit(1000.0, "the adaptive weight lies about 1 in trainings that work, and ends at 8,000"),
        "asleep.rows": Limit(10, "rows: the first steps of a fresh discriminator look like this"),
        "asleep.gap": Limit(0.02, "between real and fake logits, beside 0.1 and more of a discriminator that learns"),
        "asleep.loss": Limit(0.6, "logits of 0 give 1 (hinge) or 0.69 (logistic); a small loss is not asleep"),
        "dead.ratio": Limit(1e-5, "gradient norm over loss; trainings that work lie above 0.01"),
        "exploding.factor": Limit(50.0, "over the median of all rows before; a discriminator's start gives about ten"),
        "exploding.rows": Limit(10, "rows before that the median needs, so that the start of a training passes"),
        "stalled.validations": Limit(10, "validations without a gain"),
        "stalled.psnr": Limit(0.02, "dB: less than two seeds of one recipe differ by"),
        "stalled.lpips": Limit(0.001, "of a distance of 0.05 to 0.5"),
        "stalled.annealed": Limit(0.1, "part of the highest learning rate: below it the schedule ends the learning"),
        "overfitting.psnr": Limit(0.3, "dB below the best, in each of the last validations: more than they scatter"),
        "overfitting.validations": Limit(3, "validations in a row"),
        "overfitting.loss": Limit(0.95, "part of the training loss at the best validation: the fit still improves"),
        "diverging.psnr": Limit(1.0, "dB below the best while the training loss is no better either"),
        "diverging.validations": Limit(2, "validations in a row"),
        "fell.psnr": Limit(0.5, "dB below what it was before the discriminator: more than texture has to cost"),
        "slow.share": Limit(0.2, "of the time spent on waiting for images: a fifth of the machine idles"),
        "failures.rows": Limit(10, "rows without a new failure, and later ones are news again"),
    }
)


def limit(name: str) -> float:
    """Return the number of a limit.

    >>> limit("fell.psnr")
    0.5
    """
    return LIMITS[name].value


def rows(name: str) -> int:
    """Return a limit that counts rows or validations.

    >>> rows("recent")
    3
    """
    return int(LIMITS[name].value)
