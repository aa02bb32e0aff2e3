"""`surgery-jax spectrum`."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..command import BUDGETS, FILTER, JSON, OVERWRITE, QUIET, Argument, Command, options_of
from ..streams import emit, flush, name_leftovers, note
from ..text import count, json_text, listed, some, table

if TYPE_CHECKING:
    from ...reports.spectrum import ModuleSpectrum, Spectrum

BARS = "▁▂▃▄▅▆▇█"
POINTS = 8  # of the bars: ranks 1, 2, 4, ... 128
DECADES = 4  # that the bars span


class SpectrumCommand(Command):
    """Show how fast singular values fall, to choose a rank: of a checkpoint, or of what a fine-tune changed.

    For every matrix: how its singular values decay, and the rank that keeps 90, 95 and 99 % of the energy, the sum of
    their squares. With --html also a page with a heat map of layers and kinds of modules, and curves.
    """

    name = "spectrum"
    arguments = (
        Argument("checkpoint", "checkpoint; with another, the base of it", "BASE", completes="file"),
        Argument("tuned", "a fine-tune of it", "TUNED", completes="file", optional=True),
        FILTER,
        Argument("--html", "write a self-contained page to this file", "FILE", completes="file"),
        OVERWRITE,
        *BUDGETS,
        QUIET,
        JSON,
    )

    def run(self, args: Namespace) -> int:
        from ...api import spectrum
        from ...session.passes import leftovers
        from ...storage.files import check_new_file, write_whole
        from ..progress import shown

        if args.html is not None:
            check_new_file(args.html, args.overwrite)
            name_leftovers(leftovers([args.html], mend=True))
        with shown(args.quiet) as display:
            found = spectrum(args.checkpoint, args.tuned, options_of(args), filter=args.filter, progress=display)
        if args.html is not None:
            write_whole(args.html, found.as_html())
        emit(json_text(found.as_json()) if args.json else listed(_lines(found)))
        flush()
        if args.html is not None and not args.quiet:
            note(f"wrote {args.html}")
        return 0


def _lines(found: Spectrum) -> Iterator[str]:
    from ...core.patterns import collapse
    from ...reports.figures import FRACTIONS, doubling

    heads = ["module", "shape", "norm", *(["of base"] if found.base is not None else []), "decay"]
    heads += [*(f"{fraction:.0%}" for fraction in FRACTIONS), "of"]
    rows = [heads]
    for module in found.modules:
        cells = [module.name, f"{module.shape[0]}x{module.shape[1]}", f"{module.norm:.3g}"]
        if module.base_norm is not None:
            cells.append(f"{module.norm / module.base_norm:.2%}" if module.base_norm else "-")
        cells += [_bars(module), *(str(module.rank_for(fraction)) for fraction in FRACTIONS), str(len(module.values))]
        rows.append(cells)
    at = len(heads) - 5
    yield from table(rows, right=[2, *range(3, at), *range(at + 1, len(heads))])
    if found.changed:
        yield ""
        kept: list[Sequence[str]] = [("rank of all", "least", "median", "together")]
        for rank in doubling(max(len(module.values) for module in found.changed)):
            kept.append((str(rank), *(_share(part) for part in found.kept(rank))))
        yield from table(kept, right=(0, 1, 2, 3))
    still = len(found.modules) - len(found.changed)
    if still:
        yield f"{count(still, 'matrix', 'matrices')} without any energy: equal to the base, or zero"
    for reason, names in found.left_out.items():
        yield f"{count(len(names), 'tensor')} left out, {reason}: {some(collapse(names), 3)}"


def _bars(module: ModuleSpectrum) -> str:
    """Singular values of ranks that double, as bars of their logarithm."""
    if not module.values[0] > 0:
        return "-"
    text = ""
    for rank in (2**at for at in range(POINTS)):
        if rank <= len(module.values):
            share = float(module.values[rank - 1] / module.values[0])
            height = 1 + math.log10(share) / DECADES if share > 0 else 0.0
            text += BARS[min(max(int(height * len(BARS)), 0), len(BARS) - 1)]
    return text


def _share(part: float) -> str:
    """A percentage that is never rounded up, so that 100 % means all."""
    return f"{math.floor(part * 1000) / 10:.1f}%"
