"""Parts of a run done again, for ``verify --recompute`` and ``retry``: with the model that its manifest names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vqtok.dataset.checking import Comparison
from vqtok.dataset.decoding import Recipe
from vqtok.dataset.documents import Manifest
from vqtok.dataset.folder import RunFolder
from vqtok.dataset.pool import Pool
from vqtok.dataset.tables import Columns
from vqtok.errors import MismatchError
from vqtok.images import Limits

if TYPE_CHECKING:
    from vqtok.image_tokenizer import ImageTokenizer


def recipe_of(manifest: Manifest, tokenizer: ImageTokenizer) -> Recipe:
    """Return how a run turns its images into pixels.

    Raises:
        MismatchError: the model is not the run's.
    """
    from vqtok.dataset.encoding import settings_of
    from vqtok.grid import GridTokenizer

    wanted = manifest.settings
    if isinstance(tokenizer, GridTokenizer):
        tokenizer.tile = wanted.tile or None
    recipe = Recipe(
        tokenizer.spec,
        wanted.crop,
        wanted.size,
        wanted.seed,
        wanted.source_hash,
        Limits(**wanted.limits),
        Columns(**manifest.columns),
    )
    came = settings_of(tokenizer, recipe, wanted.repro, wanted.shard_size)
    if came != wanted:
        rows = manifest.differences(manifest.model_copy(update={"settings": came}))
        raise MismatchError(
            f"expected the model and precision of the run, but they differ in {'; '.join(rows)}: name it with -m"
        )
    return recipe


def recompute_run(folder: RunFolder, manifest: Manifest, tokenizer: ImageTokenizer, count: int) -> Comparison:
    """Tokenize images of a run again, spread evenly over it, and compare.

    Images that cannot be read any more are not compared.
    """
    from vqtok.dataset.encoding import encode_shard, level

    recipe, settings, comparison = recipe_of(manifest, tokenizer), manifest.settings, Comparison()
    with Pool(recipe, 1) as pool, level(settings.repro):
        for number, places in _spread(folder, manifest, count):
            before = folder.tokens(number)
            items = folder.items(manifest, number)
            chosen = [items[i] for i in places] if places else items
            comparison.add(before, encode_shard(tokenizer, pool.decode(chosen), settings).tokens, folder.ties(number))
    return comparison


def _spread(folder: RunFolder, manifest: Manifest, count: int) -> Iterator[tuple[int, list[int]]]:
    """Yield shard numbers with the places of images, evenly spaced; no places stand for all."""
    if count >= manifest.images:
        yield from ((number, []) for number in range(len(manifest.chunks)))
        return
    wanted = [manifest.images * i // count for i in range(count)]
    start = 0
    for number in range(len(manifest.chunks)):
        length = folder.count(manifest, number)
        if places := [i - start for i in _within(wanted, start, start + length)]:
            yield number, places
        start += length


def _within(numbers: Iterable[int], start: int, stop: int) -> list[int]:
    return [number for number in numbers if start <= number < stop]
