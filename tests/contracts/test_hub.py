"""Models from and to the Hugging Face Hub: its own client against a server of this test, and folders without it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import vqtok
from tests.parity.test_published_checkpoints import CASES, about
from vqtok.errors import ConfigError, InputError, MismatchError, OutputError, ResourceError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    tokenizer = vqtok.build("vqvae-tiny").eval()
    tokenizer.save(folder := tmp_path_factory.mktemp("saved") / "model")
    return tokenizer, folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Folders -------------------------------------------------------------------------------------------------------------


def test_folders_need_no_library_of_the_hub(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    tokenizer, folder = saved
    again = vqtok.Tokenizer.from_pretrained(folder)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.card.provenance["loaded_from"] == {
        "sha256": {name: sha256(folder / name) for name in ("config.json", "model.safetensors")}
    }
    with pytest.raises(ResourceError, match=r"pip install 'vqtok\[hub\]'"):
        vqtok.Tokenizer.from_pretrained("owner/name")
    with pytest.raises(ResourceError, match=r"pip install 'vqtok\[hub\]'"):
        tokenizer.push_to_hub("owner/name")


def test_unknown_keys_and_other_weights_are_refused(saved, tmp_path):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    for name, change in {
        "top": {"auto_map": {"AutoModel": "evil.Model"}},
        "inside": {"architecture": {**config["architecture"], "extra": 1}},
    }.items():
        (place := tmp_path / name).mkdir()
        (place / "config.json").write_text(json.dumps({**config, **change}))
        (place / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(ConfigError, match=r"auto_map|extra"):
            vqtok.Tokenizer.from_pretrained(place)


def test_pickles_are_never_opened(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"one \.safetensors, got none"):
        vqtok.ImageTokenizer.from_pretrained(tmp_path)


def test_published_folders_of_safetensors_are_opened():
    case = next(name for name in CASES if name.startswith("hf_janus_vq"))
    tokenizer = vqtok.ImageTokenizer.from_pretrained(CASES[case])
    assert tokenizer.fingerprint == vqtok.load(CASES[case]).fingerprint
    names = [about(case)["container"]["weights"], "config.json"]
    wanted = {"sha256": {name: sha256(CASES[case] / name) for name in names}}
    assert tokenizer.card.provenance["loaded_from"] == wanted


def test_another_class_a_revision_of_a_folder_and_no_folder_are_refused(saved, tmp_path):
    _, folder = saved
    with pytest.raises(MismatchError, match="expected a DynamicTokenizer"):
        vqtok.DynamicTokenizer.from_pretrained(folder)
    with pytest.raises(ConfigError, match="is a folder"):
        vqtok.Tokenizer.from_pretrained(folder, revision="main")
    with pytest.raises(InputError, match="found no folder"):
        vqtok.Tokenizer.from_pretrained(tmp_path / "missing")


# The hub's own client, and a server that has one repository -----------------------------------------------------------


class Repository(BaseHTTPRequestHandler):
    """Answers as the hub does for one repository, owner/name at COMMIT."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, files = self.path.split("?")[0], self.server.files
        self.server.asked.append(path)
        start = f"/owner/name/resolve/{COMMIT}/"
        rows = [{"rfilename": n, "type": "file", "path": n, "size": len(x), "oid": "0" * 40} for n, x in files.items()]
        if path.startswith("/api/models/owner/name/tree/"):
            self.answer(json.dumps(rows).encode())
        elif path.startswith("/api/models/owner/name"):
            self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": rows}).encode())
        elif path.startswith(start) and path.removeprefix(start) in files:
            self.answer(files[path.removeprefix(start)])
        else:
            self.answer(b"{}", 404)

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def server(files):
    """Serve files as the repository owner/name, and note what was asked for."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Repository)
    http.files, http.asked = files, []
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", http.asked
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


PROGRAM = """
import json, sys, vqtok
for cache, options in json.loads(sys.argv[1]):
    try:
        tokenizer = vqtok.Tokenizer.from_pretrained("owner/name", cache_dir=cache, **options)
    except vqtok.VqtokError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
    else:
        print(json.dumps([tokenizer.fingerprint, tokenizer.card.provenance["loaded_from"]]))
"""


def ask(endpoint, *questions):
    """Load several times in a process of its own: the hub's client reads its endpoint when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    words = json.dumps([(str(cache), options) for cache, options in questions])
    command = [sys.executable, "-c", PROGRAM, words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_repository_is_fetched_once_by_commit_and_nothing_else_of_it(saved, tmp_path):
    pytest.importorskip("huggingface_hub")
    tokenizer, folder = saved
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    others = {"modeling_evil.py": b"raise SystemExit(3)", "pytorch_model.bin": b"\x80", "sub/model.safetensors": b"x"}
    with server(files | others) as (endpoint, asked):
        offline = {"revision": COMMIT, "local_files_only": True}
        first, again, empty = ask(
            endpoint, (tmp_path, {"revision": "v1"}), (tmp_path, offline), (tmp_path / "empty", offline)
        )
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert first == [tokenizer.fingerprint, {"repo": "owner/name", "revision": COMMIT, "sha256": hashes}]
    assert again == first
    assert empty.startswith("InputError: 'owner/name': expected the Hugging Face Hub")
    fetched = [path for path in asked if "/resolve/" in path]
    assert {path.rpartition("/")[2] for path in fetched} == set(files)
    assert not any("evil" in path or ".bin" in path or "sub" in path for path in asked)


def test_a_repository_without_safetensors_is_refused_and_nothing_of_it_fetched(tmp_path):
    pytest.importorskip("huggingface_hub")
    with server({"config.json": b"{}", "pytorch_model.bin": b"\x80"}) as (endpoint, asked):
        (told,) = ask(endpoint, (tmp_path, {}))
    assert told.startswith("InputError")
    assert "got none" in told
    assert not any(".bin" in path for path in asked)


def test_uploads_are_the_model_folder(saved, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    tokenizer, folder = saved
    calls = []

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo, *, private, exist_ok):
            calls.append((repo, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message, revision, allow_patterns):
            calls.append({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            calls.append((repo_id, commit_message, revision, allow_patterns))
            return type("Commit", (), {"oid": COMMIT})

    monkeypatch.setattr(hub, "HfApi", Api)
    assert tokenizer.push_to_hub("owner/name", revision="dev", private=True, message="new") == COMMIT
    assert calls[0] == ("owner/name", True, True)
    assert calls[1] == {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    assert calls[2] == ("owner/name", "new", "dev", ["config.json", "model.safetensors"])


def test_what_the_hub_refuses_is_one_error(saved, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_, **__):
        raise hub.errors.HFValidationError("no such name")

    monkeypatch.setattr(hub.HfApi, "create_repo", refuse)
    with pytest.raises(OutputError, match="no such name"):
        saved[0].push_to_hub("owner/name")
