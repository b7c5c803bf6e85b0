"""Exports hold what other programs read, and give back the token files they were made of, bit for bit."""

import json
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from vqtok.dataset.checking import check_all
from vqtok.dataset.exports import FORMATS, export, open_source, read_export, read_foreign
from vqtok.dataset.numbering import LAVIT, Numbering, chameleon
from vqtok.errors import ConfigError, InputError, IntegrityError, OutputError
from vqtok.store import save_tokens
from vqtok.types import Tokens

SHA = "ab" * 32
NUMBERINGS = {
    "raw": Numbering(),
    "offset": Numbering(offset=1000),
    "fuyu": Numbering(offset=7, begin=1, end=2, row_end=3),
    "lavit": LAVIT,
    "table": Numbering(table=[int(x) for x in np.random.default_rng(0).permutation(512)[:64] + 100], begin=3),
}


def tokens_of(n=5, vocab_size=64, seed=0, grids=None, prefix="k.v"):
    rng = np.random.default_rng(seed)
    grids = np.array([[1, 2, 3], [1, 4, 4], [2, 1, 2], [1, 1, 1], [1, 3, 5]])[:n] if grids is None else grids
    offsets = np.cumsum([0, *grids.prod(axis=1)])
    keys = tuple(f"{prefix}/ä {i}.jpg" for i in range(len(grids)))
    record = {"fingerprints": {"codebook": SHA}, "execution": {"device": "cpu"}, "created_by": "test"}
    return Tokens(
        rng.integers(0, vocab_size, offsets[-1]), offsets, grids, grids[:, 1:] * 8 - 3, vocab_size, keys, SHA, record
    )


def saved(tmp_path, tokens, source=True):
    hashes = np.random.default_rng(1).integers(0, 256, (len(tokens), 32), dtype=np.uint8) if source else None
    save_tokens(tmp_path / "a.vqt", tokens, source_sha256=hashes)
    return tmp_path / "a.vqt"


def target_of(folder, kind):
    endings = {"megatron": "x.bin", "bin": "x.bin", "webdataset": "x.tar"}
    return folder / endings.get(kind, f"x.{kind}")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", NUMBERINGS)
def test_there_and_back_is_the_same_file(kind, name, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    path = saved(tmp_path, tokens_of())
    target = target_of(tmp_path, kind)
    export(open_source(str(path)), target, kind, NUMBERINGS[name])
    (content,) = read_export(target)
    save_tokens(tmp_path / "b.vqt", content.tokens, source_sha256=content.source_sha256)
    assert (tmp_path / "b.vqt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_runs_of_a_dynamic_tokenizer_come_back(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    keep = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1], np.bool_)
    grids = np.array([[1, 2, 4], [1, 2, 3]])
    runs = Tokens(np.arange(keep.sum()), np.array([0, 4, 7]), grids, grids[:, 1:] * 8, 64, ("a", "b"), SHA, keep=keep)
    path = saved(tmp_path, runs)
    export(open_source(str(path)), target_of(tmp_path, kind), kind, Numbering(offset=5, begin=1))
    (content,) = read_export(target_of(tmp_path, kind))
    save_tokens(tmp_path / "b.vqt", content.tokens, source_sha256=content.source_sha256)
    assert (tmp_path / "b.vqt").read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match="row ends"):
        export(open_source(str(path)), tmp_path / "y.bin", "bin", Numbering(offset=5, row_end=1))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_in_an_export_is_found(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    target = target_of(tmp_path, kind)
    sidecar = export(open_source(str(saved(tmp_path, tokens_of()))), target, kind, Numbering())
    rng = np.random.default_rng(0)
    for name in [*sidecar.files, f"{target.name}.json"]:
        data = (tmp_path / name).read_bytes()
        for _ in range(30):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(IntegrityError):
                list(read_export(target))
        (tmp_path / name).write_bytes(data)
    list(read_export(target))


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_tokens_give_equal_bytes_and_nothing_is_overwritten_unasked(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    source = open_source(str(saved(tmp_path, tokens_of())))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        export(source, target_of(tmp_path / name, kind), kind, Numbering())
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    assert not [name for name in files[0] if name.startswith(".")]
    with pytest.raises(OutputError, match="overwrite"):
        export(source, target_of(tmp_path / "one", kind), kind, Numbering())
    export(source, target_of(tmp_path / "one", kind), kind, Numbering(), overwrite=True)


def test_nanogpt_reads_the_stream(tmp_path):
    tokens = tokens_of()
    export(open_source(str(saved(tmp_path, tokens))), tmp_path / "t.bin", "bin", Numbering(offset=9, end=3))
    data = np.memmap(tmp_path / "t.bin", np.uint16, "r")
    expected = [[*(s + 9).tolist(), 3] for s in tokens.sequences()]
    assert data.tolist() == [x for s in expected for x in s]


@pytest.mark.parametrize(
    ("vocab_size", "offset", "dtype", "ends"),
    [(65536, 0, "u16", True), (65536, 1, "u16", False), (1 << 18, 0, "auto", True), (1 << 18, 0, "u16", False)],
)
def test_ids_are_never_cut_short(vocab_size, offset, dtype, ends, tmp_path):
    tokens = replace(tokens_of(), vocab_size=vocab_size)
    tokens.ids[:] = vocab_size - 1
    source = open_source(str(saved(tmp_path, tokens)))
    if not ends:
        with pytest.raises(ConfigError, match="u32"):
            export(source, tmp_path / "t.bin", "bin", Numbering(offset=offset), dtype)
        assert [p.name for p in tmp_path.iterdir()] == ["a.vqt"]
        return
    sidecar = export(source, tmp_path / "t.bin", "bin", Numbering(offset=offset), dtype)
    assert set(np.fromfile(tmp_path / "t.bin", sidecar.dtype).tolist()) == {vocab_size - 1 + offset}


def test_megatrons_index_says_where_each_image_is(tmp_path):
    """The layout of Megatron-LM's IndexedDataset: magic, version, dtype code, counts, lengths, pointers, documents."""
    tokens = tokens_of()
    export(open_source(str(saved(tmp_path, tokens))), tmp_path / "t.bin", "megatron", Numbering(begin=64))
    raw = (tmp_path / "t.idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\0\0"
    version, code, count, documents = struct.unpack_from("<QBQQ", raw, 9)
    assert (version, code, count, documents) == (1, 8, 5, 6)
    lengths = np.frombuffer(raw, "<i4", count, 34)
    pointers = np.frombuffer(raw, "<i8", count, 34 + 4 * count)
    ends = np.frombuffer(raw, "<i8", documents, 34 + 12 * count)
    assert len(raw) == 34 + 12 * count + 8 * documents
    assert ends.tolist() == list(range(6))
    stream = (tmp_path / "t.bin").read_bytes()
    for i, expected in enumerate(tokens.sequences()):
        found = np.frombuffer(stream, "<u2", lengths[i], pointers[i])
        assert found.tolist() == [64, *expected.tolist()]


def test_parquet_is_what_datasets_and_duckdb_read(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    tokens = tokens_of()
    export(open_source(str(saved(tmp_path, tokens))), tmp_path / "t.parquet", "parquet", Numbering())
    table = parquet.read_table(tmp_path / "t.parquet", page_checksum_verification=True)
    assert str(table.schema.field("tokens").type) == "list<element: uint16>"
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == list(tokens.keys)
    assert [row["tokens"] for row in rows] == [s.tolist() for s in tokens.sequences()]
    assert [[row[x] for x in ("codebooks", "h", "w")] for row in rows] == tokens.grids.tolist()
    assert json.loads(parquet.read_schema(tmp_path / "t.parquet").metadata[b"vqtok"])["vocab_size"] == 64


def test_webdataset_members_share_a_name_without_dots(tmp_path):
    export(open_source(str(saved(tmp_path, tokens_of()))), tmp_path / "t.tar", "webdataset", Numbering())
    with tarfile.open(tmp_path / "t.tar") as tar:
        names = [member.name for member in tar]
        assert {member.mtime for member in tar} == {0}
    stems = [name.split(".", 1) for name in names]
    assert [ending for _, ending in stems] == ["npy", "json"] * 5
    assert len({stem for stem, _ in stems}) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        Numbering(begin=63),
        Numbering(offset=5, begin=5),
        Numbering(offset=9, begin=1, end=1),
        Numbering(table=[1, 2]),
        Numbering(table=[*range(63), 0]),
        Numbering(table=[*range(64)], end=63),
    ],
)
def test_ids_that_could_mean_two_things_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong.check(64)


def test_sequences_of_another_numbering_are_damage():
    fuyu = NUMBERINGS["fuyu"]
    good = fuyu.sequence(np.arange(6), (1, 2, 3))
    assert fuyu.codes(good, (1, 2, 3), 64).tolist() == list(range(6))
    for i in (0, 4, len(good) - 1):
        bad = good.copy()
        bad[i] += 1
        with pytest.raises(IntegrityError):
            fuyu.codes(bad, (1, 2, 3), 64)
    with pytest.raises(IntegrityError):
        NUMBERINGS["table"].codes(np.array([3, 99]), (1, 1, 1), 64)
    with pytest.raises(IntegrityError):
        Numbering().codes(np.array([64]), (1, 1, 1), 64)


def test_chameleons_words():
    words = {"IMGIMG" + "".join("ABCDEFGHIJ"[int(d)] for d in str(i)) + "Z": 9000 - i for i in range(120)}
    numbering = chameleon({**words, "<racm3:break>": 1, "<eoss>": 2, "IMGIMGXX": 3}, 120)
    assert numbering.sequence(np.array([0, 10, 119]), (1, 1, 3)).tolist() == [1, 9000, 8990, 8881, 2]
    numbering.check(120)
    with pytest.raises(ConfigError, match="IMGIMGBCAZ"):
        chameleon({**words, "<racm3:break>": 1, "<eoss>": 2}, 121)


def test_llamagens_and_4ms_trees_and_titoks_lines(tmp_path):
    rng = np.random.default_rng(0)
    many, one = rng.integers(0, 100, (1, 2, 16)), rng.integers(0, 100, 9)
    (tmp_path / "in/n01").mkdir(parents=True)
    np.save(tmp_path / "in/0.npy", many)
    np.save(tmp_path / "in/n01/a.b.npy", one.astype(np.int16))
    (content,) = read_foreign(tmp_path / "in", 100, 16, 1000)
    assert content.tokens.keys == ("0#0", "0#1", "n01/a.b")
    assert content.tokens.grids.tolist() == [[1, 4, 4], [1, 4, 4], [1, 3, 3]]
    assert content.tokens.sizes.tolist() == [[64, 64], [64, 64], [48, 48]]
    np.testing.assert_array_equal(content.tokens.ids, np.concatenate([many.reshape(-1), one]))
    assert content.tokens.fingerprint == ""
    lines = [json.dumps({"class_id": i, "tokens": one[: 3 + i].tolist()}) for i in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    first, second = read_foreign(tmp_path / "t.jsonl", 100, 16, 2)
    assert [note["label"] for note in first.about.values()] == [0, 1]
    assert second.tokens.ids.tolist() == one[:5].tolist()


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"PK\3\4", "object", "huge", "float", "large"])
def test_hostile_arrays_are_refused(data, tmp_path):
    path = tmp_path / "a.npy"
    if data == "object":
        np.save(path, np.array([{}, 1], dtype=object), allow_pickle=True)
    elif data == "huge":
        head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
        path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head)
    elif data == "float":
        np.save(path, np.zeros(4))
    elif data == "large":
        np.save(path, np.array([100]))
    else:
        path.write_bytes(data)
    with pytest.raises((IntegrityError, InputError)):
        list(read_foreign(path, 100, 16, 9))


def test_a_run_in_several_shards_becomes_a_folder_and_labels_stay(tmp_path):
    from tests.faults.test_run import work

    work(tmp_path / "run")
    source = open_source(str(tmp_path / "run"))
    for kind in ("npz", "jsonl", "webdataset"):
        export(source, tmp_path / kind, kind, Numbering(offset=3))
        contents = list(read_export(tmp_path / kind))
        assert [len(content.tokens) for content in contents] == [3, 2, 2]
        assert contents[0].about == {f"{x}.jpg": {"label": ord(x)} for x in "abc"}
        for number, content in enumerate(contents):
            save_tokens(tmp_path / "b.vqt", content.tokens, source_sha256=content.source_sha256, overwrite=True)
            assert (tmp_path / "b.vqt").read_bytes() == (tmp_path / f"run/shards/0000{number}.vqt").read_bytes()
    (tmp_path / "run/shards/00001.json").unlink()
    with pytest.raises(InputError, match="shard 1"):
        open_source(str(tmp_path / "run"))
    assert check_all
