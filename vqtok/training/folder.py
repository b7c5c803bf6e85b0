"""The folder of a training: what lies where, whose it is, and what may be thrown away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vqtok.errors import InputError, MismatchError, OutputError
from vqtok.store.commit import commit, output_errors
from vqtok.store.lock import locked
from vqtok.store.temporary import remove_stale_temporaries
from vqtok.training.log import NAME as METRICS
from vqtok.training.recipe import Recipe, read_recipe, recipe_text

LOCK = "LOCK"


class RunFolder:
    """Names in a run folder.

    Args:
        path: the folder; it need not exist yet.

    Attributes:
        recipe: the recipe with every default written out.
        model: model folder with the best weights.
        checkpoints: folder of checkpoints.
        pictures: folder of validation pictures.
        board: folder of TensorBoard's files.

    >>> RunFolder("run").model.as_posix()
    'run/model'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.recipe, self.model = self.path / "recipe.toml", self.path / "model"
        self.checkpoints, self.pictures = self.path / "checkpoints", self.path / "pictures"
        self.board = self.path / "tensorboard"

    def check_begun(self) -> None:
        """Raise InputError unless a training has begun here."""
        if not self.recipe.exists():
            raise InputError(f"{str(self.path)!r}: expected a training to go on with, found none: leave out --resume")

    def check(self, recipe: Recipe, *, overwrite: bool = False) -> None:
        """Refuse what `claim` would refuse, before any work is done; nothing is written.

        Raises:
            MismatchError: of another recipe; the message names what differs.
            OutputError: it holds something else.
        """
        if not self.path.exists():
            return
        with output_errors(self.path):
            self._refuse_others()
        if overwrite:
            return
        if not self.recipe.exists():
            if self.checkpoints.exists():
                raise MismatchError(
                    f"{str(self.path)!r}: expected recipe.toml beside checkpoints, found none: put it back, choose "
                    "another folder, or --overwrite"
                )
            return
        before = read_recipe(self.recipe)
        if differing := differences(before.model_dump(mode="json"), recipe.model_dump(mode="json")):
            raise MismatchError(
                f"{str(self.path)!r}: expected the recipe that this training began with, got another: "
                f"{'; '.join(differing[:5])}. Choose another folder, or --overwrite"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process; a new one in which nothing came to be goes again.

        Raises:
            OutputError: another process trains here, or the folder cannot be made.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        lock = self.path / LOCK
        try:
            with output_errors(self.path):
                os.makedirs(self.path, exist_ok=True)
            with locked(lock):
                remove_stale_temporaries(self.path)
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
        finally:
            for folder in made:
                with suppress(OSError):  # it has something in it by now
                    folder.rmdir()

    def claim(self, recipe: Recipe, *, overwrite: bool = False) -> None:
        """Make this the folder of a recipe that `check` has let through.

        Raises:
            OutputError: the disk refused.
        """
        if overwrite:
            self.clear()
        if not self.recipe.exists():
            commit(self.recipe, recipe_text(recipe).encode())

    def clear(self) -> None:
        """Forget the training that is here; nothing but its own files is removed, and the recipe last.

        Raises:
            OutputError: the folder holds something else, or the operating system refused.
        """
        with output_errors(self.path):
            self._refuse_others()
            for folder in (self.checkpoints, self.pictures, self.board, self.model):
                if folder.exists():
                    shutil.rmtree(folder)
            for file in (self.path / METRICS, self.recipe):
                file.unlink(missing_ok=True)

    def _refuse_others(self) -> None:
        paths = (self.recipe, self.model, self.checkpoints, self.pictures, self.board)
        ours = {METRICS, LOCK, *(path.name for path in paths)}
        others = sorted(name for name in os.listdir(self.path) if name not in ours and not name.endswith(".tmp"))
        if others:
            raise OutputError(
                f"{str(self.path)!r}: expected a new folder or a training's, found {others[0]!r} in it: choose another"
            )


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """Return what differs between two JSON values, by key.

    >>> differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 2, "c": [1, 3]}})
    ['a.b: 1 before, 2 now', 'a.c.1: 2 before, 3 now']
    """
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        before, after = (dict(enumerate(x)) for x in (before, after))
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [f"{name}: {json.dumps(before)} before, {json.dumps(after)} now"]
    keys = [*before, *(key for key in after if key not in before)]
    return [x for key in keys for x in differences(before.get(key), after.get(key), f"{name}.{key}".lstrip("."))]
