"""Schemas that cannot be enforced are refused before anything is generated, by keyword and path."""

import gc
import tracemalloc
from typing import Any

import pytest

from lmd.chat.constraints import constrain
from lmd.chat.formats import Format
from lmd.chat.schema import check_grammar, check_schema
from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import ResponseFormat, Tool
from tests.lmd.chat.test_parser import HERMES


def test_an_unsupported_keyword_is_named_with_its_path() -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(Unsupported, match=r"'uniqueItems' at .*properties\.tags") as caught:
        constrain(Format(), response_format=ResponseFormat(kind="json_schema", source=schema))
    assert caught.value.param == "response_format.json_schema.schema.properties.tags"
    with pytest.raises(Unsupported, match="uniqueItems"):
        constrain(HERMES, tools=(Tool(name="f", parameters=schema),))


NODE = {"$ref": "#/$defs/node"}


@pytest.mark.parametrize(
    ("schema", "keywords", "at"),
    [
        ({"type": "array", "contains": {"type": "integer"}}, ["contains"], ""),
        ({"anyOf": [{"type": "string"}, {"not": {"type": "object"}}]}, ["not"], ".anyOf.1"),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, ["if", "then"], ""),
        ({"items": {"properties": {"a/b.c": {"unevaluatedItems": False}}}}, ["unevaluatedItems"],
         ".items.properties.a/b.c"),
        ({"properties": {"a": NODE}, "$defs": {"node": {"propertyNames": {}}}}, ["propertyNames"], ".$defs.node"),
        ({"properties": {"a": {"items": {"items": NODE}}},
          "$defs": {"node": {"properties": {"b": {"oneOf": [{"$ref": "#/$defs/c"}, {"type": "integer"}]}}}, "c": {}}},
         ["oneOf"], ".$defs.node.properties.b"),
        ({"properties": {"a": {"type": "string", "pattern": "(?=x)"}}}, ["pattern"], ".properties.a"),
        ({"prefixItems": [{"type": "string", "format": "banana"}]}, ["format"], ".prefixItems.0"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, ["$ref"], ".properties.a"),
        ({"properties": {"a": {"type": "object", "properties": {"b": {}}, "minProperties": 1}}},
         ["properties", "minProperties"], ".properties.a"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_named_with_its_path(schema: Any, keywords: list[str], at: str) -> None:
    with pytest.raises(Unsupported) as caught:
        constrain(Format(), response_format=ResponseFormat(kind="json_schema", source=schema))
    assert caught.value.param == f"response_format.json_schema.schema{at}"
    assert ", ".join(f"'{keyword}'" for keyword in keywords) in caught.value.message


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "banana"}, "type"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"enum": []}, "enum"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"$ref": "#/$defs/nowhere"}, "$ref"),
    ],
)
def test_a_schema_that_is_wrong_or_fits_nothing_is_named_too(schema: Any, keyword: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constrain(Format(), response_format=ResponseFormat(kind="json_schema", source=schema))
    assert f"'{keyword}'" in caught.value.message
    assert caught.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize("number", [10**400, -(10**400), float("inf"), float("nan")])
def test_a_number_that_llguidance_cannot_read_is_refused_where_it_is(number: float) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "number", "maximum": number}}}
    with pytest.raises(InvalidRequest) as caught:
        check_schema(schema, "schema")
    assert caught.value.param == "schema.properties.age"


def test_schemas_are_not_kept_once_they_have_been_looked_at() -> None:
    """What is remembered of a schema must not be the schema: clients may send hundreds, of a megabyte each."""

    def look(number: int) -> None:
        check_schema({"type": "string", "description": f"{number}" * 200_000}, "schema")
        check_grammar(f'start: "{number}"\n// ' + "x" * 200_000, "grammar")
        with pytest.raises(InvalidRequest):
            check_grammar(f"start: {number} " + "x" * 200_000, "grammar")

    look(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, 6):
            look(number)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000
