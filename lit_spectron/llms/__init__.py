from lit_spectron.llms.base import LanguageModel
from lit_spectron.llms.llama import LlamaFromScratch

__all__ = ["LanguageModel", "LlamaFromScratch"]
