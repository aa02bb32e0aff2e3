"""Says how far an adapter is from the change it stands for, as one line of JSON.

    residual.py BASE TUNED ADAPTER

`residual` is |tuned - base - scale B A| in Frobenius norm over all factored matrices, `modules` how many these are.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open


def main() -> int:
    """The command line."""
    base, tuned, adapter = (Path(word) for word in sys.argv[1:])
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    total, modules = 0.0, 0
    with (
        safe_open(base / "model.safetensors", "np") as before,
        safe_open(tuned / "model.safetensors", "np") as after,
        safe_open(adapter / "adapter_model.safetensors", "np") as factors,
    ):
        for key in factors.keys():
            found = re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", key)
            if found is None:
                continue
            a, b = (factors.get_tensor(key.replace("lora_A", side)).astype(np.float32) for side in ("lora_A", "lora_B"))
            scale = np.float32(config["lora_alpha"] / a.shape[0])
            change = after.get_tensor(f"{found[1]}.weight") - before.get_tensor(f"{found[1]}.weight")
            total += float(np.square(change - scale * (b @ a), dtype=np.float64).sum())
            modules += 1
    print(json.dumps({"residual": math.sqrt(total), "modules": modules}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
