"""2,000 steps and 2,000 batches take no more memory than a few hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

#: What may be added between three tenths of the way and its end, in MB: a leak of 10 kB a step would be 14.
MOST = 8.0


@pytest.mark.parametrize("what", ["training", "evaluation"])
def test_memory_is_flat(tmp_path: Path, config: Path, what: str) -> None:
    script = Path(__file__).with_name("long_run.py")
    done = subprocess.run(
        [sys.executable, str(script), what, str(config), str(tmp_path)], check=True, capture_output=True, text=True
    )
    seen = {int(tenth): mb for tenth, mb in json.loads(done.stdout.splitlines()[-1]).items()}
    print(what, {tenth: round(mb, 1) for tenth, mb in seen.items()})
    assert max(seen.values()) - seen[3] < MOST
