"""What an FP8 pool holds, bit by bit: by the format's definition, of the keys that a pool of the model's type holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fp8_numbers import nearest_fp8
from naive_attention import TOLERANCES, NaiveSlot, paged, random_step
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams
from sparsespec.plugins.pillar_attention.reference import pillar_attention

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PARAMS = PillarAttentionParams(num_heads=4, num_kv_heads=2, head_dim=16, page_size=4)
SLOTS = (NaiveSlot(Phase.PREFILL, 30, 0), NaiveSlot(Phase.PREFILL, 7, 0))
# The last is so small that most of its values are cut off.
SCALE = [[0.5, 1.7], [0.03, 0.0017]]


def over_fp8(inputs: AttentionInputs[Tensor], scale: Tensor) -> AttentionInputs[Tensor]:
    pool = inputs.layer.kv_pool
    empty = torch.full(pool.shape, torch.nan, dtype=torch.float8_e4m3fn, device=pool.device)
    return replace(inputs, layer=replace(inputs.layer, kv_pool=empty, kv_scale=scale))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_keys_are_rounded_twice(dtype: torch.dtype, qk_norm: bool, device: str) -> None:
    """To the model's type, then to the nearest number of FP8 over the scale of the head; values once."""
    step = random_step(PARAMS, SLOTS, dtype, seed=1, qk_norm=qk_norm)
    plain = paged(step, dtype, device, seed=2)
    scale = torch.tensor(SCALE, device=device)
    fp8 = over_fp8(plain, scale)
    for inputs in (plain, fp8):
        assert pillar_attention(PARAMS, inputs).dtype == dtype
    kept = plain.layer.kv_pool.float() / scale[:, :, None, None]
    expected = torch.from_numpy(nearest_fp8(kept.nan_to_num().cpu().numpy()))
    expected = expected.masked_fill(kept.isnan().cpu(), torch.nan).to(torch.float8_e4m3fn)
    found = fp8.layer.kv_pool.cpu()
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    largest = found.float().nan_to_num().abs().amax(dim=(0, 3, 4))
    assert largest[1, 1] == 448
    assert largest.flatten()[:3].max() < 448


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_row_reads_what_is_stored(dtype: torch.dtype, device: str) -> None:
    """A first row attends to itself alone: its output is its value as the pool gives it back."""
    step = random_step(PARAMS, SLOTS, dtype, seed=3)
    scale = torch.tensor(SCALE, device=device)
    inputs = over_fp8(paged(step, dtype, device, seed=4), scale)
    output = pillar_attention(PARAMS, inputs)
    first = inputs.step.page_table[0, 0]
    stored = inputs.layer.kv_pool[first, 1, :, 0].double()
    value = (stored * scale[1, :, None].double()).to(torch.promote_types(dtype, torch.float32)).to(dtype)
    assert torch.equal(output[0].unflatten(0, (2, 2, 16)), value[:, None].expand(2, 2, 16))
