"""docs/alerts.yml is what Prometheus takes, of series that there are, and each alert says what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import promql_parser
import pytest
import yaml

DOCS = Path(__file__).parent.parent / "docs"
DURATION = "^([0-9]+(ms|[smhdwy]))+$"
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
RULES = {
    "type": "object",
    "properties": {"groups": {"type": "array", "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "rules": {"type": "array", "minItems": 1, "items": {
            "type": "object",
            "properties": {
                "alert": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
                "expr": {"type": "string"},
                "for": {"type": "string", "pattern": DURATION},
                "labels": TEXTS | {"required": ["severity"]},
                "annotations": TEXTS | {"required": ["summary"]},
            },
            "required": ["alert", "expr", "labels", "annotations"],
            "additionalProperties": False,
        }}},
        "required": ["name", "rules"],
        "additionalProperties": False,
    }}},
    "required": ["groups"],
    "additionalProperties": False,
}  # fmt: skip
FILE = yaml.safe_load((DOCS / "alerts.yml").read_text())
ALERTS = [rule for group in FILE["groups"] for rule in group["rules"]]
PAGE = (DOCS / "metrics.md").read_text()


def test_the_file_has_the_form_of_rules():
    jsonschema.validate(FILE, RULES)
    names = [rule["alert"] for rule in ALERTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_series_that_there_are(rule):
    """tests/serve/test_metrics.py sees that those of the page are those of the server."""
    promql_parser.parse(rule["expr"])
    asked = {re.sub("_bucket$", "", name) for name in re.findall(r"\b[a-z]+:\w+|\bup\b", rule["expr"])}
    assert asked
    assert asked <= set(re.findall(r"`((?:llamafast|llamacpp):\w+)`", PAGE)) | {"up"}


def test_each_alert_is_on_the_page_with_what_to_do():
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r"`(Llamafast\w+)`", PAGE))


def test_queries_of_the_dashboard_are_such():
    panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
    for query in (target["expr"] for panel in panels for target in panel.get("targets", ())):
        promql_parser.parse(re.sub(r"\$__(rate_)?interval", "5m", query))
