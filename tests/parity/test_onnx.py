"""What leaves torch as ONNX computes what vqtok does: codes equal but for near ties, pixels within 1e-4."""

import json

import pytest
import torch
from click.testing import CliRunner

import vqtok
from tests.parity.test_published_checkpoints import CASES, NOT_ONE_GRID, ROOT, expected, loaded, pixels
from vqtok.cli import group
from vqtok.errors import ConfigError, OutputError, ResourceError
from vqtok.exporting import has_decoder
from vqtok.standard_ops import FiniteScalar, NearestRow, standardize

ATOL = 1e-4


class Codes(torch.nn.Module):
    """A quantizer there and back, as a graph."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, latents):
        codes = self.quantizer.encode(latents)
        return codes, self.quantizer.decode(codes)


# Half a minute each: those that lie beside the repository are among the slow ones.
GRIDS = [
    pytest.param(case, marks=[] if ROOT / "tests" in folder.parents else [pytest.mark.slow])
    for case, folder in CASES.items()
    if not case.startswith(NOT_ONE_GRID)
]

QUANTIZERS = {
    "l2": lambda: vqtok.VectorQuantizer(6, 40),
    "cosine": lambda: vqtok.VectorQuantizer(6, 40, "cosine"),
    "unit latents": lambda: vqtok.VectorQuantizer(6, 40, unit_latents=True),
    "unit vectors": lambda: vqtok.VectorQuantizer(6, 40, unit_vectors=True),
    "ema": lambda: vqtok.EmaQuantizer(6, 40),
    "index": lambda: vqtok.IndexBackpropagationQuantizer(6, 40),
    "simvq": lambda: vqtok.SimQuantizer(6, 40),
    "fsq": lambda: vqtok.FiniteScalarQuantizer((8, 5, 7, 3, 4, 6)),
    "lfq": lambda: vqtok.LookupFreeQuantizer(6),
    "bsq": lambda: vqtok.BinarySphericalQuantizer(6),
    "residual": lambda: vqtok.ResidualQuantizer([vqtok.VectorQuantizer(6, 40), vqtok.VectorQuantizer(6, 40)]),
    "product": lambda: vqtok.ProductQuantizer([vqtok.VectorQuantizer(2, 40), vqtok.VectorQuantizer(4, 40)]),
    "gumbel": lambda: vqtok.GumbelQuantizer(6, 40, 6),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_standard_ops_give_the_quantizers_codes_and_vectors(kind):
    quantizer = QUANTIZERS[kind]().eval()
    for name, tensor in quantizer.named_parameters():
        tensor.data = torch.randn_like(tensor) if "codebook" in name else tensor.data
    latents = 2 * torch.randn(3, 50, 6)
    rows = torch.export.Dim("rows")
    graph = standardize(torch.export.export(Codes(quantizer), (latents,), dynamic_shapes=({1: rows},)).module())
    assert not any(word in str(node.target) for node in graph.graph.nodes for word in ("vqtok", "shift__"))
    for x in (latents, latents[:, :7]):
        codes, vectors = graph(x)
        wanted = quantizer.encode(x)
        assert wanted.unique().numel() > 5
        assert torch.equal(codes, wanted)
        torch.testing.assert_close(vectors, quantizer.decode(wanted), rtol=0, atol=1e-6)


def test_equal_scores_give_the_lowest_code():
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert NearestRow(codebook, "l2")(torch.tensor([[0.5, 0.5], [0.0, 3.0], [3.0, 0.0]])).tolist() == [0, 1, 0]


def test_the_first_of_equal_rows_is_named_whatever_their_scores():
    """Half a thousand copies of a few rows: a matrix product rounds them as their places in it say."""
    codebook = torch.randn(7, 19).repeat(73, 1)
    row = NearestRow(codebook, "l2")
    row.half_norms -= torch.arange(511) * 1e-6  # the last of the copies wins
    latents = torch.randn(200, 19)
    assert torch.equal(row(latents), vqtok.ops.nearest_code(latents, codebook))


def test_levels_begin_where_they_do_in_the_op():
    """At every threshold and one float32 below it, for all numbers of levels up to 17."""
    for count in range(3, 18):
        at = FiniteScalar((count,)).thresholds[0]
        x = torch.cat([at, torch.nextafter(at, torch.tensor(-torch.inf))])[:, None]
        wanted = vqtok.ops.finite_scalar(x, (count,))
        codes, vectors = FiniteScalar((count,))(x)
        assert torch.equal(codes, wanted.codes)
        assert torch.equal(vectors, wanted.vectors)


# With onnxruntime ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


def run(runtime, path, x):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = [x.name for x in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def check(runtime, folder, tokenizer, x):
    tokens = tokenizer.encode(x)
    assert torch.equal(run(runtime, folder / "encode.onnx", x), tokens.ids)
    back = run(runtime, folder / "decode.onnx", tokens.ids)
    torch.testing.assert_close(back, tokenizer.decode(tokens), rtol=0, atol=ATOL)
    return tokens.ids


@pytest.fixture(scope="module")
def exported(runtime, tmp_path_factory):
    """A small VQGAN with attention and a codebook among its latents, and its graphs by way of the command."""
    torch.manual_seed(3)
    tokenizer = vqtok.build("vqgan-tiny", vocab_size=64)
    tokenizer.train()(torch.rand(8, 3, 32, 32) * 2 - 1)  # starts the codebook by k-means
    root = tmp_path_factory.mktemp("onnx")
    tokenizer.eval().save(root / "model")
    result = CliRunner().invoke(group, ["convert", "model", str(root / "model"), str(root / "graphs"), "--to", "onnx"])
    assert result.exit_code == 0, result.output
    return tokenizer, root / "graphs"


@pytest.mark.timeout(400)
def test_any_batch_height_and_width_give_the_same(exported, runtime):
    tokenizer, folder = exported
    assert sorted(x.name for x in folder.iterdir()) == ["decode.onnx", "encode.onnx"]
    for batch, height, width in ((1, 4, 4), (3, 20, 48), (2, 64, 32)):
        x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(batch)) * 2 - 1
        ids = check(runtime, folder, tokenizer, x)
        assert ids.shape == (batch, height // 4, width // 4)
    assert ids.unique().numel() > 8


@pytest.mark.timeout(400)
def test_graphs_are_standard_and_say_whose_they_are(exported):
    import onnx

    tokenizer, folder = exported
    for name in ("encode", "decode"):
        model = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        told = {entry.key: entry.value for entry in model.metadata_props}
        assert told["vqtok.fingerprint"] == tokenizer.fingerprint
        assert told["vqtok.vocab_size"] == "64"
        assert vqtok.PreprocessSpec.from_config(json.loads(told["vqtok.preprocess"])) == tokenizer.spec
        assert [x.name for x in model.graph.input] == [{"encode": "pixels", "decode": "ids"}[name]]


@pytest.mark.timeout(400)
def test_graphs_of_other_numbers_are_found_before_they_get_their_name(exported):
    from vqtok.errors import MismatchError
    from vqtok.onnx import check_graphs

    tokenizer, folder = exported
    check_graphs(tokenizer, folder)
    other = vqtok.build("vqgan-tiny", vocab_size=64).eval()
    with pytest.raises(MismatchError, match="share of other codes"):
        check_graphs(other, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", GRIDS)
def test_published_models_keep_the_publishers_codes(case, runtime, tmp_path):
    tokenizer, ids = loaded(case), expected(case)["indices"]
    vqtok.export_onnx(tokenizer, tmp_path / "graphs")
    assert torch.equal(run(runtime, tmp_path / "graphs/encode.onnx", pixels(case)), ids)
    if has_decoder(tokenizer):
        wanted = tokenizer.decode(vqtok.TokenGrid(ids, tokenizer.vocab_size))
        back = run(runtime, tmp_path / "graphs/decode.onnx", ids)
        torch.testing.assert_close(back, wanted, rtol=0, atol=ATOL)
    else:
        assert [x.name for x in (tmp_path / "graphs").iterdir()] == ["encode.onnx"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["vqvae2-tiny", "rqvae-tiny", "vqgan-gumbel-tiny", "dvae-tiny", "vit-vqgan-tiny"])
def test_every_family_of_grids_goes(preset, runtime, tmp_path):
    tokenizer = vqtok.build(preset) if preset == "dvae-tiny" else vqtok.build(preset, vocab_size=64)
    size = tokenizer.spec.size or 32
    x = tokenizer.spec.low + (tokenizer.spec.high - tokenizer.spec.low) * torch.rand(4, 3, size, size)
    tokenizer.train()(x)
    vqtok.export_onnx(tokenizer.eval(), tmp_path / "graphs")
    check(runtime, tmp_path / "graphs", tokenizer, x[:3])


# What is refused -----------------------------------------------------------------------------------------------------


def test_what_no_graph_can_be_made_of_is_refused(runtime, tmp_path):
    with pytest.raises(ConfigError, match="tokenizer of grids"):
        vqtok.export_onnx(vqtok.build("dynamic-tiny", size=32), tmp_path / "x")
    tokenizer = vqtok.build("vqvae-tiny")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        vqtok.export_onnx(tokenizer, tmp_path / "mine")
    tokenizer.precision = "bfloat16"
    with pytest.raises(ConfigError, match="float32"):
        vqtok.export_onnx(tokenizer, tmp_path / "x")
    assert [x.name for x in tmp_path.iterdir()] == ["mine"]


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ResourceError, match=r"pip install 'vqtok\[onnx\]'"):
        vqtok.export_onnx(vqtok.build("vqvae-tiny"), tmp_path / "x")


def test_what_torch_cannot_translate_is_one_error():
    from vqtok.onnx import _translation_errors

    with pytest.raises(ConfigError, match="translate to ONNX, but no such function"), _translation_errors():
        raise torch.onnx.OnnxExporterError("no such function\nmore")


def test_a_graph_with_an_unknown_op_is_refused_by_name():
    class Spread(torch.nn.Module):
        def forward(self, values, mask):
            return torch.ops.vqtok.spread.default(values, mask, 0)

    graph = torch.export.export(Spread(), (torch.ones(2), torch.tensor([[True, True]]))).module()
    with pytest.raises(ConfigError, match="'spread'"):
        standardize(graph)
