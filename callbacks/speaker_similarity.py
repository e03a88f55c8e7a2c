"""Whether the continuation is in the prompt's voice.

Shapes: N utterances, E width of an embedding.
"""

import hashlib

import torch
from torch import Tensor
from torchmetrics import Metric, SumMetric
from torchmetrics.utilities import dim_zero_cat

from callbacks.base import FreeRunningMetric
from callbacks.evidence import Evidence
from lit_spectron.evaluators import EcapaEmbedder, SpeakerEmbedder


class SpeakerSimilarity(FreeRunningMetric):
    """``speaker_similarity`` and ``speaker_similarity_mismatched``.

    ``speaker_similarity``: cosine of the embeddings of the prompt and of its continuation, mean over utterances.
    ``speaker_similarity_mismatched``: the floor: each prompt's mean cosine with the continuations of all other
    speakers' prompts in the same stage, mean over prompts; NaN where there is one speaker only.

    Embedding models disagree about which system is better: name the model beside the figure, and use two.

    Args:
        embedder: Tells voices apart.
        suffix: Of the metrics' names, for a second callback with another embedder.
    """

    def __init__(self, embedder: SpeakerEmbedder = EcapaEmbedder(), suffix: str = "") -> None:
        super().__init__()
        self.embedder = embedder
        self.name = f"speaker_similarity{suffix}"
        pairs = EmbeddingPairs(self.name, f"speaker_similarity_mismatched{suffix}")
        self.metrics = {self.name: pairs, f"{self.name}_left_out": SumMetric()}

    def update(self, evidence: Evidence) -> None:
        batch = evidence.batch
        prompts, continuations = evidence.prompt_embeddings(self.embedder), evidence.embeddings(self.embedder)
        for name, speaker, prompt, continuation in zip(batch.ids, batch.speakers, prompts, continuations, strict=True):
            if prompt is None or continuation is None:
                self.leave_out(self.name, name, "no embedding of the prompt or the continuation")
            else:
                self.metrics[self.name].update(speaker, prompt, continuation)
                self.note(self.name, name, float(prompt @ continuation))


class EmbeddingPairs(Metric):
    """Embeddings of all prompts and continuations with their speakers, kept until the end of the stage.

    Args:
        matched: Name of the mean cosine of prompt and own continuation.
        mismatched: Name of that of prompt and other speakers' continuations.
    """

    numbers: list[Tensor]
    width: Tensor

    def __init__(self, matched: str, mismatched: str) -> None:
        super().__init__()
        self.names = (matched, mismatched)
        # One flat list of float32: a process without any gives an empty one, which torchmetrics makes of that kind.
        self.add_state("numbers", [], dist_reduce_fx="cat")
        self.add_state("width", torch.zeros((), dtype=torch.long), dist_reduce_fx="max")

    def update(self, speaker: str, prompt: Tensor, continuation: Tensor) -> None:
        """One utterance: embeddings (E,) of unit length."""
        digest = hashlib.sha256(speaker.encode()).digest()
        key = torch.tensor([int.from_bytes(digest[:3]), int.from_bytes(digest[3:6])])  # 24 bits are exact in float32
        row = torch.cat([key.float(), prompt.float().cpu(), continuation.float().cpu()]).to(self.device)
        self.numbers.append(row)
        self.width.fill_(len(row))

    def compute(self) -> dict[str, Tensor]:
        if not self.width:
            return dict.fromkeys(self.names, torch.tensor(torch.nan, device=self.device))
        speakers, embeddings = dim_zero_cat(self.numbers).view(-1, int(self.width)).tensor_split([2], dim=1)
        prompts, continuations = embeddings.double().chunk(2, dim=1)
        _, speaker = speakers.unique(dim=0, return_inverse=True)
        # The sum of cosines is the cosine with the sum.
        sums = continuations.new_zeros(int(speaker.max()) + 1, continuations.shape[1])
        others = continuations.sum(0) - sums.index_add(0, speaker, continuations)[speaker]
        mismatched = (prompts * others).sum(1) / (len(speaker) - speaker.bincount()[speaker])
        values = ((prompts * continuations).sum(1).mean(), mismatched.nanmean())
        return dict(zip(self.names, (v.float() for v in values), strict=True))
