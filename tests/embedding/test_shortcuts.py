import copy
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer

from pipeline.embedding.shortcuts import Block, encode_text, take_shortcuts


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


TEXT = {"context_length": 24, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}


def text_model(**fields: Any) -> Any:
    torch.manual_seed(0)
    made = open_clip.CLIP(16, dict(VISION), {**TEXT, **fields})
    for value in made.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return made.eval()


def tokens_of(lengths: list[int]) -> torch.Tensor:
    """Texts between a start and an end, filled up with zeros."""
    tokens = torch.zeros(len(lengths), TEXT["context_length"], dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length + 2] = torch.cat([torch.tensor([98]), torch.randint(1, 90, (length,)), torch.tensor([99])])
    return tokens


@pytest.mark.parametrize("fields", [{}, {"pool_type": "eos", "eos_id": 99}, {"proj_bias": True}, {"proj_type": "none"}])
@pytest.mark.parametrize("lengths", [[3], [1, 7, 4], [22, 2], [0]])
def test_what_comes_behind_the_end_of_a_text_is_not_computed(fields: dict, lengths: list[int]):
    made, tokens, seen = text_model(**fields), tokens_of(lengths), []
    made.transformer.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    with torch.inference_mode():
        torch.testing.assert_close(encode_text(made, tokens), made.encode_text(tokens), atol=1e-5, rtol=1e-5)
    assert seen == [max(lengths) + 2, TEXT["context_length"]]


@pytest.mark.parametrize("fields", [{"pool_type": "last"}, {"no_causal_mask": True}])
def test_towers_that_look_behind_the_end_compute_all_of_it(fields: dict):
    made, tokens, seen = text_model(**fields), tokens_of([3, 5]), []
    made.transformer.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    with torch.inference_mode():
        torch.testing.assert_close(encode_text(made, tokens), made.encode_text(tokens))
    assert seen == [TEXT["context_length"]] * 2
