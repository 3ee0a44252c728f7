"""What a mask leaves, to the bit."""

import pytest
import torch

from obert_modifiers.kernels import apply_mask_
from tests.kernels.backends import each_backend, kernels

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _odd_values() -> torch.Tensor:
    odd = [float("nan"), float("inf"), -float("inf"), -0.0, 1e-30, -3.0]
    return torch.tensor(odd * 2)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_where_false_and_untouched_where_true(backend, dtype) -> None:
    mask = torch.arange(12) < 6
    values = kernels.apply_mask_(_odd_values().to(dtype), mask, backend=backend)
    bits = torch.int64 if dtype == torch.float64 else torch.int32
    bits = torch.int16 if dtype.itemsize == 2 else bits
    expected = _odd_values().to(dtype).view(bits) * mask
    assert torch.equal(values.view(bits), expected)


@each_backend
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 1025), (2, 3, 2, 2), (0, 4)])
def test_any_shape(backend, shape) -> None:
    values, mask = torch.randn(shape), torch.rand(shape) < 0.5
    found = kernels.apply_mask_(values.clone(), mask, backend=backend)
    assert torch.equal(found, values * mask)


@each_backend
def test_values_and_masks_that_are_not_contiguous(backend) -> None:
    values, mask = torch.randn(6, 4), torch.rand(4, 6) < 0.5
    found = kernels.apply_mask_(values.clone().T, mask, backend=backend)
    assert torch.equal(found, values.T * mask)
    found = kernels.apply_mask_(values.clone(), mask.T, backend=backend)
    assert torch.equal(found, values * mask.T)


@each_backend
def test_mask_control_a_product_leaves_what_is_not_a_number(backend) -> None:
    """A planted wrong mask, which multiplies, must be seen."""
    mask = torch.zeros(12, dtype=torch.bool)
    found = kernels.apply_mask_(_odd_values(), mask, backend=backend)
    assert torch.equal(found, torch.zeros(12))
    assert not torch.equal(_odd_values() * mask, torch.zeros(12))


@each_backend
def test_a_parameter_is_changed_in_place_and_autograd_notices(backend) -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    loss = parameter.square().sum()
    mask = torch.tensor([True, False, True, False])
    assert kernels.apply_mask_(parameter, mask, backend=backend) is parameter
    assert parameter.tolist() == [1.0, 0.0, 1.0, 0.0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "mask", [torch.ones(4), torch.ones(3, dtype=torch.bool)], ids=["dtype", "shape"]
)
def test_a_mask_that_does_not_fit_is_an_error(mask) -> None:
    with pytest.raises(ValueError, match="does not fit values of shape"):
        apply_mask_(torch.ones(4), mask)
