"""Pictures of spectrograms."""

from matplotlib.figure import Figure
from torch import Tensor

from lit_spectron.audio import AudioSpec


def spectrogram_figure(panels: dict[str, Tensor], audio: AudioSpec, title: str) -> Figure:
    """Log-mel spectrograms (F, M) side by side on one time and one colour scale.

    Args:
        panels: Log-mel by caption.
        audio: Their geometry.
        title: Of the whole figure.
    """
    seconds = [max(audio.frames_to_seconds(len(panel)), audio.hop_seconds) for panel in panels.values()]
    figure = Figure(figsize=(2.5 + 2.2 * sum(seconds), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=seconds)[0]
    low = audio.log_mel_floor
    high = max(float(panel.max()) for panel in panels.values())
    for axis, (caption, panel), length in zip(axes, panels.items(), seconds, strict=True):
        picture = axis.imshow(
            panel.float().T.cpu().numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, length, 0, audio.n_mels),
            vmin=low,
            vmax=max(high, low + 1),
            interpolation="nearest",
        )
        axis.set_title(caption, fontsize=9)
        axis.set_xlabel("seconds", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("mel channel", fontsize=8)
    figure.colorbar(picture, ax=list(axes), label="log magnitude")
    figure.suptitle(title, fontsize=10)
    return figure
