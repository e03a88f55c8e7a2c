"""An LLM with weights in int8, to decode faster on a CPU: a step reads every weight, and these are a quarter as long.

Shapes: I inputs, O outputs of a layer.
"""

import torch
from torch import Tensor, nn

from lit_spectron.errors import UserError
from lit_spectron.llms.base import LanguageModel
from lit_spectron.llms.causal_lm import CausalLM

LARGEST = 127
# Torch's kernel reads so many inputs at once, and beyond the end of a row if they are no multiple of it.
WIDTH = 16


class Int8Linear(nn.Module):
    """A linear layer whose weights (O, I) are int8 times a scale for each output.

    Products are those of bfloat16, as in training with ``bf16-mixed``: what comes in is rounded to it, and so is what
    comes out. Rounding that to int8, too, would be faster still, but one scale for all that a layer is given is too
    coarse: some of an LLM's activations are far larger than all others.

    Args:
        linear: In float32.

    Source: Dettmers et al. 2022, section 3, on those activations.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        scales = (weight.abs().amax(1) / LARGEST).clamp(min=torch.finfo(weight.dtype).tiny).bfloat16()
        rounded = (weight / scales[:, None].float()).round().clamp(-LARGEST, LARGEST)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        rows = torch._weight_int8pack_mm(x.flatten(0, -2).bfloat16(), self.weight, self.scales)
        product = rows.unflatten(0, x.shape[:-1]).to(x.dtype)
        return product if self.bias is None else product + self.bias


@torch.no_grad()
def store_in_int8(llm: LanguageModel) -> None:
    """Replaces all linear layers but the output layer, whose logits decide, and those of a width that is no multiple of
    `WIDTH`. The LLM is no longer fit for training or saving.

    Raises:
        UserError: It has none of torch's linear layers, or is not on a CPU.
    """
    output = llm.network.get_output_embeddings() if isinstance(llm, CausalLM) else None
    replaced = 0
    for module in list(llm.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child is not output and child.in_features % WIDTH == 0:
                if child.weight.device.type != "cpu":
                    raise UserError(f"--weights: int8 is for CPUs, and the model is on {child.weight.device}")
                setattr(module, name, Int8Linear(child))
                replaced += 1
    if not replaced:
        raise UserError("--weights: this checkpoint's LLM has no linear layers that int8 is known for")
