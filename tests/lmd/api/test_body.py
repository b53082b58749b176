"""What is read of a request's JSON when much of it is wrong."""

import json

import pytest
from pydantic import BaseModel, ValidationError

from lmd.api.anthropic.body import MessagesBody
from lmd.api.completions.body import ChatBody, CompletionBody
from lmd.api.completions.embeddings import EmbeddingsBody
from lmd.api.native import RerankBody


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (CompletionBody, {"prompt": [{}] * 1000}),
        (CompletionBody, {"prompt": [["x"] * 10] * 1000}),
        (EmbeddingsBody, {"input": [{}] * 1000}),
        (EmbeddingsBody, {"input": [["x"] * 1000]}),
        (RerankBody, {"query": "q", "documents": [0] * 1000}),
        (ChatBody, {"messages": [{"role": "user", "content": [0] * 1000}]}),
        (ChatBody, {"messages": [0] * 1000}),
        (MessagesBody, {"max_tokens": 1, "messages": [{"role": "user", "content": [0] * 1000}]}),
    ],
)
def test_a_list_of_a_thousand_mistakes_is_a_few_errors(kind: type[BaseModel], said: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "m", **said}))
    assert caught.value.error_count() <= 10
