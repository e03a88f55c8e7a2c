import numpy as np
import pytest

from lit_spectron.recognizer import QUIETEST_SPEECH_DB, is_endless, loudest_frame_db


def test_levels():
    tone = np.sin(2 * np.pi * 220 * np.arange(16000) / 16000).astype(np.float32)
    assert loudest_frame_db(tone) == pytest.approx(10 * np.log10(0.5), abs=0.1)
    assert loudest_frame_db(np.concatenate([np.zeros(32000, np.float32), 0.01 * tone])) > QUIETEST_SPEECH_DB
    for silence in (np.zeros(16000, np.float32), 0.001 * tone, np.zeros(0, np.float32)):
        assert loudest_frame_db(silence) < QUIETEST_SPEECH_DB


def test_what_can_not_be_said_in_the_time():
    assert is_endless("in the latest " * 21, 2.0) and is_endless("one two three four", 0.1)
    assert not is_endless("he spoke as fast as anyone could follow", 2.0)
