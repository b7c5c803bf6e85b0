"""The hostile corpus: at least 1,200 files and command lines of 104 numbered kinds, made from seeds.

1 to 36 are images, 37 to 62 files of tokens and archives, 63 to 76 checkpoints, 77 to 88 configurations, 89 to 104
command lines and surroundings. What each may end with stands beside it; `siege.py` carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.hostile import attack_checkpoints, attack_commands, attack_configs, attack_images, attack_tokens
from tests.hostile.attack import Attack

MAKERS: tuple[Callable[[], Iterator[Attack]], ...] = (
    *(attack_images.listed_images, attack_images.special_files),
    *(attack_tokens.listed_token_files, attack_tokens.arrays, attack_tokens.archives),
    *(attack_checkpoints.foreign_checkpoints, attack_configs.configurations, attack_configs.values),
    *(attack_commands.usage, attack_commands.names, attack_commands.outputs, attack_commands.surroundings),
)


def every(seeds: int = 12) -> Iterator[Attack]:
    """All attacks; ``seeds`` of each that has any."""
    for make in MAKERS:
        yield from make()
    for seed in range(seeds):
        yield from attack_images.seeded_images(seed)
    for seed in range(2 * seeds):
        yield from attack_tokens.seeded_token_files(seed)


def one_of_each() -> list[Attack]:
    """The first attack of each kind, in the order of the kinds."""
    found: dict[int, Attack] = {}
    for attack in every(1):
        found.setdefault(attack.kind, attack)
    return [found[kind] for kind in sorted(found)]
