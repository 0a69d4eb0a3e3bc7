"""fp32 means fp32, on GPUs too."""

from __future__ import annotations

import torch


def exact_fp32() -> None:
    """No TF32 in this process, and convolutions that give the same bits each time.

    TF32 has 10 bits of mantissa: an attack's verdict in it is no verdict in fp32. torch allows it to convolutions
    unless told otherwise, and lets them sum in any order.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
