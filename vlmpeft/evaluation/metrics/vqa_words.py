"""How the official VQA script normalises an answer before it compares (vqaEval.py, Antol et al. 2015)."""

from __future__ import annotations

import re

# every contraction the script mends: written with one apostrophe missing, any one, it gets it back
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
"""
_MENDED = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTIONS.split()
    for at, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # the script's own slip, kept for the same figures
_NUMBERS = "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def normalise(text: str) -> str:
    """The text with the script's rules on punctuation, number words, articles and contractions.

    >>> normalise("The two  dogs, dont they?")
    "2 dogs don't they"
    """
    words = _strip_punctuation(" ".join(text.split())).lower().split()
    digits = [_DIGITS.get(word, word) for word in words]
    return " ".join(_MENDED.get(word, word) for word in digits if word not in _ARTICLES)


def _strip_punctuation(text: str) -> str:
    """A mark goes where it touches a blank or the text has a number with a comma, else becomes a blank.

    Periods go unless a digit follows: the script's look-behind for a digit is a typing error, and has no
    effect there either.
    """
    has_thousands = re.search(r"\d,\d", text) is not None
    bare = text
    for mark in _PUNCTUATION:
        at_blank = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if at_blank or has_thousands else " ")
    return re.sub(r"\.(?!\d)", "", bare)
