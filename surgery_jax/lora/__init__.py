"""What LoRA adapters are: kinds of modules, names and layouts of PEFT, factors, ranks, what is told of them.

Hands on decisions about modules to the steps `lora_extract` and `lora_merge`. Imports `kit` and below.
"""
