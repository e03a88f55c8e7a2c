import pytest
import torch

from lit_spectron.generation import GenerationSettings, generate
from lit_spectron.model import split_waveform

TEXTS = ("one two", "red green blue", "monday", "what is it")


@pytest.mark.slow
def test_four_utterances_are_learnt_by_heart(tiny_model, batch, audio):
    """Text comes back free-running, and speech that has been heard to the end stops by itself."""
    four = batch((0.9, 1.0, 1.1, 1.2), 0.4, TEXTS)
    for i, n in enumerate(four.lengths.tolist()):  # a chord each
        time = torch.arange(n) / audio.sample_rate_hz
        four.waveform[i, :n] = 0.3 * (torch.sin(time * 1300 * (i + 1)) + torch.sin(time * time * 2000 * (i + 1)))
    model = tiny_model().train()
    log_mel, lengths = model.log_mel(four.waveform, four.lengths)
    frames = torch.cat([log_mel[i, :n] for i, n in enumerate(lengths)])
    model.set_mel_statistics(frames.mean(0), frames.std(0), len(frames))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(300):
        losses = model(four).losses
        total = losses["text"] + 0.1 * losses["spectrogram"] + losses["stop"]
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses["text"] < 0.05

    prompt, _ = split_waveform(four.waveform, four.lengths, four.prompt_samples)
    settings = GenerationSettings(max_text_tokens=30, max_speech_seconds=2.0, silence_seconds=None, repeat_seconds=None)
    generation = generate(model.eval(), prompt, four.prompt_samples, settings, four.ids)
    assert generation.text == list(TEXTS) and generation.text_stop_reason == ["eos"] * 4
    assert generation.stop_reason.count("stop") >= 3
    spoken = audio.samples_to_frames(four.lengths - four.prompt_samples)
    near = (generation.lengths - spoken).abs() <= 2 * model.decoder.reduction_factor
    assert near.sum() >= 3
