"""LM Studio's REST API: v0 (``/api/v0``, OpenAI's bodies with statistics) and v1 (``/api/v1``)."""
