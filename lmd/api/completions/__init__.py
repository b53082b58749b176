"""OpenAI's chats and completions on the wire: bodies, answers, chunks, errors.

Two dialects speak it: OpenAI's own (``lmd.api.openai``) and LM Studio's v0, which adds to the answers.
"""
