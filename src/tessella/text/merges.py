"""Byte pair encoding, continued: merges for words that a vocabulary splits into several tokens.

The trainer of `tokenizers` only begins anew, which would renumber every token. Here the words are
already split by the old merges, and new merges join what is left, most frequent pair first.

Source: Sennrich et al., arXiv:1508.07909, section 3.2.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping

Pair = tuple[str, str]
Pieces = tuple[str, ...]  # a word, split into tokens


def learn_merges(words: Mapping[Pieces, int], most: int, min_frequency: int) -> list[Pair]:
    """Finds the pairs of tokens to join, in order.

    Args:
        words: each as its tokens → how often it occurs.
        most: how many merges at most.
        min_frequency: how often a pair has to occur.
    """
    pieces = [list(word) for word in words]
    counts = list(words.values())
    frequencies: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)  # words in which a pair may be

    def count(word: int, sign: int) -> set[Pair]:
        pairs = list(zip(pieces[word], pieces[word][1:], strict=False))
        for pair in pairs:
            frequencies[pair] += sign * counts[word]
            places[pair].add(word)
        return set(pairs)

    for word in range(len(pieces)):
        count(word, 1)
    # Of equally frequent pairs the first by the alphabet, so that the order does not matter.
    queue = [(-frequency, pair) for pair, frequency in frequencies.items()]
    heapq.heapify(queue)
    merges: list[Pair] = []
    while len(merges) < most and queue:
        negative, pair = heapq.heappop(queue)
        if -negative != frequencies[pair]:
            continue  # it was counted anew since
        if -negative < max(1, min_frequency):
            break
        merges.append(pair)
        changed: set[Pair] = set()
        for word in list(places[pair]):
            changed |= count(word, -1)
            pieces[word] = _join(pieces[word], pair)
            changed |= count(word, 1)
        for one in changed - {pair}:
            heapq.heappush(queue, (-frequencies[one], one))
    return merges


def _join(pieces: list[str], pair: Pair) -> list[str]:
    """Joins a pair wherever it stands, from the left."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
