"""oneDNN's matrix products equal torch's own, forward and backward, whatever lies how in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.lm import kernels

needs_onednn = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch has no oneDNN")
SIZES = st.integers(1, 70)


def laid(rows: int, columns: int, layout: str) -> Tensor:
    """Random numbers row by row, column by column, or with gaps between rows."""
    match layout:
        case "rows":
            return torch.randn(rows, columns)
        case "columns":
            return torch.randn(columns, rows).t()
        case "gaps":
            return torch.randn(rows, columns + 3)[:, :columns]


LAYOUTS = st.sampled_from(["rows", "columns", "gaps"])


@needs_onednn
@given(SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS, st.booleans())
def test_product_equals_that_in_double_precision(m, k, n, first, second, with_bias):
    a, b, bias = laid(m, k, first), laid(k, n, second), torch.randn(n) if with_bias else None
    exact = a.double() @ b.double() + (bias.double() if with_bias else 0)
    torch.testing.assert_close(kernels.onednn(a, b, bias).double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bias", [None, torch.ones(384)])
def test_a_linear_layer_has_the_same_value_and_gradients_in_both_precisions(bias):
    kernels.install()
    found = []
    for dtype in (torch.float32, torch.float64):  # products in float64 are torch's own
        generator = torch.Generator().manual_seed(0)
        x, w, g = (
            torch.randn(size, generator=generator).to(dtype).requires_grad_()
            for size in ((2, 40, 256), (384, 256), (2, 40, 384))
        )
        y = torch.nn.functional.linear(x, w, None if bias is None else bias.to(dtype))
        (y * g.detach()).sum().backward()
        found.append((y.detach(), x.grad, w.grad))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)


def test_other_products_are_left_to_torch():
    kernels.install()
    a, b = torch.randn(200, 200), torch.randn(200, 200)
    for this in (
        b[::2, ::2],
        b[:, :1].expand(200, 200),
        b.double(),
        b.bfloat16(),
        b[:, :0],
    ):  # stepped, repeated, in other types, empty
        first = a[:, : this.shape[0]].to(this)
        assert not kernels.suits(first, this)
        torch.testing.assert_close(
            (first @ this).double(),
            first.double() @ this.double(),
            rtol=1e-2,
            atol=0.5 if this.dtype is torch.bfloat16 else 1e-4,
        )
    assert kernels.suits(a, b) and kernels.suits(a, b.t())
    torch.testing.assert_close(
        torch.addmm(b, a, b, beta=0.5, alpha=2.0), 0.5 * b + 2.0 * (a @ b), rtol=0, atol=1e-3
    )
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(a, torch.randn(100, 200))
    with pytest.raises(RuntimeError):
        torch.mm(a[None], b)


def test_installed_once_linear_layers_go_through_onednn(monkeypatch):
    if kernels.install() is None:
        pytest.skip("no AMD processor under Linux")
    assert kernels.install() is kernels.install()
    shapes, product = [], kernels.onednn
    monkeypatch.setattr(
        kernels,
        "onednn",
        lambda a, b, bias=None: shapes.append((*a.shape, b.shape[1])) or product(a, b, bias),
    )
    x, w = torch.randn(40, 256, requires_grad=True), torch.randn(384, 256, requires_grad=True)
    torch.nn.functional.linear(x, w).sum().backward()
    assert sorted(shapes) == [(40, 256, 384), (40, 384, 256), (384, 40, 256)]  # value, gradients of x and w
