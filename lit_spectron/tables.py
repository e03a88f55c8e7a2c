"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; bars and line ends in cells do it no harm."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return [f"| {' | '.join(row)} |" for row in lines]


def with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """``0.1333 [0.1010, 0.1700]``, ``0.1333`` or ``none``."""
    if value is None:
        return "none"
    return f"{value:.4f}" + (f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "")
