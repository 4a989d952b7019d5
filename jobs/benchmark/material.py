"""What benchmarks are made with: photographs, pictures like them, checkpoints of random weights."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline import model

# Photographs of scikit-image's wheel (public domain or CC0, see its data/README.txt), with sizes that no model has.
PHOTOGRAPHS = {
    "astronaut.png": (512, 512),
    "chelsea.png": (451, 300),
    "coffee.png": (600, 400),
    "hubble_deep_field.jpg": (1000, 872),
    "ihc.png": (511, 509),
    "motorcycle_left.png": (741, 497),
    "retina.jpg": (1411, 1410),
    "rocket.jpg": (427, 640),
}
# One word a token; enough to tell sentences apart, small enough for every tower's table.
WORDS = (
    *("a", "an", "the", "of", "and", "in", "on", "with", "photo", "drawing", "small", "large", "red", "green", "blue"),
    *("cat", "dog", "rocket", "cup", "coffee", "face", "sky", "road"),
)


def photographs() -> list[Image.Image]:
    """Load the photographs in RGB, cropped to their odd sizes.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise ImportError("photographs come with scikit-image; install it with: pip install scikit-image") from error
    folder = Path(skimage.__file__).parent / "data"
    opened = ((Image.open(folder / name).convert("RGB"), size) for name, size in PHOTOGRAPHS.items())
    return [image.crop((0, 0, *size)) for image, size in opened]


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """Make noise whose amplitude falls with frequency as it does in photographs (Field 1987: 1/f); JPEG quality 85."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(down, across), 1 / max(width, height))
    phases = np.exp(2j * np.pi * rng.random((3, *falloff.shape)))
    planes = np.fft.irfft2(falloff * phases, (height, width))
    planes = planes[:1] + 0.3 * planes  # colours of photographs mostly move together
    pixels = np.clip(128 + 48 * planes / planes.std(), 0, 255).astype(np.uint8)
    return saved(Image.fromarray(pixels.transpose(1, 2, 0)), "JPEG", quality=85)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:  # whatever Pillow's writer of that kind takes
    """Encode a picture."""
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


def make_checkpoint(folder: Path, architecture: str) -> Path:
    """Write a checkpoint of an OpenCLIP architecture as it would be published: random weights, a tokenizer if need be.

    Pixels are asked for as by the architecture's first published weights. Scales and biases, which a fresh model has at
    one and zero, are random too: otherwise many a tower would tell no two pictures apart.
    """
    if (folder / model.WEIGHTS_FILE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    wanted = open_clip.get_pretrained_cfg(architecture, tags[0]) if tags else {}
    model_cfg = open_clip.get_model_config(architecture)
    make_text_parts(folder, model_cfg["text_cfg"])
    preprocess_cfg = {key: wanted[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in wanted}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / model.CONFIG_FILE).write_text(json.dumps(config, indent=1))
    torch.manual_seed(0)
    built = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    _stir(built)
    state = {name: value.clone() for name, value in built.state_dict().items()}  # what is shared is saved twice
    save_file(state, folder / model.WEIGHTS_FILE)
    return folder


@torch.no_grad()
def _stir(built: Any) -> None:  # OpenCLIP's models have no common type
    """Stir biases and scales about what they start as, then let batch norms see what they will see."""
    for name, value in built.named_parameters():
        if value.ndim != 1 or value.numel() == 1:
            continue
        if name.endswith("bias"):
            value.copy_(0.02 * torch.randn_like(value))
        else:  # many start at zero, so that a fresh block passes on what it gets: then a tenth at most
            value.copy_(value * (0.5 + torch.rand_like(value)) + 0.1 * torch.rand_like(value))
    norms = [part for part in built.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = None  # the mean over all batches seen, which is one
        size = built.visual.image_size
        wide, high = (size, size) if isinstance(size, int) else (size[1], size[0])
        seen = np.stack([np.asarray(image.resize((wide, high))).transpose(2, 0, 1) for image in photographs()])
        built.train().encode_image(torch.from_numpy(seen).float() / 127.5 - 1)


def make_text_parts(folder: Path, text_cfg: dict[str, Any]) -> None:  # a config's values have every JSON type
    """Put beside the weights what a text tower of transformers takes from the hub: its tokenizer and its config."""
    if text_cfg.get("hf_tokenizer_name"):
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        special = ["[PAD]", "[EOS]", "[CLS]", "[UNK]"]
        vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [EOS]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[EOS]", vocabulary["[EOS]"])]
        )
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", sep_token="[EOS]", cls_token="[CLS]",
            unk_token="[UNK]",
        ).save_pretrained(folder)  # fmt: skip
    if text_cfg.get("hf_model_name"):
        from transformers import RobertaConfig

        RobertaConfig(vocab_size=1000, num_hidden_layers=4).save_pretrained(folder / "text")
        text_cfg["hf_model_name"] = str((folder / "text").resolve())
