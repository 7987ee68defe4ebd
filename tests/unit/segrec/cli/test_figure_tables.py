"""The figures of a release beside those of rules."""

from segrec.cli.figure_tables import figure_tables
from segrec.v1.model_service_pb2 import Figure


def test_methods_are_lines_and_metrics_columns() -> None:
    figures = [
        Figure(protocol="as served", method="hybrid", metric="ndcg", k=10, value=0.1, low=0.09, high=0.11),
        Figure(protocol="as served", method="hybrid", metric="coverage", value=0.5),
        Figure(protocol="as served", method="popularity", metric="ndcg", k=10, value=0.05),
        Figure(method="encoder", metric="loss", value=3.25),
    ]
    assert list(figure_tables(figures)) == [
        "",
        "as served:",
        "method      ndcg@10                    coverage",
        "hybrid      0.1000 (0.0900 to 0.1100)    0.5000",
        "popularity  0.0500",
        "",
        "figures:",
        "method     loss",
        "encoder  3.2500",
    ]
    assert list(figure_tables([])) == []
