"""Which form a request has, and what a header of the binary form says."""

from __future__ import annotations

import json

import pytest

from ingest.cloudevents import Form, _forms, decode_header, form_of, structured

BOTH = {"ce-specversion": "1.0", "ce-id": "1"}


@pytest.mark.parametrize(
    ("kind", "headers", "form"),
    [
        ("application/json", {}, Form.STRUCTURED),
        (" Application/JSON ; charset=utf-8", {}, Form.STRUCTURED),
        ("application/json", {"ce-id": "1"}, Form.BINARY),  # an event that lacks something is told so, and is no event in the body
        ("application/json", {"ce-specversion": "1.0"}, Form.BINARY),
        ("application/json", {"ce-source": "/edge"}, Form.STRUCTURED),
        ("application/vnd.x+json", BOTH, Form.BINARY),
        ("application/vnd.x+json", {}, None),
        (None, BOTH, Form.BINARY),
        ("", BOTH, Form.BINARY),
        (None, {}, None),
        ("application/cloudevents+json; charset=utf-8", BOTH, Form.STRUCTURED),
        ("application/cloudevents-batch+json", BOTH, Form.STRUCTURED),
        ("application/cloudevents+avro", BOTH, None),
        ("application/cloudevents+avro", {}, None),
        ("text/plain", BOTH, None),
        ("application/json-seq", BOTH, None),
    ],
)
def test_the_form_follows_the_media_type_and_the_headers(kind: str | None, headers: dict[str, str], form: Form | None) -> None:
    assert form_of(kind, headers) is form


def test_few_media_types_are_remembered() -> None:
    """A sender may think of ever new ones."""
    for number in range(1000):
        form_of(f"application/json; {number}", {})
    assert _forms.cache_info().currsize <= 64


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("%22x%22", '"x"'),  # no quotes around it: they are in it
        ('"%22x%22"', '"x"'),
        ('"a" and "b"', '"a" and "b"'),
        (r'"a\\b\"c"', r'a\b"c'),
        ('""', ""),
        (r'"a\"', r'"a\"'),  # the quote at its end is one of the text
        ("a%2", "a%2"),
        ("caf%E9", "café"),
    ],
)
def test_a_header_without_its_quotes_and_percent_signs(sent: str, meant: str) -> None:
    assert decode_header(sent) == meant


def test_a_binary_request_becomes_one_event_of_all_that_is_read() -> None:
    attributes = {"specversion": "1.0", "id": "1", "source": "/edge", "type": "ping", "subject": "s", "time": "2026-11-24T10:00:00Z"}
    headers = {f"ce-{name}": value for name, value in attributes.items()}
    assert json.loads(structured({**headers, "ce-extension": "x", "id": "other"}, b"")) == attributes
    assert json.loads(structured(headers, b'{"n":1}')) == {**attributes, "data": {"n": 1}}
