import copy
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer

from pipeline.embedding.shortcuts import Block, take_shortcuts


def tower(**fields: Any) -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(
        **{"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 4, "mlp_ratio": 4.0, **fields},
        output_dim=16,
    )
    for name, value in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    return made.eval()


def both(made: torch.nn.Module, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """Outputs of a tower before and after."""
    changed = copy.deepcopy(made).to(dtype)
    take_shortcuts(changed)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        return changed, [made(images), changed(images.to(dtype)).float()]


def blocks(made: Any) -> list[type]:
    return [type(block) for block in made.transformer.resblocks]


@pytest.mark.parametrize("fields", [{}, {"ls_init_value": 0.5}, {"no_ln_pre": True}, {"final_ln_after_pool": True}])
def test_only_the_token_that_is_used_is_computed_to_the_end(fields: dict):
    changed, (before, after) = both(tower(**fields))
    assert blocks(changed)[-1] is Block
    assert Block not in blocks(changed)[:-1]  # float32 gains nothing by being packed
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    seen = []
    changed.transformer.resblocks[-1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.inference_mode():
        changed(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 1, 64)]


@pytest.mark.parametrize("pool_type", ["avg", "tok"])
def test_packed_weights_give_the_same_vectors_in_bf16(pool_type: str):
    if not (hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("this processor has no bf16 in oneDNN: nothing is packed")
    made = tower(pool_type=pool_type)
    changed, (before, after) = both(made, torch.bfloat16)
    assert blocks(changed) == [Block] * 3
    plain = copy.deepcopy(made).to(torch.bfloat16)
    cosines = torch.nn.functional.cosine_similarity(before, after)
    assert cosines.min() > 0.999
    images = torch.randn(5, 3, 32, 32).to(torch.bfloat16)
    with torch.inference_mode():
        closeness = torch.nn.functional.cosine_similarity(changed(images).float(), plain(images).float())
    assert closeness.min() > 0.9995


@pytest.mark.parametrize("fields", [{"pool_type": "avg"}, {"attentional_pool": True}, {"output_tokens": True}])
def test_where_other_tokens_are_used_all_are_computed(fields: dict):
    changed = tower(**fields)
    take_shortcuts(changed)
    assert Block not in blocks(changed)


@pytest.mark.parametrize("architecture", ["RN50", "MobileCLIP2-S0"])
def test_other_towers_are_left_as_they_are(architecture: str):
    with torch.device("meta"):
        made = open_clip.create_model(architecture, device="meta", load_weights=False).visual
    before = str(made)
    take_shortcuts(made)
    assert str(made) == before
