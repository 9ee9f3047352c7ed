"""gdtuo.lab.characters: the numbers spell the text, whatever characters it has."""

import pytest
import torch

from gdtuo.lab.characters import read_text


def test_numbers_are_places_among_the_sorted_characters(tmp_path):
    """Against a dictionary and a loop; characters of 1 to 4 bytes, line ends of both kinds."""
    written = "Žluťoučký kůň, 馬 🐎!\r\n\tÀ bientôt\n" * 7 + "Ω"
    (tmp_path / "a.txt").write_bytes(written.encode())
    text = read_text(tmp_path / "a.txt")
    places = {character: place for place, character in enumerate(sorted(set(written)))}
    numbers = [places[character] for character in written]
    cut = len(written) - len(written) // 10
    assert text.vocabulary == "".join(sorted(set(written)))
    assert text.train.dtype == text.validation.dtype == torch.int64
    assert text.train.tolist() == numbers[:cut]
    assert text.validation.tolist() == numbers[cut:]
    assert text.vocabulary[text.validation[-1]] == "Ω"  # only there, and yet it has a number


@pytest.mark.parametrize(("characters", "validation"), [(20, 2), (29, 2), (30, 3), (1000, 100)])
def test_the_last_tenth_is_for_validation(tmp_path, characters, validation):
    (tmp_path / "a.txt").write_text("ab" * (characters // 2) + "c" * (characters % 2))
    text = read_text(tmp_path / "a.txt")
    assert (len(text.train), len(text.validation)) == (characters - validation, validation)


def test_a_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 20 + "b" * 20, encoding="utf-8-sig")
    text = read_text(tmp_path / "a.txt")
    assert text.vocabulary == "ab"
    assert text.train.tolist() == [0] * 20 + [1] * 16


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"No file .*a\.txt\. Give the path of a text in UTF-8"),
        (b"", ValueError, r"a\.txt has 0 characters\. Give a text of at least 20"),
        ("é".encode() * 19, ValueError, r"a\.txt has 19 characters\. Give a text of at least 20"),
        (("a" * 20 + "é.").encode("latin-1"), ValueError, r"a\.txt is not a text in UTF-8 \(.* at byte 20\)\. Convert it"),
    ],
    ids=["missing", "empty", "short", "latin-1"],
)
def test_what_cannot_be_read_is_named(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(error, match=message):
        read_text(tmp_path / "a.txt")


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="Give the path of a text in UTF-8"):
        read_text(tmp_path)
