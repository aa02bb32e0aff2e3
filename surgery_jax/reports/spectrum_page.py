"""Spectra as one self-contained HTML page: what each rank keeps, a heat map of layers and kinds of modules, and curves.

Drawn as SVG with the colours of the reader's scheme, light or dark; nothing is fetched and nothing is executed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import listing
from ..core.patterns import collapse
from .figures import FRACTIONS, doubling

if TYPE_CHECKING:
    from .spectrum import ModuleSpectrum, Spectrum

__all__ = ["render"]

SHOWN = 0.95  # the fraction of the energy of the heat map
MAX_KINDS = 48  # columns of the heat map; numbers beside the layer's are folded where there are more
MAX_LINES = 10  # kinds with a colour of their own
POINTS = 64  # of a curve

# Okabe and Ito's colours, told apart with deficient colour vision, the pale ones darkened; then a dash for the rest.
COLORS = ("#0b7dbd", "#d55e00", "#009e73", "#cc6ba0", "#b58900", "#56a5d8", "#8c6bb1", "#7a7a7a", "#c0392b", "#4d9221")
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # of viridis

STYLE = """
:root { color-scheme: light dark;
  --back: #ffffff; --text: #1f2328; --muted: #59636e; --line: #d1d9e0; --cell: #eaeef2; }
@media (prefers-color-scheme: dark) {
  :root { --back: #0d1117; --text: #e6edf3; --muted: #9198a1; --line: #3d444d; --cell: #21262d; }
}
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 1080px; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { max-width: 46rem; } .note { color: var(--muted); }
.wide { overflow-x: auto; }
svg { display: block; font: 12px system-ui, sans-serif; } svg text { fill: var(--text); }
svg .muted { fill: var(--muted); } svg .axis { stroke: var(--muted); } svg .grid { stroke: var(--line); }
svg .small { font-size: 10px; }
svg .none { fill: var(--cell); } svg .guide { stroke: var(--muted); stroke-dasharray: 4 4; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th { color: var(--muted); font-weight: 600; }
td, th { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; } summary { cursor: pointer; }
""".strip()


def render(spectrum: Spectrum) -> str:
    """The page."""
    what = "what fine-tuning changed" if spectrum.base is not None else "the matrices themselves"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Spectrum of {escape(spectrum.subject)}</title><style>{STYLE}</style></head><body>",
        f"<h1>Spectrum of {escape(spectrum.subject)}</h1>",
        f"<p>{_count(len(spectrum.modules), 'matrix', 'matrices')}; the singular values are those of {what}. "
        "The <em>energy</em> of a matrix is the sum of the squares of its singular values; the best approximation of "
        "rank r keeps the r largest of them.</p>",
        *_left_out(spectrum),
        *_kept_table(spectrum),
        *_heat_map(spectrum),
        *_curves(spectrum),
        *_module_table(spectrum),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _left_out(spectrum: Spectrum) -> Iterator[str]:
    still = len(spectrum.modules) - len(spectrum.changed)
    notes = [f"{_count(still, 'matrix', 'matrices')} without any energy: equal to the base, or zero"] if still else []
    for reason, names in spectrum.left_out.items():
        notes.append(f"{_count(len(names), 'tensor', 'tensors')} left out, {reason}: {listing(collapse(names))}")
    yield from (f'<p class="note">{escape(note)}</p>' for note in notes)


def _kept_table(spectrum: Spectrum) -> Iterator[str]:
    if not spectrum.changed:
        return
    yield "<h2>What a rank keeps</h2>"
    yield "<p>The energy that is kept if every matrix gets the same rank: of the matrix that keeps least, of the"
    yield "median matrix, and of all together.</p>"
    yield "<table><tr><th>rank</th><th>least</th><th>median</th><th>together</th></tr>"
    for rank in doubling(max(len(module.values) for module in spectrum.changed)):
        cells = "".join(f"<td>{math.floor(part * 1000) / 10:.1f} %</td>" for part in spectrum.kept(rank))
        yield f"<tr><td>{rank}</td>{cells}</tr>"
    yield "</table>"


def _module_table(spectrum: Spectrum) -> Iterator[str]:
    yield "<h2>All matrices</h2>"
    number = _count(len(spectrum.modules), "matrix", "matrices")
    yield f'<details><summary>{number}</summary><div class="wide"><table>'
    heads = ["name", "shape", "norm", *(["of base"] if spectrum.base is not None else [])]
    heads += ["largest value", "stable rank"]
    heads += [f"rank for {_percent(fraction)}" for fraction in FRACTIONS]
    yield "<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for module in spectrum.modules:
        cells = [escape(module.name), f"{module.shape[0]} × {module.shape[1]}", f"{module.norm:.3g}"]
        if module.base_norm is not None:
            cells.append(_percent(module.norm / module.base_norm) if module.base_norm else "–")
        cells += [f"{module.values[0]:.3g}", f"{module.stable_rank:.1f}"]
        cells += [str(module.rank_for(fraction)) for fraction in FRACTIONS]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table></div></details>"


# -------------------------------------------------------------------------------------------------------- heat map

CELL = (46, 22)  # width and height in pixels


def _heat_map(spectrum: Spectrum) -> Iterator[str]:
    """Layers down, kinds across, and below them the modules that belong to no layer."""
    layered = _columns([module for module in spectrum.modules if module.layer is not None])
    others = [module for module in spectrum.modules if module.layer is None]
    if not spectrum.changed:
        return
    # the scale is that of the layers: an embedding that changed everywhere would take it all
    scale = [module for module in spectrum.changed if module.layer is not None] or spectrum.changed
    top = max(map(_share, scale))
    yield f"<h2>Rank for {_percent(SHOWN)} of the energy</h2>"
    yield "<p>Numbers are ranks; colours are their share of the largest possible rank, min(m, n). Where a cell stands "
    yield "for several matrices, it shows their median. “–”: no energy.</p>"
    yield _legend(top, top < max(map(_share, spectrum.changed)))
    if layered:
        layers = sorted({layer for column in layered.values() for layer in column})
        rows = [(str(layer), [column.get(layer, []) for column in layered.values()]) for layer in layers]
        yield _grid(_short(list(layered)), rows, top, "layer")
    if others:
        yield '<p class="note">Matrices that belong to no layer:</p>'
        yield _grid(_short([module.name for module in others]), [("", [[module] for module in others])], top, "")


def _columns(modules: Sequence[ModuleSpectrum]) -> dict[str, dict[int, list[ModuleSpectrum]]]:
    """Modules by kind and layer; kinds that differ in further numbers are one where there are too many."""
    folded = len({module.kind for module in modules}) > MAX_KINDS
    found: dict[str, dict[int, list[ModuleSpectrum]]] = {}
    for module in modules:
        assert module.layer is not None
        found.setdefault(module.folded_kind if folded else module.kind, {}).setdefault(module.layer, []).append(module)
    return found


def _grid(heads: list[str], rows: list[tuple[str, list[list[ModuleSpectrum]]]], top: float, title: str) -> str:
    width, height = CELL
    left = 16 + max(len(label) for label, _ in rows) * 8 + (40 if title else 0)
    longest = max(map(len, heads)) * 7.2
    above = 18 + int(longest * math.sin(math.radians(35)))
    right = int(longest * math.cos(math.radians(35)))
    total = left + width * len(heads) + right, above + height * len(rows) + 4
    shapes = [_text(left + width * (at + 0.5) - 4, above - 6, head, turn=-35) for at, head in enumerate(heads)]
    if title:
        shapes.append(_text(12, above + height * len(rows) / 2, title, kind="muted", anchor="middle", turn=-90))
    for row, (label, cells) in enumerate(rows):
        y = above + row * height
        shapes.append(_text(left - 8, y + 15, label, anchor="end"))
        shapes += [_cell(left + at * width, y, modules, top) for at, modules in enumerate(cells)]
    return _svg(total, shapes)


def _cell(x: int, y: int, modules: list[ModuleSpectrum], top: float) -> str:
    width, height = CELL
    box = f'x="{x + 1}" y="{y + 1}" width="{width - 2}" height="{height - 2}" rx="2"'
    middle = f'text-anchor="middle" x="{x + width // 2}" y="{y + 15}"'
    if not modules:
        return ""
    with_energy = [module for module in modules if module.values[0] > 0]
    names = modules[0].name if len(modules) == 1 else f"{len(modules)} matrices such as {modules[0].name}"
    if not with_energy:
        return f'<g><title>{escape(names)}: no energy</title><rect class="none" {box}/><text {middle}>–</text></g>'
    share = float(np.median([_share(module) for module in with_energy]))
    rank = float(np.median([module.rank_for(SHOWN) for module in with_energy]))
    color = _color(share / top)
    ink = "#000" if _luminance(color) > 0.35 else "#fff"
    said = f"{names}: rank {rank:g} of {len(modules[0].values)} ({_percent(share)})"
    return (
        f'<g><title>{escape(said)}</title><rect {box} fill="rgb{color}"/>'
        f'<text {middle} style="fill: {ink}">{rank:.0f}</text></g>'
    )


def _legend(top: float, has_more: bool) -> str:
    width, height, left = 260, 12, 8
    stops = "".join(f'<stop offset="{at / 16:.3f}" stop-color="rgb{_color(at / 16)}"/>' for at in range(17))
    shapes = [f'<defs><linearGradient id="ramp">{stops}</linearGradient></defs>']
    shapes.append(f'<rect x="{left}" y="6" width="{width}" height="{height}" fill="url(#ramp)"/>')
    for at in range(5):
        anchor = "start" if at == 0 else "middle"
        more = "≥ " if at == 4 and has_more else ""
        shapes.append(_text(left + width * at / 4, 34, more + _percent(top * at / 4), kind="muted", anchor=anchor))
    shapes.append(_text(left + width + 36, 17, f"rank for {_percent(SHOWN)} / min(m, n)", kind="muted"))
    return _svg((left + width + 260, 42), shapes)


def _share(module: ModuleSpectrum) -> float:
    """The rank for the shown fraction as a share of the largest."""
    return module.rank_for(SHOWN) / len(module.values)


def _color(share: float) -> tuple[int, int, int]:
    """The colour of a share of 1."""
    at = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    red, green, blue = (round(a + (b - a) * (at - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True))
    return red, green, blue


def _luminance(color: tuple[int, int, int]) -> float:
    linear: list[float] = [(part / 255) ** 2.2 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# ---------------------------------------------------------------------------------------------------------- curves

PLOT = (640, 320)  # of the axes in pixels
MARGIN = (64, 14, 48)  # left, above, below


def _curves(spectrum: Spectrum) -> Iterator[str]:
    kinds: dict[str, list[ModuleSpectrum]] = defaultdict(list)
    for module in spectrum.changed:
        kinds[module.folded_kind].append(module)
    if not kinds:
        return
    labels = _short(list(kinds))
    longest = max(len(module.values) for module in spectrum.changed)
    yield "<h2>Energy against rank</h2>"
    yield "<p>The median over the matrices of a kind.</p>"
    guides = [(fraction, _percent(fraction)) for fraction in FRACTIONS]
    ticks = [(at / 10, f"{at * 10} %") for at in range(0, 11, 2)]
    energies = [_median(modules, lambda module, at: module.energy[at]) for modules in kinds.values()]
    yield _plot(labels, energies, longest, ticks, guides, "energy kept", lambda value: value)
    yield "<h2>Decay of the singular values</h2>"
    yield "<p>Each singular value divided by the largest of its matrix; the median over the matrices of a kind.</p>"
    values = [_median(modules, lambda module, at: module.values[at] / module.values[0]) for modules in kinds.values()]
    least = min(value for curve in values for _, value in curve if value > 0)
    decades = min(max(math.ceil(-math.log10(least) - 1e-9), 1), 8)
    ticks = [(1 - at / decades, _power(at)) for at in range(decades + 1)]
    yield _plot(labels, values, longest, ticks, [], "value / largest", lambda value: _decades(value, decades))


def _decades(value: float, decades: int) -> float:
    return max(1 + math.log10(value) / decades, 0.0) if value > 0 else 0.0


def _power(exponent: int) -> str:
    digits = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "1" if exponent == 0 else f"10⁻{str(exponent).translate(digits)}"


def _median(modules: Sequence[ModuleSpectrum], of: Callable[[ModuleSpectrum, int], float]) -> list[tuple[int, float]]:
    """The curve of a kind: ranks and medians, as far as its smallest matrix goes."""
    most = min(len(module.values) for module in modules)
    ranks = sorted({round(most ** (at / (POINTS - 1))) for at in range(POINTS)})
    return [(rank, float(np.median([of(module, rank - 1) for module in modules]))) for rank in ranks]


def _plot(
    labels: Sequence[str],
    curves: Sequence[list[tuple[int, float]]],
    longest: int,
    ticks: Iterable[tuple[float, str]],
    guides: Iterable[tuple[float, str]],
    title: str,
    height_of: Callable[[float], float],
) -> str:
    """Curves over the rank, on a logarithmic axis; `ticks` and `guides` are heights from 0 to 1 with their texts."""
    (width, height), (left, above, below) = PLOT, MARGIN
    bottom, doublings = above + height, math.log2(max(longest, 2))

    def across(rank: int) -> float:
        return left + width * math.log2(rank) / doublings

    def up(share: float) -> float:
        return bottom - height * share

    shapes = []
    for share, text in ticks:
        shapes.append(_line("grid", left, left + width, up(share), up(share)))
        shapes.append(_text(left - 8, up(share) + 4, text, kind="muted", anchor="end"))
    for rank in _ticks(longest):
        shapes.append(_line("grid", across(rank), across(rank), above, bottom))
        shapes.append(_text(across(rank), bottom + 18, str(rank), kind="muted", anchor="middle"))
    for share, text in guides:
        shapes.append(_line("guide", left, left + width, up(share), up(share)))
        shapes.append(_text(left + width + 6, up(share) + 4, text, kind="muted small"))
    shapes.append(_line("axis", left, left + width, bottom, bottom))
    shapes.append(_line("axis", left, left, above, bottom))
    shapes.append(_text(left + width / 2, bottom + 38, "rank", anchor="middle"))
    shapes.append(_text(14, above + height / 2, title, anchor="middle", turn=-90))
    for at, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        points = " ".join(f"{across(rank):.1f},{up(height_of(value)):.1f}" for rank, value in curve)
        title_text = f"<title>{escape(label)}</title>"
        shapes.append(f'<g fill="none" {_stroke(at)}>{title_text}<polyline points="{points}"/></g>')
    legend = left + width + 48
    for at, label in enumerate(labels[:MAX_LINES]):
        y = above + 12 + at * 20
        shapes.append(f'<line {_stroke(at)} x1="{legend}" x2="{legend + 26}" y1="{y - 4}" y2="{y - 4}"/>')
        shapes.append(_text(legend + 34, y, label))
    if len(labels) > MAX_LINES:
        y = above + 12 + MAX_LINES * 20
        shapes.append(_text(legend, y, f"and {len(labels) - MAX_LINES} more kinds, dashed", kind="muted"))
    total = legend + 40 + int(max(len(label) for label in (*labels[:MAX_LINES], "x" * 24)) * 7)
    return _svg((total, bottom + below), shapes)


def _ticks(longest: int) -> list[int]:
    """Ranks to write on the axis: powers of two, the last one only if it has room."""
    ranks = [2**at for at in range(longest.bit_length()) if 2**at <= longest]
    return ranks if longest / ranks[-1] < 1.25 else [*ranks, longest]


def _stroke(at: int) -> str:
    if at < MAX_LINES:
        return f'stroke="{COLORS[at % len(COLORS)]}" stroke-width="2"'
    return 'stroke="#888888" stroke-width="1" stroke-dasharray="2 3"'


# --------------------------------------------------------------------------------------------------------- details


def _text(x: float, y: float, content: str, *, kind: str = "", anchor: str = "start", turn: int = 0) -> str:
    """Text that is no mark-up; turned by so many degrees about its anchor."""
    place = f'transform="translate({x:.1f},{y:.1f}) rotate({turn})"' if turn else f'x="{x:.1f}" y="{y:.1f}"'
    named = f'class="{kind}" ' if kind else ""
    return f'<text {named}text-anchor="{anchor}" {place}>{escape(content)}</text>'


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _svg(size: tuple[int, int], shapes: Iterable[str]) -> str:
    width, height = size
    head = f'<div class="wide"><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, *filter(None, shapes), "</svg></div>"])


def _short(names: list[str]) -> list[str]:
    """Names without what all of them begin and end with, in whole words."""
    split = [name.split(".") for name in names]
    first, last = 0, 0
    shortest = min(map(len, split))
    while first < shortest - 1 and len({words[first] for words in split}) == 1:
        first += 1
    while last < shortest - first - 1 and len({words[-1 - last] for words in split}) == 1:
        last += 1
    if len(names) == 1:
        return names
    return [".".join(words[first : len(words) - last]) for words in split]


def _percent(share: float) -> str:
    """At most one decimal, and never rounded up, so that 100 % means all.

    >>> _percent(0.95), _percent(0.99996), _percent(0.0123), _percent(1.0)
    ('95 %', '99.9 %', '1.2 %', '100 %')
    """
    return f"{math.floor(share * 1000 + 1e-9) / 10:g} %"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
