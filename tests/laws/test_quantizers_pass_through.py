"""What pass_through promises: the values forward, the whole gradient to the carrier, in any dtype and when compiled."""

import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.ops import pass_through

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("of_carrier", DTYPES, ids=str)
@pytest.mark.parametrize("of_values", DTYPES, ids=str)
def test_values_come_through_bit_for_bit_and_gradients_go_to_the_carrier(of_values, of_carrier):
    values = torch.randn(4, 5, dtype=torch.float64).to(of_values).requires_grad_()
    carrier = (1e4 * torch.randn(4, 5)).to(of_carrier).requires_grad_()
    weight = torch.randn(4, 5, dtype=torch.float64).to(of_values)
    out = pass_through(values, carrier)
    assert out.dtype == of_values
    assert torch.equal(out, values)
    out.backward(weight)
    assert torch.equal(carrier.grad, weight.to(of_carrier))
    assert values.grad is None


def test_compiled_it_is_one_graph_with_the_same_bits():
    def function(carrier):
        return pass_through(carrier.sign(), carrier.tanh()).square().sum()

    eager, compiled = (torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    expected = function(eager)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(compiled)
    expected.backward(), found.backward()
    assert torch.equal(expected, found)
    assert torch.equal(eager.grad, compiled.grad)


def test_autocast_changes_neither_values_nor_gradients():
    carrier = torch.randn(6, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer = carrier @ torch.eye(4)  # bfloat16 under autocast
        out = pass_through(carrier.detach() / 3, layer)
    assert (layer.dtype, out.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, carrier / 3)
    out.backward(torch.full((6, 4), 1 + 2.0**-7))
    assert torch.equal(carrier.grad, torch.full((6, 4), 1 + 2.0**-7))


def test_the_result_is_no_second_name_of_the_values_for_autograd():
    values, carrier = torch.ones(3), torch.zeros(3, requires_grad=True)
    assert pass_through(values, carrier).requires_grad
    assert not values.requires_grad
    assert not pass_through(values.requires_grad_(), carrier.detach()).requires_grad


def test_second_derivatives_are_those_of_the_identity():
    carrier = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    out = pass_through(carrier.sign(), carrier.square())
    (first,) = torch.autograd.grad(out.square().sum(), carrier, create_graph=True)
    assert first.tolist() == [2.0, 8.0]  # 2 sign(c) times 2 c
    (second,) = torch.autograd.grad(first.sum(), carrier)
    # 2 out times d(2 c), and through out itself: 2 (2 c) (2 c)
    assert second.tolist() == [4.0 + 2 * 1.0, -4.0 + 2 * 16.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(3, 2), "one shape"),
        (torch.zeros(2, 3, dtype=torch.int64), "of floats"),
        (torch.zeros(2, 3, device="meta"), "one device"),
    ],
    ids=["shape", "dtype", "device"],
)
def test_what_does_not_fit_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        pass_through(values, torch.zeros(2, 3))
