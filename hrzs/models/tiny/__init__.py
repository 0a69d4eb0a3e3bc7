"""The embedded model: a small open_clip ViT trained on `shapes` by `make tiny`; its files lie in this folder."""

from pathlib import Path

ARCH = "hrzs-tiny"
CONFIG = Path(__file__).parent / "hrzs-tiny.json"
WEIGHTS = Path(__file__).parent / "model.safetensors"
