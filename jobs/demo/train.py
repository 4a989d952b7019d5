"""Train the demo's tiny OpenCLIP model on pictures drawn here: `python -m jobs.demo.train --out jobs/demo/model`.

A caption that leaves parts open fits many pictures of a batch, and we know which: so the target of the contrastive
loss is uniform over all that fit, not the one pair. That is what makes 'a green triangle' work as well as a full
caption. Ten minutes on two cores. Held-out compositions are never drawn in training; tests measure search on them.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from jobs.demo.figures import COMPOSITIONS, HELD_OUT, Composition, caption, draw
from pipeline.embedding.fit import fitted
from pipeline.model import CONFIG_FILE, WEIGHTS_FILE, PreprocessSpec

logger = logging.getLogger(__name__)

MODEL_CFG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
MEAN_STD = (0.5, 0.5, 0.5)
SPEC = PreprocessSpec(height_px=64, width_px=64, mean=MEAN_STD, std=MEAN_STD)
FIELDS = ("colour", "shape", "size", "position", "ground")


def main() -> None:
    """Train, zero the token rows that no caption uses, and save half-precision weights with their config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("jobs/demo/model"))
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pixels, shown = draw_pictures(args.pictures, rng)
    args.out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": {"mean": MEAN_STD, "std": MEAN_STD}}
    (args.out / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    model = open_clip.create_model(f"local-dir:{args.out}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.out}")
    train(model, tokenizer, pixels, shown, rng, args.steps, args.batch)
    save(model, tokenizer, args.out / WEIGHTS_FILE)


def draw_pictures(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[Composition]]:
    """Draw compositions that are not held out: pixels (count, 3, 64, 64), and what each shows."""
    known = [c for c in COMPOSITIONS if c not in HELD_OUT]
    shown = [known[int(i)] for i in rng.integers(len(known), size=count)]
    pixels = np.empty((count, 3, SPEC.height_px, SPEC.width_px), np.uint8)
    for i, composition in enumerate(shown):
        width, height = (int(edge) for edge in rng.integers(72, 160, 2))
        pixels[i] = fitted(draw(composition, rng, width, height), SPEC)
    return pixels, shown


def train(
    model: open_clip.CLIP,
    tokenizer: open_clip.SimpleTokenizer,
    pixels: NDArray[np.uint8],
    shown: list[Composition],
    rng: np.random.Generator,
    steps: int,
    batch: int,
) -> None:
    """Fit both towers in place, bf16 where torch's autocast allows it."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.08)
    codes = torch.tensor(
        [[sorted({getattr(c, f) for c in COMPOSITIONS}).index(getattr(s, f)) for f in FIELDS] for s in shown]
    )
    model.train()
    started = time.monotonic()
    for step in range(steps):
        rows = torch.from_numpy(rng.choice(len(shown), batch, replace=False))
        named = torch.from_numpy(_named_fields(rng, batch))
        texts = [_partial(shown[int(row)], keep) for row, keep in zip(rows, named, strict=True)]
        images = pixels[rows.numpy()]
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.encode_image((torch.from_numpy(images).float() / 255 - 0.5) / 0.5, normalize=True)
            said = model.encode_text(tokenizer(texts), normalize=True)
        logits = model.logit_scale.exp() * said.float() @ seen.float().T  # (texts, images)
        loss = _loss(logits, _fits(codes[rows], named))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, float(np.log(100)))
        if step % 50 == 0 or step == steps - 1:
            logger.info("step=%d loss=%.3f seconds=%.0f", step, loss.item(), time.monotonic() - started)


def _named_fields(rng: np.random.Generator, batch: int) -> NDArray[np.bool_]:
    """Choose which fields each caption names: half of the captions all five, the others any, at least one."""
    named = rng.random((batch, len(FIELDS))) < 0.5
    named[rng.random(batch) < 0.5] = True
    named[np.arange(batch), rng.integers(len(FIELDS), size=batch)] = True
    return named


def _partial(composition: Composition, keep: Tensor) -> str:
    return caption(Composition(*(getattr(composition, f) if k else None for f, k in zip(FIELDS, keep, strict=True))))


def _fits(codes: Tensor, named: Tensor) -> Tensor:
    """Tell which picture fits which caption: bool (captions, pictures), from codes (n, 5) and named (n, 5)."""
    same = codes[:, None, :] == codes[None, :, :]  # (captions, pictures, fields)
    return (same | ~named[:, None, :]).all(dim=2)


def _loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy both ways against targets that are uniform over all that fit."""
    wanted = fits.float()
    by_text = -(wanted / wanted.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_image = -(wanted / wanted.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_text + by_image) / 2


def save(model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, path: Path) -> None:
    """Write float16 weights; rows of tokens that no caption uses are zero, so that the file packs small."""
    used = tokenizer([caption(c) for c in COMPOSITIONS] + ["a shape"]).unique()
    state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    embedding = torch.zeros_like(state["token_embedding.weight"])
    embedding[used] = state["token_embedding.weight"][used]
    state["token_embedding.weight"] = embedding
    save_file(state, path)


if __name__ == "__main__":
    main()
