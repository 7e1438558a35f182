"""What a request may say: OpenAI's fields, and the few of vLLM's that are used everywhere.

Every field is either honoured or refused. Fields of OpenAI's that this server cannot honour stand here with
`None` as their only value, so that clients that send nulls are served and others are told why not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_STOPS = 16

Id = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class Body(BaseModel):
    """JSON as it is: nothing is converted, nothing unknown is let by."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    type: Literal["text"]
    text: str


class FunctionCall(Body):
    name: str = Field(min_length=1)
    arguments: str | dict[str, Any] = Field(description="an object, or the JSON text of one")


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = Field(
        None, description='a text, or a list of parts {"type": "text", "text": "…"}'
    )
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # what OpenAI's own reply objects hold when they are sent back
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None


class Function(Body):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class StreamOptions(Body):
    include_usage: bool | None = None


class ResponseFormat(Body):
    type: Literal["text"]


class _Sampling(Body):
    model: str | None = Field(None, description="a name that /v1/models lists; by default the first")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31, description="0: all tokens")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = Field(
        None, description=f"a text, or a list of at most {MOST_STOPS}; none of them empty"
    )
    user: str | None = Field(None, description="who asks; changes no reply, and is not kept")
    logit_bias: None = Field(None, description="no token can be favoured or forbidden")


class ChatRequest(_Sampling):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = Field(
        None, description="`none` or `auto`: nothing can make this model call a tool"
    )
    parallel_tool_calls: Literal[True] | None = None
    response_format: ResponseFormat | None = Field(
        None, description='{"type": "text"}: nothing holds this model to a format'
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables of the chat template")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    functions: None = Field(None, description="write `tools`")
    function_call: None = Field(None, description="write `tool_choice`")
    reasoning_effort: None = Field(
        None, description="write chat_template_kwargs={...} with the template's own variable"
    )


class CompletionRequest(_Sampling):
    prompt: str | list[str] | list[Id] | list[list[Id]] = Field(
        description="a text, token ids, or a list of either"
    )
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    add_special_tokens: bool | None = Field(
        None, description="whether a text gets what the tokenizer puts before a text by itself (BOS); true"
    )
    best_of: Literal[1] | None = None
    suffix: None = Field(None, description="this model continues texts, it fills no gaps")


class TokenizeRequest(Body):
    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[Id]
