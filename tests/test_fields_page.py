"""docs/fields.md is that of the schemas: a field without its line fails here."""

from __future__ import annotations

import re

import msgspec
import pytest
from support.apps import make_app
from support.fake_engine import FakeEngine

from llamafast.api.schema.fragments import GenerationOptions
from llamafast.engine.types import SamplingParams
from recipes import fields

# what a POST to these says is in their path
WITHOUT_BODY = {"/reset_prefix_cache", "/v1/responses/{id}/cancel"}


def test_the_page_is_that_of_the_schemas():
    """``python -m recipes.fields`` writes it, once docs/fields.toml has a line for each field."""
    assert fields.page(fields.WORDS.read_text()) == fields.PAGE.read_text(), "run: python -m recipes.fields"


def test_every_endpoint_that_takes_a_body_is_on_it():
    posts = {route.path for route in make_app(FakeEngine()).routes.all if "POST" in route.methods}
    assert posts - {path for endpoint in fields.ENDPOINTS for path in endpoint.paths} == WITHOUT_BODY


def test_a_field_without_its_line_is_named(monkeypatch):
    class More(GenerationOptions, kw_only=True):
        new_field: int | None = None

    monkeypatch.setattr(fields, "ENDPOINTS", (*fields.ENDPOINTS, fields.Endpoint(("/new",), More)))
    with pytest.raises(fields.Missing, match=r"\[More\] has no line for `new_field`"):
        fields.page(fields.WORDS.read_text())


def test_a_line_without_its_field_is_named():
    with pytest.raises(fields.Missing, match=r"no field is Gone\.old"):
        fields.page(fields.WORDS.read_text() + '\n[Gone]\nold = "what it was"\n')


def test_defaults_of_sampling_are_those_that_hold():
    defaults = msgspec.json.decode(msgspec.json.encode(SamplingParams()))
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^|]+)` \| ", fields.PAGE.read_text(), re.MULTILINE))
    assert len(defaults.keys() & told.keys()) > 20
    for name in defaults.keys() & told.keys():
        assert msgspec.json.decode(told[name]) == defaults[name], name
