"""What a script of its own does with transformers, as the other side of a comparison.

with_torch.py OUT mixtral SOURCE [--experts 8]    a dense Llama to a Mixtral of copies, as upcycle_mixtral.yaml does
with_torch.py OUT tokenized SOURCE                the same model with a tokenizer, which mergekit asks for
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def mixtral(source: Path, out: Path, experts: int) -> None:
    """Every MLP of a Llama as the experts of a Mixtral with drawn routers."""
    import torch
    from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    dense = LlamaForCausalLM.from_pretrained(source, dtype="auto")
    known = {key: value for key, value in dense.config.to_dict().items() if key not in ("architectures", "model_type")}
    config = MixtralConfig(**known, num_local_experts=experts, num_experts_per_tok=2)
    state = {}
    for name, tensor in dense.state_dict().items():
        if ".mlp." not in name:
            state[name] = tensor
    for layer, block in enumerate(dense.model.layers):
        mlp, at = block.mlp, f"model.layers.{layer}.mlp"
        both = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        state[f"{at}.experts.gate_up_proj"] = both.expand(experts, -1, -1)
        state[f"{at}.experts.down_proj"] = mlp.down_proj.weight.expand(experts, -1, -1)
        state[f"{at}.gate.weight"] = torch.randn(experts, config.hidden_size, dtype=both.dtype) * 0.02
    with torch.device("meta"):
        moe: Any = MixtralForCausalLM(config)
    moe = moe.to(dense.dtype)
    moe.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    moe.save_pretrained(out)


def tokenized(source: Path, out: Path) -> None:
    """Links to the files of a model, and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    out.mkdir(parents=True)
    for file in source.iterdir():
        os.link(file, out / file.name)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=("mixtral", "tokenized"))
    parser.add_argument("source", type=Path)
    parser.add_argument("--experts", type=int, default=8)
    args = parser.parse_args()
    if args.what == "mixtral":
        mixtral(args.source, args.out, args.experts)
    else:
        tokenized(args.source, args.out)


if __name__ == "__main__":
    main()
