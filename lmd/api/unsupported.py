"""What the dialects understand and this version cannot do."""

from lmd.errors import Unsupported
from lmd.generation import ChatPrompt, GenerationRequest, ImagePart


def refuse_unsupported(request: GenerationRequest) -> None:
    """Unsupported for what is understood but has nothing behind it yet. What lands deletes its lines here."""
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        return
    if any(isinstance(part, ImagePart) for message in prompt.messages for part in message.parts):
        raise Unsupported(
            "Images are not implemented in this version of lmd.", hint="Send the text alone.", param="messages"
        )
