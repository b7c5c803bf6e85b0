"""What helps against each kind of alarm: words with keys of the recipe, for ``vqtok train --set KEY=VALUE``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

# {rate} is half the highest learning rate so far.
_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "nan": (
            "go on from the last checkpoint with --set optimizer.learning_rate={rate} --set optimizer.clip=1.0; where "
            "only the gradient is not finite, half precision is too narrow for it: --set precision=float32"
        ),
        "validation-nan": (
            "weights are not finite, or too large: go on from an earlier checkpoint with "
            "--set optimizer.learning_rate={rate} --set optimizer.clip=1.0"
        ),
        "collapse": (
            "move unused codes onto latents: --set model.options.revive_below=0.1 (EMA codebooks); start k-means from "
            "latents that mean something: a first stage with --set stages.0.quantize=false; hold the encoder back: "
            "--set optimizer.learning_rate={rate}; or ask for many codes: --set losses.entropy=0.1 with the penalty "
            "'entropy' in model.options.penalties"
        ),
        "discriminator-winning": (
            "slow it down: --set discriminator.learning_rate={tenth}; make it smooth: --set discriminator.r1=10.0 or "
            "--set discriminator.lecam=0.001; let it in gently: --set discriminator.ramp=5000, and with a later "
            "discriminator.start"
        ),
        "discriminator-asleep": (
            "let it learn faster: --set discriminator.learning_rate={peak}; with less of a penalty: "
            "--set discriminator.r1=0.0; or give it more to work with: --set discriminator.channels=128"
        ),
        "dead-gradients": (
            "see that some loss reaches the weights (stages.N.frozen, losses of weight 0); half precision rounds small "
            "gradients to nothing: --set precision=float32"
        ),
        "exploding-gradients": (
            "--set optimizer.clip=1.0 --set optimizer.learning_rate={rate}; with a longer --set optimizer.warmup=2000"
        ),
        "stalled": (
            "let the learning rate fall: --set optimizer.final=0.01; where it has, the model is as good as it gets: "
            "stop, or take a larger one (model.options)"
        ),
        "overfitting": (
            "the best weights so far are kept in model/; train on more images (data.train) or stop earlier, "
            "--set optimizer.weight_decay=0.01 helps a little"
        ),
        "diverging": "start again with --set optimizer.learning_rate={rate} --set optimizer.clip=1.0",
        "psnr-fell": (
            "some dB are the price of texture: look at pictures/; if they look no better, weigh it less: "
            "--set discriminator.weight=0.1 --set discriminator.ramp=5000"
        ),
        "slow-data": (
            "decode in more processes: --set data.workers=8; keep decoded images: --set data.cache=memory, or a folder"
        ),
        "failures": (
            "failed images are replaced by others; metrics.jsonl counts them; to stop at a few: "
            "--set data.allowed_failures=0.001"
        ),
    }
)


def remedy(name: str, learning_rate: float) -> str:
    """Return what helps against a kind of alarm.

    Args:
        name: of the alarm.
        learning_rate: the highest so far.

    >>> remedy("exploding-gradients", 8e-4).split(";")[0]
    '--set optimizer.clip=1.0 --set optimizer.learning_rate=0.0004'
    """
    rate = learning_rate or 1e-4
    return _REMEDIES[name].format(rate=f"{rate / 2:.2g}", tenth=f"{rate / 10:.2g}", peak=f"{rate:.2g}")


def recipe_changes() -> list[str]:
    """Return every ``KEY=VALUE`` that a remedy names, so that a test can hold them beside the recipe.

    >>> "precision=float32" in recipe_changes()
    True
    """
    found = (re.findall(r"--set ([^\s=]+=[^\s;:,)]+)", remedy(name, 1e-3)) for name in _REMEDIES)
    return sorted({change for changes in found for change in changes})
