"""The figures of a release as tables: a line for each method, so that a model stands beside the rules of one line."""

from collections.abc import Iterable, Iterator

from segrec.cli.records import table
from segrec.v1.model_service_pb2 import Figure


def figure_tables(figures: Iterable[Figure]) -> Iterator[str]:
    """Lines of one table for each protocol: methods in their order, metrics as columns, bounds in brackets."""
    by_protocol: dict[str, list[Figure]] = {}
    for figure in figures:
        by_protocol.setdefault(figure.protocol, []).append(figure)
    for protocol, members in by_protocol.items():
        metrics = list(dict.fromkeys(map(_metric, members)))
        cells = {(figure.method, _metric(figure)): _value(figure) for figure in members}
        methods = dict.fromkeys(figure.method for figure in members)
        yield from ("", f"{protocol or 'figures'}:")
        lines = [(method, *(cells.get((method, metric), "") for metric in metrics)) for method in methods]
        yield from table(("method", *metrics), lines)


def _metric(figure: Figure) -> str:
    return f"{figure.metric}@{figure.k}" if figure.HasField("k") else figure.metric


def _value(figure: Figure) -> str:
    bounds = f" ({figure.low:.4f} to {figure.high:.4f})" if figure.HasField("low") and figure.HasField("high") else ""
    return f"{figure.value:.4f}{bounds}"
