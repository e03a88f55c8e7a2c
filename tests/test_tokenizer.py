import json

import pytest

from lit_spectron.errors import UserError
from lit_spectron.llms.tokenizer import Tokenizer, byte_tokenizer

TEXTS = ["monday tuesday", "Füße, 東京 – 🎈!", "two  spaces", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_give_any_text_back(text: str):
    tokenizer = Tokenizer()
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert len(tokenizer) == 256 + 3


def test_special_tokens_are_distinct_added_nowhere_and_left_out(repository):
    for tokenizer in (Tokenizer(), Tokenizer(str(repository / "data/sequences/tokenizer.json"))):
        special = {tokenizer.pad_id, tokenizer.sos_id, tokenizer.eos_id}
        ids = tokenizer.encode("monday")
        assert len(special) == 3 and not special & set(ids) and max(special) < len(tokenizer)
        assert tokenizer.decode([tokenizer.sos_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == "monday"


def test_content_and_file_are_the_same_tokenizer(tmp_path, repository):
    content = (repository / "data/sequences/tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "t.json").write_text(content, encoding="utf-8")
    from_file, from_content = Tokenizer(str(tmp_path / "t.json")), Tokenizer(content)
    again = Tokenizer(from_file.to_json())
    for text in TEXTS:
        assert from_file.encode(text) == from_content.encode(text) == again.encode(text)
    assert from_file.encode("tuesday") != Tokenizer().encode("tuesday")


@pytest.mark.parametrize("content", ["no json", "[]", '{"version": "1.0"}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=r"bad\.json"):
        Tokenizer(str(tmp_path / "bad.json"))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"missing\.json"):
        Tokenizer("missing.json")


@pytest.mark.parametrize("token", ["<pad>", "<sos>", "<eos>"])
def test_a_missing_special_token_is_named(token):
    content = json.loads(byte_tokenizer().to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != token]
    del content["model"]["vocab"][token]
    with pytest.raises(UserError, match=token):
        Tokenizer(json.dumps(content))
