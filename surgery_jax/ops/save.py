"""`save`: write a checkpoint or one tensor."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import Directive, node, reference, text
from ..kit.state import State
from ..language.nodes import Node, words_of
from ..language.plan import parse_documents


@dataclass(frozen=True)
class SaveStep(Directive):
    """Write a whole checkpoint, or one tensor, as it is at this place of the plan.

    All files appear together when the whole plan has succeeded.
    """

    word = "save"
    takes = "path"
    examples = (
        "save: { path: out/mid, alias: model, shard: 2GB }",
        "save: { path: bias.npy, target: head.bias, format: numpy }",
    )

    path: str = text("file or directory")
    alias: str | None = text("which checkpoint", None)
    target: Node | None = reference("literal name of the one tensor to write", None)
    format: str | None = text("safetensors, torch, dcp, flax or orbax; numpy for one tensor", None)
    shard: str | None = text("largest size of a shard, such as 5GB", None)
    options: Node | None = node("of the format, such as { compression: zstd } of orbax", None, kind="mapping")

    documents: Node | None = node("which come along: none, or patterns of their names", None)

    def build(self, state: State) -> None:
        documents = None if self.documents is None else parse_documents(self.documents, "save")
        options = {} if self.options is None else words_of(self.options, "save.options")
        if self.target is None:
            state.files.save(self.path, self.format, self.shard, self._alias(state), None, options, documents)
            return
        if documents:
            raise PlanError("a file of one tensor has no documents", hint="leave out save.documents or save.target")
        if self.shard is not None:
            raise PlanError("one tensor cannot be sharded", hint="leave out save.shard or save.target")
        target = state.names.reference(self.target, key="target", slices=False, literal=True, default=self.alias)
        if self.alias is not None and target.alias != self.alias:
            raise PlanError("save.alias and the alias in save.target differ", found=f"{self.alias} and {target.alias}")
        state.names.expect_present(target.alias, [str(target.expr)], kind="target")
        state.files.save(self.path, self.format, None, target.alias, str(target.expr), options)

    def _alias(self, state: State) -> str:
        aliases = state.names.aliases()
        alias = self.alias or state.default_alias or (aliases[0] if len(aliases) == 1 else None)
        if alias is None:
            raise PlanError("save needs an alias", expected="one of " + ", ".join(aliases))
        return alias
