"""How a training that goes wrong looks in numbers: one function a kind, each giving what was seen, or None.

``active`` tells that the alarm stands: then the question is whether it still holds, with less to ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from vqtok.training.history import History, Validation
from vqtok.training.limits import limit, rows

Seen = Callable[[History, bool], str | None]


@dataclass(frozen=True, slots=True)
class Symptom:
    """A kind of alarm.

    Attributes:
        name: its stable word.
        events: kinds of rows after which it is looked for.
        seen: what says whether it is there.
        clears: rows in a row without it, and it is over.
    """

    name: str
    events: tuple[str, ...]
    seen: Seen
    clears: int = 3


def not_finite(history: History, active: bool) -> str | None:
    """Name what is not finite; an infinite PSNR is a picture that lost nothing."""
    wrong = {
        name: value
        for name, value in history.row.items()
        if not math.isfinite(value) and not (name.startswith(("psnr", "images_per_second")) and value > 0)
    }
    if not wrong:
        return None
    named = sorted(wrong, key=lambda name: not name.startswith("losses."))
    where = "" if named[0].startswith(("losses.", "psnr")) else ", while every loss is finite"
    return f"not finite: {', '.join(f'{name} {wrong[name]}' for name in named)}{where}"


def collapse(history: History, active: bool) -> str | None:
    """Find a codebook of which few codes are used, or fewer and fewer."""
    if history.since("usage") < limit("collapse.warmup"):
        return None
    usage, perplexity = history.recent("usage"), history.recent("perplexity")
    if usage is None:
        return None
    most, widest = history.highest.get("usage", usage), history.highest.get("perplexity", 0.0)
    words = "" if perplexity is None else f", perplexity {perplexity:.3g}"
    before = median(history.last("usage", 2 * rows("recent"))[: rows("recent")] or [0.0])
    if usage < limit("collapse.usage") and (active or usage <= limit("collapse.rising") * before):
        return f"{usage:.1%} of the codes are used{words}, and it is not rising"
    if usage < limit("collapse.fell") * most:
        return f"codes in use fell from {most:.1%} to {usage:.1%}{words}"
    if perplexity is None:
        return None
    if perplexity < limit("collapse.fell") * widest:
        return f"perplexity fell from {widest:.4g} to {perplexity:.4g}, {usage:.1%} of the codes are used"
    if perplexity < limit("collapse.perplexity") and usage < limit("collapse.small"):
        return f"perplexity is {perplexity:.3g}: nearly all latents share a few codes"
    return None


def discriminator_winning(history: History, active: bool) -> str | None:
    """Find a discriminator that tells real from made without effort."""
    long = rows("long")
    for name in ("adaptive_weight", "weight"):
        weights = history.last(f"discriminator.{name}", long)
        if weights and min(weights) >= limit("winning.weight"):
            return f"the adaptive weight is {weights[-1]:.4g}: the discriminator gives hardly any gradient"
    losses, gap = history.last("discriminator.loss", long), _gap(history, long)
    if not losses or gap is None or max(losses) >= limit("winning.loss") or gap <= limit("winning.gap"):
        return None
    real, fake = (history.series[f"discriminator.{name}"][-1] for name in ("real", "fake"))
    return f"the discriminator's loss is {median(losses):.3g}, its logits {real:.3g} for real and {fake:.3g} for made"


def discriminator_asleep(history: History, active: bool) -> str | None:
    """Find a discriminator that says the same of real and made images."""
    many = rows("asleep.rows")
    losses, gap = history.last("discriminator.loss", many), _gap(history, many)
    if not losses or gap is None or abs(gap) >= limit("asleep.gap") or min(losses) <= limit("asleep.loss"):
        return None
    return f"real and made images get logits {abs(gap):.2g} apart over {many} rows, loss {median(losses):.3g}"


def _gap(history: History, count: int) -> float | None:
    """Return the median of real less fake logits over rows."""
    real, fake = (history.last(f"discriminator.{name}", count) for name in ("real", "fake"))
    return median(a - b for a, b in zip(real, fake, strict=True)) if real and fake else None


def dead_gradients(history: History, active: bool) -> str | None:
    """Find gradients of nothing under a loss of something."""
    norm, total = history.recent("gradient_norm"), history.recent("total")
    if norm is None or total is None or norm > limit("dead.ratio") * abs(total) or total == 0:
        return None
    return f"the gradient's norm is {norm:.3g} while the loss is {total:.3g}"


def exploding_gradients(history: History, active: bool) -> str | None:
    """Find gradients far larger than all before."""
    norm, before = history.recent("gradient_norm"), history.norms
    if norm is None or len(before) < rows("exploding.rows"):
        return None
    usual = before[len(before) // 2]
    if norm <= limit("exploding.factor") * usual:
        return None
    return f"the gradient's norm is {norm:.3g}, it was {usual:.3g}"


def stalled(history: History, active: bool) -> str | None:
    """Find validations that gain nothing while the learning rate is still high; PSNR may, once texture is asked for."""
    count, rate = rows("stalled.validations"), history.recent("learning_rate")
    phase = history.validations[history.adversarial or 0 :]
    if rate is not None and rate < limit("stalled.annealed") * history.peak_rate:
        return None
    gains = {} if history.adversarial is not None else _gains(phase, count, "psnr", +1)
    names = {name for v in phase[-count:] for name in v.metrics if "lpips" in name.replace("-", "").replace("_", "")}
    for name in names:
        gains |= _gains(phase, count, name, -1)
    if not gains or any(
        gain >= limit("stalled.psnr" if name == "psnr" else "stalled.lpips") for name, gain in gains.items()
    ):
        return None
    return f"no gain in {count} validations: {', '.join(f'{name} {gain:+.3g}' for name, gain in sorted(gains.items()))}"


def _gains(phase: list[Validation], count: int, name: str, sign: int) -> dict[str, float]:
    """Return by how much the last validations are better than the best before them, nothing before there are any."""
    earlier, later = (
        [sign * v.metrics[name] for v in part if name in v.metrics] for part in (phase[:-count], phase[-count:])
    )
    return {name: max(later) - max(earlier)} if earlier and len(later) == count else {}


def overfitting(history: History, active: bool) -> str | None:
    """Find validations that fall while the training's own loss still does."""
    found = _below_best(history, rows("overfitting.validations"), limit("overfitting.psnr"))
    if found is None or not _fits_better(*found):
        return None
    best, last = found
    return (
        f"validation fell from {best.metrics['psnr']:.2f} dB (step {best.step:,}) to {last.metrics['psnr']:.2f} dB "
        f"while the loss of the training images fell from {best.fit:.3g} to {last.fit:.3g}"
    )


def diverging(history: History, active: bool) -> str | None:
    """Find validations that fall and training losses that do not."""
    found = _below_best(history, rows("diverging.validations"), limit("diverging.psnr"))
    if found is None or _fits_better(*found):
        return None
    best, last = found
    return f"validation fell from {best.metrics['psnr']:.2f} dB (step {best.step:,}) to {last.metrics['psnr']:.2f} dB"


def _below_best(history: History, count: int, by: float) -> tuple[Validation, Validation] | None:
    """Return the best and the last validation if the last ones all lie below it and no discriminator is to blame."""
    known = [v for v in history.validations if "psnr" in v.metrics]
    if history.adversarial is not None or len(known) <= count:
        return None
    best = max(known, key=lambda v: v.metrics["psnr"])
    fallen = all(best.metrics["psnr"] - v.metrics["psnr"] > by for v in known[-count:])
    return (best, known[-1]) if fallen else None


def _fits_better(best: Validation, last: Validation) -> bool:
    return last.fit < best.fit - (1 - limit("overfitting.loss")) * abs(best.fit)


def psnr_fell(history: History, active: bool) -> str | None:
    """Find what a discriminator took from the PSNR."""
    start = history.adversarial
    known = [[v.metrics["psnr"] for v in part if "psnr" in v.metrics] for part in _parted(history.validations, start)]
    if not all(known) or max(known[0]) - known[1][-1] <= limit("fell.psnr"):
        return None
    return f"PSNR fell from {max(known[0]):.2f} to {known[1][-1]:.2f} dB since the discriminator started"


def _parted(validations: list[Validation], start: int | None) -> tuple[list[Validation], list[Validation]]:
    return (validations, []) if start is None else (validations[:start], validations[start:])


def slow_data(history: History, active: bool) -> str | None:
    """Find a training that waits for its images."""
    waits = history.last("data_wait", rows("long"))
    if not waits or median(waits) <= limit("slow.share"):
        return None
    speed = history.recent("images_per_second")
    return f"{median(waits):.0%} of the time is spent on waiting for images{f' ({speed:.4g} img/s)' if speed else ''}"


def failures(history: History, active: bool) -> str | None:
    """Find images that were refused in the last rows."""
    found = [*history.series.get("failures", ())][-rows("failures.rows") :]
    fresh = len(found) < rows("failures.rows")  # the count is missing while it is 0, and starts anew with a process
    if not found or found[-1] == 0 or (len({*found}) == 1 and not fresh):
        return None
    return f"{found[-1]:,.0f} images were refused so far"


_TRAIN, _VALIDATE = ("train",), ("validate",)
SYMPTOMS = (
    Symptom("nan", _TRAIN, not_finite),
    Symptom("validation-nan", _VALIDATE, not_finite, clears=1),
    Symptom("collapse", _TRAIN, collapse),
    Symptom("discriminator-winning", _TRAIN, discriminator_winning),
    Symptom("discriminator-asleep", _TRAIN, discriminator_asleep),
    Symptom("dead-gradients", _TRAIN, dead_gradients),
    Symptom("exploding-gradients", _TRAIN, exploding_gradients),
    Symptom("slow-data", _TRAIN, slow_data),
    Symptom("failures", _TRAIN, failures),
    Symptom("stalled", _VALIDATE, stalled, clears=1),
    Symptom("overfitting", _VALIDATE, overfitting, clears=2),
    Symptom("diverging", _VALIDATE, diverging, clears=2),
    Symptom("psnr-fell", _VALIDATE, psnr_fell, clears=2),
)
