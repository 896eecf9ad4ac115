"""Matrix products in fp32 on AMD processors: oneDNN's instead of MKL's.

torch asks MKL for them, and MKL keeps its AVX-512 code for Intel's processors. oneDNN, which comes with
torch, too, goes by what a processor can do: on an EPYC with AVX-512 reading and writing are 1.7 times as fast
(``tests/benchmarks/bench_kernels.py``). Both sum in fp32; results differ in the last bits.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.library import Library

SMALL = 2**20  # multiplications below which the way through Python costs more than it saves


def onednn(
    a: Float[Tensor, "rows inner"],
    b: Float[Tensor, "inner columns"],
    bias: Float[Tensor, "columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """The product, by oneDNN's linear layer, whose weights are the second factor transposed."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


def suits(a: Tensor, b: Tensor) -> bool:
    """Whether a product is large, in fp32, and its second factor lies by row or by column.

    torch does the others, and complains of wrong shapes.
    """
    if not (a.dtype == b.dtype == torch.float32 and a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]):
        return False
    by_column = b.stride(0) == 1 and b.stride(1) >= b.shape[0]
    by_row = b.stride(1) == 1 and b.stride(0) >= b.shape[1]
    return (by_column or by_row) and a.shape[0] * b.shape[0] * b.shape[1] >= SMALL


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if suits(a, b):
        return onednn(a, b)
    return torch.ops.aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if suits(a, b) and beta == alpha == 1 and bias.shape == b.shape[1:] and bias.dtype == a.dtype:
        return onednn(a, b, bias.contiguous())
    return torch.ops.aten.addmm.out(
        bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(a.shape[0], b.shape[1])
    )


@cache
def install() -> Library | None:
    """Multiply fp32 matrices by oneDNN from now on, in this process, on AMD processors under Linux.

    The products of ``linear``, forward and backward, go through ``mm`` and ``addmm``.
    """
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8")
    if not (torch._C._has_mkldnn and amd):
        return None
    library = Library("aten", "IMPL")
    with warnings.catch_warnings():  # that kernels are overridden
        warnings.simplefilter("ignore")
        library.impl("mm", _mm, "CPU")
        library.impl("addmm", _addmm, "CPU")
    return library  # kept by the cache: whoever drops it takes the kernels back
