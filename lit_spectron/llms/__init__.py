from lit_spectron.llms.base import LanguageModel
from lit_spectron.llms.hugging_face import HuggingFaceLLM
from lit_spectron.llms.llama import LlamaFromScratch

__all__ = ["HuggingFaceLLM", "LanguageModel", "LlamaFromScratch"]
