"""``ttl`` as requests give it."""

from math import inf

from lmd.errors import InvalidRequest
from lmd.protocol import parse_duration


def ttl_of(said: float | str | None) -> float | None:
    """Seconds, or a duration such as "5m"; -1 and "never" pin (inf)."""
    if said is None:
        return None
    if isinstance(said, str):
        try:
            return parse_duration(said)
        except ValueError as error:
            raise InvalidRequest(f"'ttl' is wrong: {error}.", param="ttl") from None
    if said == -1:
        return inf
    if said < 0:
        raise InvalidRequest("'ttl' is negative.", hint="Give seconds, or -1 to keep the model loaded.", param="ttl")
    return said
