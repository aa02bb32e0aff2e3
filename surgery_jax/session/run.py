"""One session owns what happens between a plan and its outputs: whoever needs tensors goes through it.

What is to be done comes as transactions, plans of one graph that succeed or fail one by one: a run has one, a batch
several that share their reading, a comparison one without outputs. All of them go the same way: they are checked, their
questions settled by passes over the data, and checked again; their outputs staged; the work performed; assertions
settled and notes written; outputs completed and, if the inputs are still what they were, published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import PlanError
from ..core.interrupts import held
from ..core.process import take_back
from ..execute.left import Done
from ..execute.observers import Appearing, Observer, Observers
from ..execute.options import Options
from ..execute.report import Figures, Report
from ..hosts.peers import ALONE, Peers
from ..proof.accounting import account_for, check_strict
from .compiled import Compiled, Outputs, StorageOutside, compile_with, joined, with_inputs
from .ended import look_back
from .journals import Journals
from .listening import receipts, traces
from .passes import check_targets, leftovers, tell_laid, texts_of
from .publishing import Publisher, TransactionOutcome, Work
from .resuming import Resumption, understood
from .run_keys import answers_key, head_of
from .taking import Taking

if TYPE_CHECKING:
    from ..compile.functions import Functions
    from ..execute.schedule import Schedule
    from ..execute.verdicts import Findings
    from ..graph.node import Node
    from ..language.plan import Plan
    from ..proof.keeping import Receipts
    from ..storage.base import Checkpoint, Layout
    from ..storage.formats import OutputPlan
    from ..storage.journal import Finished
    from ..storage.publish import Staging
    from .perform import Kept, OutputTarget

    _Begun = dict[int, tuple[Staging, Sequence[Finished]]]  # by the identity of the output

__all__ = ["Session", "Transaction"]

MAX_PASSES = 16  # over the data, before the last one: far more than steps build upon each other


@dataclass(frozen=True, eq=False)
class Transaction:
    """A compiled plan, whose outputs appear together or not at all. `tag` is for observers. With `keep` the last output
    does not appear: it goes into what that makes of it, which the session closes. `reuse` is the path of an earlier
    output, from which is taken over what need not be made again."""

    compiled: Compiled
    tag: Any = None
    keep: Callable[[OutputPlan, Layout], Kept] | None = None
    reuse: str | None = None

    @property
    def outputs(self) -> Outputs:
        """Those that appear."""
        return self.compiled.outputs if self.keep is None else self.compiled.outputs[:-1]


def _keep_ranges(options: Options) -> None:
    """Keep what is read of remote inputs where the options say.

    Raises:
        StorageError: there cannot be such a directory.
    """
    from ..storage.files import storage_error
    from ..storage.places.cached import keep_ranges

    try:
        keep_ranges(options.cache, options.cache_bytes)
    except OSError as error:
        raise storage_error(error, options.cache or "", "keep ranges of remote inputs there") from None


class Session:
    """Owns the work of one run, or of the passes of one batch.

    `peers` are the processes that share it, which all do the same with theirs; `observers` are told what happens. The
    functions that a pass has compiled serve the ones after it, and `functions`, if given, other sessions too. `figures`
    add up what was done, and `leftovers` say, a sentence each, what runs that were killed had left beside the outputs.
    `kept` are receipts that someone else keeps, beside those of the options.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        peers: Peers = ALONE,
        observers: Iterable[Observer] = (),
        functions: Functions | None = None,
        kept: Iterable[Receipts] = (),
    ) -> None:
        self.options = options or Options()
        _keep_ranges(self.options)
        self.peers = peers
        self.figures = Figures()
        self.leftovers: dict[str, None] = {}
        self._swept: set[str] = set()
        self._journals = Journals(self.options.sync)
        self._resumption = Resumption(self.leftovers)
        self.taking = Taking()
        self._receipts = [*receipts(self.options, peers, lambda what: self._observer.written(what)), *kept]
        profile = traces(self.options, peers)
        self._observer = Observers([self.figures, self._journals, *profile, *self._receipts, *observers])
        self._functions = functions
        self._answers: dict[str, bytes] = {}  # what passes over the data have found, for a run that goes on

    def compile(
        self, plan: Plan, inputs: Mapping[str, Checkpoint] | None = None, outside: StorageOutside | None = None
    ) -> Compiled:
        """Everything about a plan that can be known without reading a tensor. `inputs` are checkpoints by alias, that
        stand in for the plan's inputs; `outside` is what reads its headers, if the caller wants to know of that.

        Raises:
            Problems: all that is wrong with it.
            SurgeryError: another process has another plan or other files, or something is wrong there.
        """
        plan, given = with_inputs(plan, inputs or {})
        outside = outside or StorageOutside(self.options, given)
        if self.peers.size == 1:
            return compile_with(plan, outside)
        from ..hosts.agreement import compare, facts_of_plan, facts_of_sources
        from ..hosts.sharing import together

        compare(self.peers, facts_of_plan(plan))
        return together(
            self.peers,
            lambda: compile_with(plan, outside),
            lambda: compare(self.peers, facts_of_sources(outside.sources)),
        )

    def sweep(self, paths: Iterable[str], *, mend: bool = True) -> None:
        """Name what runs that did not come to their end have left beside outputs, once for each, and with `mend` put
        back what they were replacing: that of a plan before its inputs are read, since one of them may be that. A run
        that goes on names only what it does not go on with.

        Raises:
            StorageError: an output is no path.
        """
        if self.peers.rank == 0:
            fresh = [path for path in (*paths, *texts_of(self.options)) if path not in self._swept]
            self._swept.update(fresh)
            found = leftovers(fresh, mend=mend)
            if not self.options.resume:
                self.leftovers |= dict.fromkeys(found)

    def look_back(self, plan: Plan, outputs: Outputs = ()) -> Report | None:
        """The report of a run of this plan that has come to its end, if this session is to go on with such runs: all
        outputs were there when it was killed, or their receipts say so. What another one was replacing is put back: to
        be called before inputs are read, and again when all `outputs` of the plan are known.

        Raises:
            StorageError: it cannot be put back, or was applied to its own input without what is asked for beside it.
        """
        if not self.options.resume:
            return None
        there, told = look_back(plan, outputs, self.options) if self.peers.rank == 0 else ([], [])
        there, told = json.loads(self.peers.share(json.dumps([there, told]).encode()))
        if not there:
            return None
        self.sweep(there)
        return Report(
            outputs=tuple(there), num_tensors=0, num_groups=0, leftovers=tuple(told), **self.figures.of(Report)
        )

    def run(self, transactions: Sequence[Transaction]) -> list[TransactionOutcome]:
        """All that the transactions ask for, in one program. If there are several, one whose assertions fail or whose
        outputs cannot appear does not keep the others from it: its outcome has the error.

        Raises:
            SurgeryError: what went wrong, for all of them. Nothing has appeared, and nothing temporary is left.
        """
        from ..execute.devices import check_fits_here
        from ..hosts.sharing import agreed_options
        from ..storage.commits import unwinding

        self.options = agreed_options(self.peers, self.options)
        transactions, whole, work = self._settle(transactions)
        check_fits_here(work)
        with unwinding() as stack:
            stack.callback(take_back)
            for kept in self._receipts:
                stack.callback(kept.end)
            try:
                works = self._write(transactions, whole, work, stack)
                Publisher(self.peers, self._observer, self.options.sync).commit(works)
            except BaseException as error:
                self.peers.stop(error)
                raise
        return [work.outcome for work in works]

    def report(self, outcome: TransactionOutcome) -> Report:
        """The account of a session that had one transaction."""
        symbolic = outcome.compiled.symbolic
        return Report(
            outputs=tuple(output.path for output, _ in outcome.compiled.outputs),
            num_tensors=sum(len(save.tensors) for save in symbolic.saves),
            num_groups=len(outcome.compiled.program.groups),
            printed=outcome.printed,
            leftovers=tuple(self.leftovers),
            warnings=tuple(symbolic.warnings),
            accounting=account_for(symbolic).as_json(),
            **self.taking.figures(),
            **self.figures.of(Report),
        )

    # -- before anything is written ---------------------------------------------------------------------------------

    def _settle(self, transactions: Sequence[Transaction]) -> tuple[Sequence[Transaction], Compiled, Schedule]:
        """The transactions with what the data answers to their questions, all of them as one, and what is left to do.
        The passes that find the answers read what the questions are about and write nothing."""
        from ..execute.devices import check_fits_here

        whole = self._check(transactions)
        answers: dict[Node, Any] = {}
        passes = 0
        while questions := whole.symbolic.questions:
            if passes == MAX_PASSES:
                raise PlanError(
                    "what the plan asks of the data changes from pass to pass",
                    found=f"{len(questions)} questions after {passes} passes",
                    hint="give random tensors a seed",
                )
            passes += 1
            work = whole.first(self.options.limits)
            asked = work.program.symbolic
            found = self._known(transactions, work)
            if found is None:
                check_fits_here(work)
                found = self._perform(work, (), is_last=False)
            self._answers[answers_key(work.program)] = found.pack(asked)
            answers |= {sink.node: found[sink] for sink in asked.sinks}
            answers |= {check.node: found[check].holds for check in asked.checks}
            transactions = [_answered(one, answers) for one in transactions]
            whole = joined([one.compiled for one in transactions])
        if passes:
            whole = self._check(transactions)
        if any(one.reuse for one in transactions):
            transactions = [self._taking_over(one) for one in transactions]
            whole = joined([one.compiled for one in transactions])
        return transactions, whole, whole.last(self.options.limits)

    def _taking_over(self, asked: Transaction) -> Transaction:
        if asked.reuse is None:
            return asked
        return replace(asked, compiled=self.taking.over(asked.compiled, asked.reuse, self.peers, self._receipts[0]))

    def _known(self, transactions: Sequence[Transaction], work: Schedule) -> Findings | None:
        """What a pass of an earlier run has found, if that is known and this is to go on with it."""
        packed = b""
        if self.options.resume and self.peers.rank == 0:
            paths = [output.path for asked in transactions for output, _ in asked.outputs]
            packed = self._resumption.answers(paths, work.program) or b""
        packed = self.peers.share(packed) if self.options.resume else packed
        return understood(work.program.symbolic, packed)

    def _check(self, transactions: Sequence[Transaction]) -> Compiled:
        """The work of all, once it is known that its outputs can be written and that it fits."""
        from ..hosts.sharing import agree

        whole = joined([asked.compiled for asked in transactions])
        if self.options.strict:
            for asked in transactions:
                check_strict(asked.compiled.symbolic)
        outputs = tuple(output for asked in transactions for output in asked.outputs)
        agree(self.peers, outputs)
        if self.peers.rank == 0:
            self.sweep(output.path for output, _ in outputs)
            check_targets(whole, self.options, outputs)
        return whole

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write(
        self, transactions: Sequence[Transaction], whole: Compiled, work: Schedule, stack: ExitStack
    ) -> list[Work]:
        """All outputs, in their hidden places."""
        from ..hosts.sharing import bring_in

        begun: _Begun = {}
        is_one = len(transactions) == 1
        staged = [self._stage(asked, stack, begun, is_one) for asked in transactions]
        targets = [target for _, own in staged for target in own]
        stagings = [staging for own, _ in staged for staging in own]
        findings = self._perform_rest(work, targets, stagings, begun, is_one)
        bring_in(self.peers, stagings)
        if whole.shorter is not None:
            findings = findings.of(whole.symbolic, whole.shorter)
        for kept in self._receipts:
            kept.gather()
        return [
            Work(asked.tag, own, TransactionOutcome(asked.compiled, findings, written))
            for asked, (own, written) in zip(transactions, staged, strict=True)
        ]

    def _stage(
        self, asked: Transaction, stack: ExitStack, begun: _Begun, is_one: bool
    ) -> tuple[list[Staging], list[OutputTarget]]:
        """Outputs in their hidden places, made by the first of the processes and opened by the others, and all that is
        written to. What is not committed when the stack closes is removed, or kept for a run that goes on. Those that
        another run has `begun` are added, with what is finished of them.

        Raises:
            StorageError: the operating system refuses, or this process does not see what the first one made.
        """
        from ..storage.uploads import open_staging

        stagings: list[Staging] = []

        def add(output: OutputPlan, layout: Layout, **how: Any) -> None:
            with held():  # from the moment when there is something, it is known that it must be removed
                staging = open_staging(output, layout, overwrite=self.options.overwrite, **how)
                stagings.append(staging)
                stack.push(partial(_abort, staging, is_one))
                self.peers.rescue(partial(staging.abort, keep=True))

        if self.peers.rank == 0:
            head = head_of(asked.compiled, self.options, self._answers)
            for output, layout in asked.outputs:
                found = self._resumption.begun(output, layout, head) if self.options.resume else None
                add(output, layout, begun=None if found is None else found[0])
                if found is not None:
                    begun[id(stagings[-1])] = stagings[-1], [*found[1], *stagings[-1].kept]
                if self.options.resume or stagings[-1].is_on_disk:
                    stagings[-1].write_head(head)
        if self.peers.size > 1:
            told = json.loads(self.peers.share(json.dumps([staging.tell() for staging in stagings]).encode()))
            for (output, layout), place in zip(asked.outputs, told, strict=True) if self.peers.rank else ():
                add(output, layout, told=place)
        self._observer.staged(Appearing(asked.compiled.symbolic, stagings, "", asked.tag))
        if self.peers.rank == 0:
            for staging in stagings:
                tell_laid(self._observer, staging)
        if asked.keep is None:
            return stagings, [*stagings]
        kept = asked.keep(*asked.compiled.outputs[-1])
        stack.callback(kept.close)
        return stagings, [*stagings, kept]

    def _perform_rest(
        self, work: Schedule, targets: Sequence[OutputTarget], stagings: Sequence[Staging], begun: _Begun, is_one: bool
    ) -> Findings:
        """The last pass, which writes what is not finished already; `is_one`: for one plan."""
        from ..storage.commits import may_go_on

        done = Done()
        if self.options.resume:
            if self.peers.rank == 0:
                done = self._resumption.done(work.program, _numbered(targets, begun), is_one=is_one)
            done = Done.unpacked(self.peers.share(done.packed()))
        error: BaseException | None = None
        try:
            self._journals.begin(stagings, self.peers.rank, is_one)
            return self._perform(work, targets, is_last=True, done=done)
        except BaseException as found:
            error = found
            raise
        finally:
            with held():
                self._journals.close(is_kept=may_go_on(error))

    def _perform(
        self, work: Schedule, targets: Sequence[OutputTarget], *, is_last: bool, done: Done | None = None
    ) -> Findings:
        """A pass over the data: what came of its checks and sinks."""
        from ..compile.functions import Functions
        from .perform import perform

        self._functions = self._functions or Functions()
        functions = self._functions
        return perform(
            work, targets, self.options, self._observer, self.peers, functions, is_last=is_last, done=done or Done()
        )


def _abort(staging: Staging, is_one: bool, kind: object, error: BaseException | None, at: object) -> None:
    """The end of a stack: what is not committed is removed, or kept for a run that goes on. Where one of several plans
    has failed, the others are tried again at once."""
    from ..storage.commits import may_go_on

    staging.abort(keep=may_go_on(error) and (is_one or not isinstance(error, Exception)))


def _numbered(targets: Sequence[OutputTarget], begun: _Begun) -> Iterator[tuple[Staging, int, Sequence[Finished]]]:
    """What is begun, each with the number that a program gives its first file."""
    first = 0
    for target in targets:
        if id(target) in begun:
            staging, finished = begun[id(target)]
            yield staging, first, finished
        first += len(target.layout.files)


def _answered(asked: Transaction, answers: Mapping[Node, Any]) -> Transaction:
    """A transaction whose plan knows what the data has answered."""
    compiled = asked.compiled
    return replace(asked, compiled=compiled.again(answers)) if compiled.symbolic.questions and compiled.again else asked
