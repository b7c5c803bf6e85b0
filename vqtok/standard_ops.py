"""What vqtok's own ops are in standard ones, for traced graphs that leave torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.ops.levels import level_thresholds
from vqtok.ops.reference import LEAST_LENGTH

_PREFIX = "vqtok."


class NearestRow(nn.Module):
    """``nearest_code`` of a codebook that does not change.

    Args:
        codebook: [K, D].
        metric: ``"l2"``, ``"dot"`` or ``"cosine"``.

    >>> NearestRow(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "l2")(torch.tensor([[0.2, 0.1], [0.9, 0.9]]))
    tensor([0, 1])
    """

    vectors: Tensor
    half_norms: Tensor
    first: Tensor

    def __init__(self, codebook: Tensor, metric: str) -> None:
        super().__init__()
        rows = codebook.detach().float()
        half_norms = ops.half_squared_norms(rows) if metric == "l2" else rows.new_zeros(len(rows))
        vectors = ops.normalize_codebook(rows) if metric == "cosine" else rows
        self.register_buffer("vectors", vectors.T.contiguous())
        self.register_buffer("half_norms", half_norms)
        self.register_buffer("first", _first_equal(vectors))

    def forward(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        # A matrix product may round the scores of equal rows differently, so the lowest of them is looked up.
        return self.first[(latents.float() @ self.vectors - self.half_norms).argmax(dim=-1)]


def _first_equal(rows: Tensor) -> Tensor:
    """Return for each row [K, D] the number of the first one that equals it."""
    groups = torch.unique(rows, dim=0, return_inverse=True)[1]
    numbers = torch.arange(len(rows), device=rows.device)
    return torch.full_like(numbers, len(rows)).scatter_reduce(0, groups, numbers, "amin")[groups]


class FiniteScalar(nn.Module):
    """``finite_scalar`` of these levels: each latent is compared with the points where levels begin.

    Args:
        levels: D numbers of levels.

    >>> codes, vectors = FiniteScalar((5, 4))(torch.tensor([[0.0, -9.0], [9.0, 9.0]]))
    >>> codes.tolist(), vectors.tolist()
    ([2, 19], [[0.0, -1.0], [1.0, 0.5]])
    """

    thresholds: Tensor
    places: Tensor
    middles: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        thresholds = torch.full((len(levels), max(levels) - 1), torch.inf)
        for row, count in zip(thresholds, levels, strict=True):
            row[: count - 1] = torch.tensor(level_thresholds(count))
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("places", torch.tensor([1, *levels[:-1]]).cumprod(dim=0))
        self.register_buffer("middles", torch.tensor(levels) // 2)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes int64 [...] and vectors float32 [..., D] of latents [..., D]."""
        digits = (latents.float()[..., None] >= self.thresholds).long().sum(dim=-1)
        return (digits * self.places).sum(dim=-1), (digits - self.middles).float() / self.middles.float()


class UnitLatents(nn.Module):
    """``normalize_latents``.

    >>> UnitLatents()(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    def forward(self, latents: Tensor) -> Tensor:
        """Return latents [..., D] divided by their length."""
        return F.normalize(latents.float(), dim=-1, eps=LEAST_LENGTH)


class Attention(nn.Module):
    """Attention of one head [B, N, D], which exporters know with an axis of heads only.

    >>> x = torch.randn(2, 5, 4)
    >>> torch.allclose(Attention()(x, x, x), F.scaled_dot_product_attention(x, x, x), atol=1e-6)
    True
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values [B, N, D]."""
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


class Shift(nn.Module):
    """Bits shifted by places that do not change: a product, or a quotient rounded down; ONNX shifts no signed numbers.

    Args:
        places: int64, any shape.
        left: the direction.

    >>> Shift(torch.tensor([0, 2]), left=True)(torch.tensor([3, 3]))
    tensor([ 3, 12])
    """

    powers: Tensor

    def __init__(self, places: Tensor, left: bool) -> None:
        super().__init__()
        self.register_buffer("powers", torch.ones((), dtype=torch.int64) << places)
        self.left = left

    def forward(self, values: Tensor) -> Tensor:
        """Return int64 values, none negative, shifted."""
        return values * self.powers if self.left else torch.div(values, self.powers, rounding_mode="floor")


class Constant(nn.Module):
    """A tensor that depends on weights alone.

    >>> Constant(torch.tensor([3.0]))()
    tensor([3.])
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self) -> Tensor:
        """Return it."""
        return self.value


def standardize(traced: fx.GraphModule) -> fx.GraphModule:
    """Replace vqtok's ops in a traced graph, whose weights do not change any more; the graph itself is changed.

    Raises:
        ConfigError: it has an op that no standard ones are known for.

    >>> from vqtok import VectorQuantizer
    >>> class Codes(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.quantizer = VectorQuantizer(dim=2, vocab_size=4)
    ...     def forward(self, x):
    ...         return self.quantizer.encode(x)
    >>> graph = standardize(torch.export.export(Codes(), (torch.zeros(3, 2),)).module())
    >>> any("vqtok" in str(node.target) for node in graph.graph.nodes)
    False
    """
    constants = _Constants(traced)
    for number, node in enumerate([*traced.graph.nodes]):
        if node.op == "call_module" and node.target == "_guards_fn":  # what it checks is in the example's shapes
            traced.graph.erase_node(node)
        elif node.op == "call_function" and (_is_ours(node) or _is_bare_attention(node)):
            name = f"standard_{number}"
            module, inputs = _replacement(str(node.target).split(".")[1], node, constants)
            traced.add_submodule(name, module)
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.call_module(name, inputs))
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class _Constants:
    """Values of nodes that depend on weights alone."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced

    def of(self, node: Any) -> Tensor:
        """Return a node's value; ConfigError where it depends on the graph's inputs."""
        if not isinstance(node, fx.Node):
            return node
        if node.op == "get_attr":
            value: Any = self.traced
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_function" and callable(node.target):
            arguments: Any = fx.map_arg(node.args, self.of)
            named: Any = fx.map_arg(node.kwargs, self.of)
            with torch.no_grad():
                return node.target(*arguments, **named)
        if node.op == "call_module" and not node.args:
            return self.traced.get_submodule(str(node.target))()
        raise ConfigError("expected a codebook that does not depend on the image: it has no ONNX form")


def _is_ours(node: fx.Node) -> bool:
    """Tell whether a node is an op of vqtok, or one of torch's that ONNX has for other numbers only."""
    return str(node.target).startswith((_PREFIX, "aten.__lshift__", "aten.__rshift__"))


def _is_bare_attention(node: fx.Node) -> bool:
    """Tell whether a node is attention without heads, mask or scale."""
    if node.target is not torch.ops.aten.scaled_dot_product_attention.default or len(node.args) != 3 or node.kwargs:
        return False
    query: Any = node.args[0]
    return query.meta["val"].dim() == 3


def _replacement(name: str, node: fx.Node, constants: _Constants) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the module for an op, and what of the op's arguments goes into it."""
    if name not in _MODULES:
        raise ConfigError(f"expected ops that standard ones are known for ({', '.join(_MODULES)}), got {name!r}")
    return _MODULES[name](node, constants)


_Make = Callable[[fx.Node, _Constants], tuple[nn.Module, tuple[Any, ...]]]
_MODULES: Mapping[str, _Make] = {
    "nearest_code": lambda node, known: (
        NearestRow(known.of(node.args[1]), str(node.args[2])),
        node.args[:1],
    ),
    "scaled_dot_product_attention": lambda node, known: (Attention(), node.args),
    "__lshift__": lambda node, known: (Shift(known.of(node.args[1]), left=True), node.args[:1]),
    "__rshift__": lambda node, known: (Shift(known.of(node.args[1]), left=False), node.args[:1]),
    "normalize_codebook": lambda node, known: (Constant(ops.normalize_codebook(known.of(node.args[0]))), ()),
    "half_squared_norms": lambda node, known: (Constant(ops.half_squared_norms(known.of(node.args[0]))), ()),
    "normalize_latents": lambda node, known: (UnitLatents(), node.args[:1]),
    "finite_scalar": lambda node, known: (FiniteScalar([*map(int, node.args[1])]), node.args[:1]),  # pyright: ignore
}
