"""A CLIP tokenizer over the words of the scenes: one token a word, single characters for anything else."""

from __future__ import annotations

import itertools

from transformers import CLIPTokenizer

from l2c.scenes.vocabulary import words

MAX_LENGTH = 20
"""Tokens of a prompt, start and end among them: what the longest one needs."""

_END = "</w>"


def byte_characters() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(others))]


def apply_merges(symbols: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: the earliest merge that fits, until none does."""
    rank = {pair: index for index, pair in enumerate(merges)}
    while True:
        pairs = [(rank[pair], at) for at, pair in enumerate(itertools.pairwise(symbols)) if pair in rank]
        if not pairs:
            return symbols
        _, at = min(pairs)
        symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]


def learn_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Merges with which each word of a vocabulary is one token.

    A new merge comes last, so it never changes how words that are already one token are put together.
    """
    merges: list[tuple[str, str]] = []
    for word in vocabulary:
        symbols = [*word[:-1], word[-1] + _END]
        while len(symbols := apply_merges(symbols, merges)) > 1:
            merges.append((symbols[0], symbols[1]))
    return merges


def new_tokenizer() -> CLIPTokenizer:
    """The tokenizer, made from the vocabulary alone."""
    merges = learn_merges(words())
    characters = byte_characters()
    tokens = [*characters, *(c + _END for c in characters), *dict.fromkeys(a + b for a, b in merges)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
