"""What the dialects understand and this version cannot do."""

from lmd.errors import Unsupported
from lmd.generation import ChatPrompt, GenerationRequest, ImagePart


def refuse_unsupported(request: GenerationRequest) -> None:
    """Unsupported for what is understood but has nothing behind it yet. What lands deletes its lines here."""

    def refuse(what: str, param: str) -> None:
        raise Unsupported(
            f"{what} are not implemented in this version of lmd.", hint=f"Leave '{param}' out.", param=param
        )

    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        if any(isinstance(part, ImagePart) for message in prompt.messages for part in message.parts):
            refuse("Images", "messages")
    elif prompt.echo and request.logprobs is not None:
        refuse("Log probabilities of an echoed prompt", "echo")
