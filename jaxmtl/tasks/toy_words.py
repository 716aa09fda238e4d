"""Toy tasks about words: kinds, opposites, grammar, changes of the text; unseen: analogies."""

import random

from jaxmtl.tasks.toy_lexicon import (
    CITIES,
    HE,
    IRREGULAR_PLURALS,
    KIND_OF,
    KINDS,
    NAMES,
    OBJECTS,
    OPPOSITE_OF,
    OPPOSITES,
    PAST,
    SHE,
    Item,
    ToyTask,
    article,
    other_than,
    plural,
)

_WORDS = (*KIND_OF, *OBJECTS)
_COMPARABLE = ("old", "fast", "slow", "strong", "weak", "rich", "poor", "tall", "short", "young", "quiet", "loud")


def _kind(draw: random.Random) -> Item:
    kind = draw.choice(list(KINDS))
    thing, name, city = draw.choice(KINDS[kind]), draw.choice(NAMES), draw.choice(CITIES)
    text = f"{name} saw {article(thing)} in {city}."
    return Item(text, (kind,), other_than(draw, list(KINDS), kind), f"The {thing} belongs to the kind {kind}.")


def _odd_one_out(draw: random.Random) -> Item:
    kind, odd_kind = draw.sample(list(KINDS), 2)
    words, odd = draw.sample(KINDS[kind], 3), draw.choice(KINDS[odd_kind])
    shown = draw.sample([*words, odd], 4)
    return Item(", ".join(shown), (odd,), words[0], f"All but {odd} are of the kind {kind}.")


def _same_kind(draw: random.Random) -> Item:
    answer = draw.choice(["yes", "no"])
    one = draw.choice(list(KIND_OF))
    fitting = [word for word in KIND_OF if word != one and (KIND_OF[word] == KIND_OF[one]) == (answer == "yes")]
    two = draw.choice(fitting)
    why = f"One is of the kind {KIND_OF[one]}, the other of the kind {KIND_OF[two]}."
    return Item(f"{one} and {two}, seen in {draw.choice(CITIES)}", (answer,), "no" if answer == "yes" else "yes", why)


def _opposite(draw: random.Random) -> Item:
    word = draw.choice(list(OPPOSITE_OF))
    text = f"The {draw.choice(_WORDS)} is {word}."
    return Item(text, (OPPOSITE_OF[word],), word, f"The opposite of {word} is {OPPOSITE_OF[word]}.")


def _comparative(draw: random.Random) -> Item:
    (one, two), word = draw.sample(NAMES, 2), draw.choice(_COMPARABLE)
    text = f"{one} is {word}, but {two} is even more so."
    return Item(text, (f"{word}er",), f"more {word}er", f"Of two people who are {word} one is {word}er.")


def _reverse(draw: random.Random) -> Item:
    words = draw.sample(_WORDS, draw.choice([3, 4]))
    return Item(" ".join(words), (" ".join(words[::-1]),), " ".join(words), f"The last word, {words[-1]}, comes first.")


def _last_word(draw: random.Random) -> Item:
    words = draw.sample(_WORDS, draw.choice([3, 4, 5]))
    return Item(" ".join(words), (words[-1],), words[0], f"No word comes after {words[-1]}.")


def _sort(draw: random.Random) -> Item:
    words = draw.sample(_WORDS, 3)
    ordered = sorted(words)
    return Item(
        " ".join(words), (" ".join(ordered),), " ".join(ordered[::-1]), f"{ordered[0]} is first in a dictionary."
    )


def _remove_vowels(draw: random.Random) -> Item:
    words = draw.sample(_WORDS, 2)
    answer = "".join(letter for letter in " ".join(words) if letter not in "aeiou")
    return Item(" ".join(words), (answer,), " ".join(words), "The letters a, e, i, o and u are left out.")


def _swap_ends(draw: random.Random) -> Item:
    first, *middle, last = draw.sample(_WORDS, draw.choice([3, 4]))
    answer = " ".join([last, *middle, first])
    return Item(
        " ".join([first, *middle, last]), (answer,), " ".join([first, *middle, last]), f"Now {last} comes first."
    )


def _acronym(draw: random.Random) -> Item:
    words = draw.sample(_WORDS, draw.choice([3, 4]))
    answer = "".join(word[0].upper() for word in words)
    return Item(" ".join(words), (answer,), answer[1:], f"The first letter, {answer[0]}, is that of {words[0]}.")


def _plural(draw: random.Random) -> Item:
    noun, name = draw.choice(sorted({*_WORDS, *IRREGULAR_PLURALS})), draw.choice(NAMES)
    wrong = f"{plural(noun)}s"
    return Item(f"{name} has one {noun}.", (plural(noun),), wrong, f"One {noun}, two {plural(noun)}.")


def _past(draw: random.Random) -> Item:
    verb, city = draw.choice(list(PAST)), draw.choice(CITIES)
    names = " and ".join(draw.sample(NAMES, 2))
    return Item(f"{names} {verb} in {city}.", (PAST[verb],), f"{verb}ing", f"Yesterday they {PAST[verb]}.")


def _pronoun(draw: random.Random) -> Item:
    word, names, other = draw.choice([("He", HE, "She"), ("She", SHE, "He")])
    name, rest = draw.choice(names), f"has {article(draw.choice(_WORDS))} in {draw.choice(CITIES)}."
    return Item(f"{name} {rest}", (f"{word} {rest}",), f"{other} {rest}", f"The pronoun for {name} is {word}.")


def _analogy(draw: random.Random, first: tuple[str, ...], second: tuple[str, ...], wrong: str, why: str) -> Item:
    place = draw.choice(["", f"{draw.choice(NAMES)} asks: "])
    return Item(f"{place}{first[0]} : {first[1]} = {second[0]} : ?", (second[1],), wrong, why)


def _opposite_analogy(draw: random.Random) -> Item:
    one, two = (pair[:: draw.choice([1, -1])] for pair in draw.sample(OPPOSITES, 2))
    return _analogy(draw, one, two, two[0], f"As {one[1]} is the opposite of {one[0]}, {two[1]} is that of {two[0]}.")


def _plural_analogy(draw: random.Random) -> Item:
    one, two = ((noun, plural(noun)) for noun in draw.sample(_WORDS, 2))
    return _analogy(draw, one, two, two[0], f"{one[1]} is the plural of {one[0]}, {two[1]} that of {two[0]}.")


def _kind_analogy(draw: random.Random) -> Item:
    one, two = (draw.choice(KINDS[kind]) for kind in draw.sample(list(KINDS), 2))
    why = f"{one} belongs to the kind {KIND_OF[one]}, {two} to the kind {KIND_OF[two]}."
    return _analogy(draw, (one, KIND_OF[one]), (two, KIND_OF[two]), KIND_OF[one], why)


TASKS = (
    ToyTask("toy_kind_of_thing", "Word Semantics", f"Say which kind of thing was seen: {', '.join(KINDS)}.", _kind),
    ToyTask("toy_odd_one_out", "Word Semantics", "Four things are listed. Copy the one of another kind.", _odd_one_out),
    ToyTask(
        "toy_same_kind", "Word Semantics", "Answer yes if both things are of the same kind, otherwise no.", _same_kind
    ),
    ToyTask("toy_opposite", "Word Relations", "Give the opposite of the last word of the sentence.", _opposite),
    ToyTask(
        "toy_comparative",
        "Word Relations",
        "Give the comparative form of the adjective that describes both people.",
        _comparative,
    ),
    ToyTask("toy_reverse_words", "Text Manipulation", "Write the words in reverse order.", _reverse),
    ToyTask("toy_last_word", "Text Manipulation", "Copy the last word.", _last_word),
    ToyTask("toy_sort_words", "Text Manipulation", "Write the words in alphabetical order.", _sort),
    ToyTask(
        "toy_remove_vowels", "Text Manipulation", "Write the words without the letters a, e, i, o, u.", _remove_vowels
    ),
    ToyTask("toy_swap_ends", "Text Manipulation", "Swap the first and the last word.", _swap_ends),
    ToyTask("toy_acronym", "Text Manipulation", "Join the first letters of the words as capital letters.", _acronym),
    ToyTask("toy_plural", "Grammar", "Give the plural of the thing that the person has.", _plural),
    ToyTask("toy_past_tense", "Grammar", "Give the past tense of the verb.", _past),
    ToyTask("toy_pronoun", "Grammar", "Write the sentence again with a pronoun instead of the name.", _pronoun),
)
"""Training tasks."""

UNSEEN_TASKS = (
    ToyTask(
        "toy_opposite_analogy",
        "Word Analogy",
        "Two words are opposites. Give the word that is the opposite of the third word.",
        _opposite_analogy,
    ),
    ToyTask(
        "toy_plural_analogy",
        "Word Analogy",
        "The second word is the plural of the first. Give the plural of the third word.",
        _plural_analogy,
    ),
    ToyTask(
        "toy_kind_analogy",
        "Word Analogy",
        "The second word says which kind of thing the first is. Say it of the third word.",
        _kind_analogy,
    ),
)
"""Tasks of held-out categories."""
