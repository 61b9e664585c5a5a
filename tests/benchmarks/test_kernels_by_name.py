"""`benchmarks.kernels`: kernels are told apart by names that a reader knows."""

from __future__ import annotations

import pytest

from benchmarks import kernels


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("_hash", "_hash"),
        ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<at_cuda_detail::cub::Policy<short>>(short*)", "sort"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int, float)",
         "vectorized_elementwise_kernel"),
        ("void at::native::reduce_kernel<512, 1>(at::native::ReduceOp<float>)", "reduce_kernel"),
        ("Memset (Device)", "Memset"),
    ],
)  # fmt: skip
def test_short_names(name: str, wanted: str) -> None:
    assert kernels.short(name) == wanted


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert kernels.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
