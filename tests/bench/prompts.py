"""Prompts of a known length that share nothing: seeded random words, about one token each in every large vocabulary."""

import random
from collections.abc import Sequence

Message = dict[str, str]

WORDS = (  # noqa: SIM905 - a list literal of 130 words is a page long
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
    " back parent face others level office door health person art war history party result change morning reason"
    " research girl guy moment air teacher force education river stone cloud forest garden window bridge mirror ocean"
    " paper music winter summer happy quick large small bright dark old new warm cold soft red blue green gold silver"
).split()


def random_text(rng: random.Random, n_words: int) -> str:
    """``n_words`` words, drawn independently."""
    return " ".join(rng.choices(WORDS, k=n_words))


def unshared_chat(rng: random.Random, n_words: int) -> list[Message]:
    """A conversation of ``n_words`` words in all, which no other draw shares a beginning with.

    The first words stand in a system message: many templates put a fixed system prompt before a conversation
    without one, and that would be a prefix that all clients share.
    """
    n_first = min(4, n_words - 1)
    return [
        {"role": "system", "content": random_text(rng, n_first)},
        {"role": "user", "content": random_text(rng, n_words - n_first)},
    ]


def shared_chat(system: str, rng: random.Random, n_words: int) -> list[Message]:
    """A conversation that begins with the ``system`` prompt that all share and goes on with ``n_words`` words."""
    return [{"role": "system", "content": system}, {"role": "user", "content": random_text(rng, n_words)}]


def n_words(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)
