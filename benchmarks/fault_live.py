"""All kinds of misbehaviour of a server that is asked live, each with what is expected of the annotation stage."""

from fault_course import COURSE, OVER_STARTS
from fault_engines import OLLAMA, OPENROUTER, VLLM
from fault_providers import AZURE, GEMINI, MISTRAL, OPENAI
from fault_transport import FORMS, TRANSPORT, USAGE

LIVE = (
    OPENAI
    + AZURE
    + GEMINI
    + MISTRAL
    + VLLM
    + OLLAMA
    + OPENROUTER
    + TRANSPORT
    + USAGE
    + FORMS
    + COURSE
    + OVER_STARTS
)
