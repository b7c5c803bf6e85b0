"""Carries out attacks, each in a process of its own, and says as JSON what came of them.

``python -m tests.hostile.siege FOLDER each|all FIRST STEP``. What is dear (torch, a model) is loaded once; each
attack is a fork, once for the library and once for the command, so that its time, its memory and its end are its own.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import vqtok
from tests.hostile.attack import Attack, good_png, save_model
from tests.hostile.attacks import every, one_of_each
from vqtok.cli import main
from vqtok.dataset.decoding import Recipe, decode_item
from vqtok.dataset.exports import read_foreign
from vqtok.dataset.folder import RunFolder
from vqtok.dataset.listing import list_items
from vqtok.dataset.tables import Columns
from vqtok.errors import VqtokError
from vqtok.images import PreprocessSpec, decode

KINDS = {"missing", "unreadable", "empty", "format", "truncated", "corrupt", "too_large", "too_many_pixels", "depth"}
KINDS |= {"memory", "decode", "duplicate", "latents", "timeout", "worker_crash"}
PATIENCE = 100.0
BASE = 0  # KiB of a fork that does nothing
_HANG, _UNKNOWN = 254, 253


def images_of(path: str) -> None:
    columns = Columns(key="key" if path.endswith("parquet") else "")
    for item in list_items([path], columns):
        decode_item(item, Recipe(PreprocessSpec(), columns=columns))


CALLS: dict[str, Callable[[str], object]] = {
    "decode": decode,
    "load_tokens": vqtok.load_tokens,
    "load": vqtok.load,
    "load_with": lambda path: vqtok.load(path, config="c.yaml"),
    "read_foreign": lambda path: list(read_foreign(Path(path), 64, 8, 100)),
    "list_items": images_of,
}


def alone(work: Callable[[], int], said: Path, prepare: Callable[[], None] | None) -> tuple[int, float, int]:
    """Run something in a fork: exit code, seconds of computing, KiB at the most."""
    child = os.fork()
    if child == 0:
        os.setsid()
        for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
            path = os.devnull if number == 0 else said.with_suffix(f".{number}")
            os.dup2(os.open(path, mode | (os.O_CREAT | os.O_TRUNC if number else 0), 0o666), number)
        try:
            if prepare:
                prepare()
            code = work()
        except BaseException:
            with open(said.with_suffix(".2"), "a") as file:
                file.write(f"Traceback (of the siege)\n{traceback.format_exc()}")
            code = _UNKNOWN
        os._exit(code)
    return wait(child)


def wait(child: int) -> tuple[int, float, int]:
    deadline = time.monotonic() + PATIENCE
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.wait4(child, 0)
            return _HANG, PATIENCE, 0
        time.sleep(0.002)


def call(attack: Attack) -> int:
    """Give the file to the library: 0, or the exit code of the error."""
    try:
        CALLS[attack.api](attack.target)
    except VqtokError as error:
        quiet = str(error).isprintable() or attack.api != "decode"  # of an image, one line
        return error.exit_code if quiet else _UNKNOWN
    return 0


def command(line: list[str]) -> int:
    sys.argv = ["vqtok", *line]
    try:
        main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


def lay(attack: Attack, place: Path) -> dict[str, bytes]:
    """Put the attack's files and a sound image into an empty folder, and return what is there."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "in").mkdir(parents=True)
    os.chdir(place)
    files = {"in/good.png": good_png(), **attack.files}
    for name, data in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)
    return files


def carry_out(attack: Attack, place: Path, model: Path, golden: np.ndarray) -> dict[str, object]:
    """Attack the library and the command, and judge."""
    wrong: list[str] = []
    said = place.parent / "said"
    row: dict[str, object] = {"kind": attack.kind, "name": attack.name}
    if attack.api:
        lay(attack, place)
        allowed = attack.codes | {0, 3, 4} if attack.api in ("decode", "list_items") else attack.codes
        ends = alone(lambda: call(attack), said, attack.prepare)
        row["api"] = ends
        wrong += judge("library", ends, allowed, said)
    files = lay(attack, place)
    line = [word.replace("{m}", str(model)) for word in attack.line]
    ends = alone(lambda: command(line), said, attack.prepare)
    row["cli"] = ends
    wrong += judge("command", ends, attack.codes, said)
    if attack.prepare is None:
        wrong += [f"{name!r} was changed" for name, data in files.items() if Path(name).read_bytes() != data]
    for path in place.rglob("*"):
        if path.name == "BOMB" or ".tmp" in path.name:
            wrong.append(f"left {path.name!r}")
    run = place / "run"
    if ends[0] in (0, 3) and (run / "index.json").exists():
        wrong += judge_run(run, golden)
    return {**row, "wrong": wrong}


def judge(who: str, ends: tuple[int, float, int], allowed: frozenset[int], said: Path) -> list[str]:
    code, seconds, size = ends
    words = b"".join(said.with_suffix(x).read_bytes() for x in (".1", ".2")).decode("utf-8", "replace")
    wrong = []
    if code not in allowed:
        wrong.append(f"{who}: exit {code} instead of {sorted(allowed)}: {words[-600:]}")
    if "Traceback" in words:
        wrong.append(f"{who}: traceback: {words[-1500:]}")
    if seconds >= 5:
        wrong.append(f"{who}: {seconds:.1f} s")
    if size > BASE + 200 * 1024:
        wrong.append(f"{who}: {(size - BASE) // 1024} MB")
    return wrong


def judge_run(path: Path, golden: np.ndarray) -> list[str]:
    """Check that the sound image has its tokens, and that each image that failed has one row of a known kind."""
    folder, wrong = RunFolder(path), []
    manifest = folder.manifest()
    tokens, failed = folder.tokens(0), folder.read("failures", 0)
    sound = next((row.ids for row in tokens if row.keys[0] in ("good.png", "in/good.png")), None)
    if sound is None or not np.array_equal(sound, golden):
        wrong.append("the sound image beside it has other tokens")
    names = [str(row["key"]) for row in failed]
    if len({*names}) != len(names) or len(names) + len(tokens) != manifest.images:
        wrong.append(f"{manifest.images} images, {len(tokens)} in the shard, failed: {names}")
    return wrong + [f"a failure of kind {row['kind']!r}" for row in failed if row["kind"] not in KINDS]


def besiege(place: Path, attacks: list[Attack] | None, first: int, step: int) -> None:
    """Carry out attacks and print a line of JSON for each."""
    global BASE
    torch.set_num_threads(1)
    model = place / "model"
    save_model(model)
    tokenizer = vqtok.load(model)
    (place / "good.png").write_bytes(good_png())
    golden = tokenizer.tokenize([place / "good.png"]).ids
    for name in ("convert", "inspect", "tokenize", "verify"):
        importlib.import_module(f"vqtok.cli.{name}")
    BASE = alone(lambda: 0, place / "said", None)[2]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    for attack in islice(attacks or every(), first, None, step):
        out.write(json.dumps(carry_out(attack, place / "place", model, golden)) + "\n")


if __name__ == "__main__":
    where, what, start, stride = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    besiege(Path(where).resolve(), one_of_each() if what == "each" else None, int(start), int(stride))
