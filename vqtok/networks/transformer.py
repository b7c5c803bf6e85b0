"""What every transformer here is made of: attention, the two-layer perceptron, fixed positions (Vaswani et al. 2017).

Sequences are [B, N, dim]. Masks are boolean, one for all heads: True where a query may see a key.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import ConfigError

# Which projections have a bias. Keys need none: one constant more on all scores of a query cancels in the softmax.
Bias: TypeAlias = Literal["all", "qv", "none"]
Activation: TypeAlias = Literal["tanh", "gelu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "gelu": nn.GELU}


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself; [B, N, dim] in and out.

    Args:
        dim: width of the sequence.
        heads: number of heads.
        head_dim: width of a head; ``dim / heads`` when not given.
        bias: ``"all"``, ``"qv"`` (queries and values, as EVA and BEiT have it) or ``"none"``, of the projection to
            queries, keys and values. The projection out always has one.

    >>> import torch
    >>> SelfAttention(8, 2, bias="none")(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, heads: int, head_dim: int | None = None, bias: Bias = "all") -> None:
        super().__init__()
        self.heads, inner = heads, _inner_width(dim, heads, head_dim)
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=_check_bias(bias) == "all")
        self.q_bias = nn.Parameter(torch.zeros(inner)) if bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(inner)) if bias == "qv" else None
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
        """Attend.

        Args:
            x: [B, N, dim].
            mask: bool, broadcast to [B, N, N]; True where position i (second to last axis) sees j (last).
            is_causal: position i sees none after it; not together with a mask.
        """
        bias = self.to_qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        query, key, value = F.linear(x, self.to_qkv.weight, bias).chunk(3, dim=-1)
        return self.to_out(attend(query, key, value, self.heads, mask, is_causal=is_causal))


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence [B, N, dim] to a context [B, M, context_dim]; gives [B, N, dim].

    Args:
        dim: width of the sequence.
        heads: number of heads.
        context_dim: width of the context; ``dim`` when not given.
        head_dim: width of a head; ``dim / heads`` when not given.
        bias: which of the projections to queries, keys and values have one, as in `SelfAttention`.

    >>> import torch
    >>> CrossAttention(8, 2, context_dim=6)(torch.zeros(1, 5, 8), torch.zeros(1, 3, 6)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        head_dim: int | None = None,
        bias: Bias = "all",
    ) -> None:
        super().__init__()
        self.heads, inner = heads, _inner_width(dim, heads, head_dim)
        context_dim = dim if context_dim is None else context_dim
        self.to_q = nn.Linear(dim, inner, bias=_check_bias(bias) != "none")
        self.to_k = nn.Linear(context_dim, inner, bias=bias == "all")
        self.to_v = nn.Linear(context_dim, inner, bias=bias != "none")
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; ``mask`` is bool, broadcast to [B, N, M], True where position i of x sees j of the context."""
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads, mask))


class Mlp(nn.Module):
    """Linear, activation, Linear over the last axis.

    Args:
        dim: width of what comes in.
        hidden: width between the two.
        activation: ``"tanh"`` or ``"gelu"`` (the exact one, with erf).
        out_dim: width of what goes out; ``dim`` when not given.

    >>> import torch
    >>> Mlp(8, 32, "tanh", out_dim=4)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 4])
    """

    def __init__(self, dim: int, hidden: int, activation: Activation, out_dim: int | None = None) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"expected activation to be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.to_hidden = nn.Linear(dim, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.to_out = nn.Linear(hidden, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., dim] to [..., out_dim]."""
        return self.to_out(self.activation(self.to_hidden(x)))


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """Return softmax(q k' / sqrt(d)) v of each head, joined again (Vaswani et al. 2017, equation 1).

    Args:
        query: [B, N, heads * d]; a head's channels lie side by side.
        key: [B, M, heads * d].
        value: [B, M, heads * d].
        heads: number of heads.
        mask: bool, broadcast to [B, N, M]; True where a query sees a key. A query that sees none gets zeros.
        is_causal: query i sees keys 0..i; not together with a mask.

    Raises:
        ConfigError: mask and is_causal at once, or a mask that is not boolean.

    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> attend(x, x, x, heads=2, is_causal=True)[0, 0].tolist()
    [1.0, 0.0]
    """
    if mask is not None and (is_causal or mask.dtype != torch.bool):
        raise ConfigError(
            f"expected a boolean mask, or is_causal and no mask, got {mask.dtype} and is_causal={is_causal}. "
            "Put the causal triangle (torch.ones(N, N, dtype=torch.bool).tril()) into the mask."
        )
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if mask is None else mask.unsqueeze(-3)
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal).transpose(1, 2).flatten(2)


def sincos_positions(
    height: int,
    width: int,
    dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return fixed positions [height * width, dim] of a grid, row by row (He et al. 2022, MAE; ViT-VQGAN has the same).

    The first half of the channels is of the column, the second of the row; each is sines, then cosines, of the position
    times 10000^(-i / q), i = 0 .. q - 1, q = dim / 4. Computed in float64, rounded once.

    Sines are taken of height + width rows only, so a table is cheap enough to be computed at every call: no state, any
    grid, and a traced height stays a symbol.

    Raises:
        ConfigError: dim is not a multiple of 4.

    >>> sincos_positions(1, 2, 4).tolist()[0]
    [0.0, 1.0, 0.0, 1.0]
    """
    if dim % 4:
        raise ConfigError(f"expected a multiple of 4 (sines and cosines, of column and row), got dim {dim}")
    # Apple's devices have no float64.
    exact = torch.device("cpu") if device is not None and torch.device(device).type == "mps" else device
    quarter = dim // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device=exact) / quarter)
    columns, rows = (
        torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)
        for angles in (
            torch.arange(n, dtype=torch.float64, device=exact)[:, None] * frequencies for n in (width, height)
        )
    )
    table = [columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)]
    return torch.cat(table, dim=2).flatten(0, 1).to(device)


def _inner_width(dim: int, heads: int, head_dim: int | None) -> int:
    if heads < 1 or (head_dim is None and dim % heads):
        raise ConfigError(f"expected heads that divide dim, or a head_dim, got dim {dim} and {heads} heads")
    return dim if head_dim is None else heads * head_dim


def _check_bias(bias: Bias) -> Bias:
    if bias not in get_args(Bias):
        raise ConfigError(f"expected bias to be one of {', '.join(get_args(Bias))}, got {bias!r}")
    return bias
