"""Laws of a training's log and of its progress line: what was written comes back, whatever a killed process left."""

import io
import json
import math
import os

import pytest

from vqtok.errors import InputError, OutputError
from vqtok.training import log as module
from vqtok.training.log import Log, read_log
from vqtok.training.progress import Progress, duration


def row(step: int, **values) -> dict:
    return {"event": "train", "step": step, **values}


ROWS = [
    row(100, total=0.1 + 0.2),
    row(200, losses={"l2": 1e-300, "näme": 0.0}),
    {"event": "validate", "step": 200},
    row(300),
]


@pytest.fixture
def log(tmp_path):
    found = Log(tmp_path)
    for entry in ROWS:
        found.append(entry)
    return found


def test_rows_come_back_as_they_were(log):
    assert read_log(log.path) == log.rows() == ROWS
    assert log.path.read_bytes().count(b"\n") == len(ROWS)


def test_no_log_has_no_rows_and_is_none(tmp_path):
    log = Log(tmp_path)
    log.cut(5)
    assert log.rows() == []
    assert not log.path.exists()
    with pytest.raises(InputError, match=r"metrics\.jsonl.*vqtok train"):
        read_log(log.path)


@pytest.mark.parametrize(("value", "written"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_numbers_that_are_not_finite_are_words_that_json_can_hold(tmp_path, value, written):
    log = Log(tmp_path)
    log.append(row(1, total=value, losses={"l2": value}, several=[value, 1.0]))

    def refuse(word: str):
        raise AssertionError(word)

    (found,) = [json.loads(line, parse_constant=refuse) for line in log.path.read_text().splitlines()]
    assert found == row(1, total=written, losses={"l2": written}, several=[written, 1.0])


def test_a_row_is_one_write(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(module.os, "write", lambda _, data: written.append(bytes(data)) or len(data))
    Log(tmp_path).append(row(1, words="x" * 100_000))
    assert len(written) == 1
    assert written[0].endswith(b"}\n")


def test_a_write_that_is_cut_short_goes_on(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(module.os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    log = Log(tmp_path)
    log.append(row(1, words="x" * 100))
    assert log.rows() == [row(1, words="x" * 100)]


def test_a_line_that_was_cut_anywhere_is_passed_over_and_the_next_start_takes_it_away(log, tmp_path):
    whole = log.path.read_bytes()
    last = whole[: whole[:-1].rindex(b"\n") + 1]
    for length in range(len(last), len(whole)):
        log.path.write_bytes(whole[:length])
        complete = length == len(whole) - 1  # only its newline is missing
        assert read_log(log.path) == (ROWS if complete else ROWS[:-1]), length
        Log(tmp_path).append(row(400))
        assert read_log(log.path) == [*(ROWS if complete else ROWS[:-1]), row(400)]
    log.path.write_bytes(whole + b"\0\0\0")
    assert read_log(log.path) == ROWS


@pytest.mark.parametrize(
    "garbage",
    [b"{", b"[1]", b"3", b'"x"', b'{"event": "train"}', b'{"event": 1, "step": 2}', b'{"event": "train", "step": true}',
     b'{"event": "train", "step": 1.5}', b"\xff\xfe", b"[" * 100_000, b'{"event": "train", "step": 1}{}'],
)  # fmt: skip
def test_garbage_before_the_end_is_named_by_its_line(log, garbage):
    lines = log.path.read_bytes().splitlines()
    log.path.write_bytes(b"\n".join([*lines[:2], garbage, *lines[2:], b""]))
    with pytest.raises(InputError, match="line 3") as caught:
        read_log(log.path)
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) < 600


def test_a_cut_keeps_the_rows_up_to_a_step_byte_for_byte(log):
    lines = log.path.read_bytes().splitlines(keepends=True)
    lines[0] = b'{"event":"train",   "step": 100}\n'  # as somebody else may have written it
    log.path.write_bytes(b"".join(lines))
    for step, kept in ((300, 4), (299, 3), (200, 3), (199, 1), (99, 0)):
        log.cut(step)
        assert log.path.read_bytes() == b"".join(lines[:kept])
    assert [path.name for path in log.path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_cut_that_cuts_nothing_leaves_the_file_alone(log):
    before = log.path.stat()
    log.cut(300)
    Log(log.path.parent)
    after = log.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_cut_that_fails_leaves_the_log_as_it_was(log, monkeypatch):
    whole = log.path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqtok.store.commit.write_new_file", fail)
    with pytest.raises(OutputError, match="disk is full"):
        log.cut(100)
    assert log.path.read_bytes() == whole


def test_a_folder_that_is_gone_is_an_output_error(log, tmp_path):
    log.path.unlink()
    tmp_path.rmdir()
    with pytest.raises(OutputError, match="folder does not exist"):
        log.append(row(1))


# Progress ------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(marks: list[tuple[float, int]], total: int = 1000, first: int = 0) -> list[str]:
    """What is shown of steps that were done at some seconds."""
    now, stream = [0.0], io.StringIO()
    with Progress(total, first, stream=stream, clock=lambda: now[0]) as progress:
        for now[0], step in marks:
            progress.advance(step)
    return stream.getvalue().splitlines()


def test_elsewhere_there_is_a_line_every_half_minute():
    shown = lines_of([(float(i), i) for i in range(1, 101)])
    assert shown == [
        "step 30 of 1,000  0:16:10 left",
        "step 60 of 1,000  0:15:40 left",
        "step 90 of 1,000  0:15:10 left",
    ]


def test_the_time_left_counts_from_where_this_process_began():
    assert lines_of([(50.0, 600)], first=500) == ["step 600 of 1,000  0:03:20 left"]


def test_the_time_left_follows_a_stage_of_another_speed():
    fast, slow = [(30.0 * i, 300 * i) for i in range(1, 11)], [(300 + 30.0 * i, 3000 + 30 * i) for i in range(1, 21)]
    assert lines_of(fast + slow, total=6000)[-1] == "step 3,600 of 6,000  0:40:00 left"


def test_no_step_yet_has_no_time_left():
    assert lines_of([(31.0, 0)]) == ["step 0 of 1,000  time left not known yet"]


def test_numbers_stay_until_there_are_newer_ones_and_words_are_not_shown():
    stream = io.StringIO()
    times = iter([0.0, 1.0, 2.0, 40.0])
    progress = Progress(1000, stream=stream, clock=lambda: next(times))
    progress.show(row(10, total=0.5, usage=0.25, images_per_second=1234.0, losses={"l2": 1.0}))
    progress.show({"event": "validate", "step": 10, "psnr": 20.0})
    progress.show(row(20, total="nan"))
    assert stream.getvalue() == "step 20 of 1,000  loss nan  PSNR 20.00 dB  usage 25 %  1.23e+03 img/s  0:32:40 left\n"


def test_on_a_terminal_the_line_lives_and_alarms_stand_above_it():
    stream = Terminal()
    with Progress(100, 40, stream=stream) as progress:
        progress.show(row(50, total=0.125))
        progress.say("collapse\x1b[2J")
        progress.advance(60)
    text = stream.getvalue()
    assert "40/100" in text
    assert "collapse\\x1b[2J\n" in text
    assert progress._bar.n == 60


def test_a_reader_that_has_gone_away_stops_nothing():
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    Progress(10, stream=Closed()).say("hello")


def test_what_is_said_cannot_steer_a_terminal():
    stream = io.StringIO()
    Progress(10, stream=stream).say("a\x1b[2Jb\nc")
    assert stream.getvalue() == "a\\x1b[2Jb\\nc\n"


def test_durations():
    assert [duration(x) for x in (0, 0.4, 3599.6, 86400, 172799, 172800)] == [
        "0:00:00", "0:00:00", "1:00:00", "24:00:00", "47:59:59", "2 d 0 h",
    ]  # fmt: skip
