"""A run as training data: every row once an epoch, by shards, the same after a restart, damage found before a row."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.faults.test_run import work
from vqtok.data import ShardSampler, TokenDataset
from vqtok.dataset.folder import RunFolder
from vqtok.dataset.numbering import Numbering
from vqtok.errors import ConfigError, InputError, IntegrityError
from vqtok.types import concatenate


@pytest.fixture
def run(tmp_path):
    work(tmp_path / "run")
    return tmp_path / "run"


def test_rows_are_the_runs(run):
    dataset = TokenDataset(run, Numbering(offset=10, end=1))
    tokens = concatenate([RunFolder(run).tokens(i) for i in range(3)])
    assert len(dataset) == len(tokens) == 7
    for i, row in enumerate(tokens):
        found = dataset[i]
        assert found["ids"].tolist() == [*(row.ids + 10).tolist(), 1]
        assert found["ids"].dtype == torch.int64
        assert (found["key"], found["grid"].tolist()) == (row.keys[0], row.grids[0].tolist())
    assert dataset[-1]["key"] == tokens.keys[-1]
    for index in (7, -8):
        with pytest.raises(IndexError):
            dataset[index]


def test_an_epoch_has_every_row_once_shard_by_shard_and_another_order(run):
    sampler = ShardSampler(TokenDataset(run), seed=4)
    epochs = [list(sampler) for _ in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    shard = np.repeat([0, 1, 2], [3, 2, 2])
    for epoch in epochs:
        assert np.count_nonzero(np.diff(shard[epoch])) == 2
    assert list(ShardSampler(TokenDataset(run), seed=4)) == epochs[0]
    assert list(ShardSampler(TokenDataset(run), shuffle=False)) == list(range(7))


@pytest.mark.parametrize("stop", [0, 1, 4, 6])
def test_a_restart_goes_on_with_the_same_rows(run, stop):
    whole = ShardSampler(TokenDataset(run), seed=1)
    expected = [*whole, *whole]
    first = ShardSampler(TokenDataset(run), seed=1)
    found = [row for row, _ in zip(first, range(stop), strict=False)]
    state = {"epoch": 0, "position": stop}
    second = ShardSampler(TokenDataset(run), seed=1)
    second.load_state_dict(state)
    assert [*found[:stop], *second, *second] == expected


def test_ranks_share_an_epoch_evenly(run):
    parts = [list(ShardSampler(TokenDataset(run), rank=rank, world_size=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len({row for part in parts for row in part}) == 6
    with pytest.raises(ConfigError):
        ShardSampler(TokenDataset(run), rank=3, world_size=3)


def test_a_loader_gives_batches_with_and_without_workers(run):
    found = []
    for workers in (0, 1):
        dataset = TokenDataset(run)
        loader = DataLoader(
            dataset,
            batch_size=3,
            sampler=ShardSampler(dataset, seed=2),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        found.append([(batch["ids"].tolist(), batch["key"]) for batch in loader])
    assert found[0] == found[1]
    assert [len(keys) for _, keys in found[0]] == [3, 3, 1]


def test_damage_is_found_before_a_row_and_an_unfinished_run_is_refused(run):
    path = run / "shards/00001.vqt"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    dataset = TokenDataset(run)
    assert dataset[0]["key"] == "a.jpg"
    with pytest.raises(IntegrityError, match="00001"):
        dataset[3]
    (run / "shards/00002.json").unlink()
    with pytest.raises(InputError, match="shard 2"):
        TokenDataset(run)


def test_ids_stay_on_disk(run):
    shard = TokenDataset(run)._shard(0)
    assert not shard.ids.flags.owndata
    assert not shard.ids.flags.writeable
    assert shard.ids.dtype == np.uint16
