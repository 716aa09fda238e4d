"""The words of the toy tasks, and the form of a toy task: a seeded generator of items."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

HE = ("Ben", "David", "Frank", "Henry", "Jack", "Leo", "Nick", "Paul", "Sam", "Tom", "Victor", "Will")
SHE = ("Anna", "Carla", "Emma", "Grace", "Ivy", "Kate", "Mary", "Nora", "Olga", "Rosa", "Tina", "Zoe")
NAMES = (*HE, *SHE)
CITIES = ("Paris", "Rome", "London", "Berlin", "Madrid", "Oslo", "Cairo", "Tokyo", "Lima", "Delhi", "Boston", "Vienna")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
JOBS = ("nurse", "baker", "pilot", "teacher", "farmer", "singer", "doctor", "painter")
KINDS = {
    "animal": ("dog", "cat", "horse", "cow", "lion", "tiger", "rabbit", "bear"),
    "fruit": ("apple", "pear", "plum", "peach", "lemon", "mango", "banana", "melon"),
    "vehicle": ("car", "bus", "train", "truck", "boat", "tractor", "van", "tram"),
    "tool": ("hammer", "saw", "drill", "ladder", "spade", "rake", "axe", "nail"),
    "clothing": ("shirt", "hat", "coat", "sock", "glove", "scarf", "skirt", "belt"),
    "furniture": ("table", "chair", "desk", "sofa", "bed", "shelf", "stool", "bench"),
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
OBJECTS = ("ball", "book", "cup", "key", "lamp", "coin", "pen", "map", "ring", "phone", "clock", "bag")
PLACES = ("box", "drawer", "kitchen", "garden", "cellar", "basket", "garage", "attic")
OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("old", "new"),
    ("fast", "slow"),
    ("wet", "dry"),
    ("hard", "soft"),
    ("heavy", "light"),
    ("full", "empty"),
    ("clean", "dirty"),
    ("loud", "quiet"),
    ("open", "closed"),
    ("strong", "weak"),
    ("rich", "poor"),
    ("thick", "thin"),
    ("cheap", "costly"),
    ("bright", "dark"),
)
OPPOSITE_OF = {word: other for pair in OPPOSITES for word, other in (pair, pair[::-1])}
IRREGULAR_PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "child": "children",
    "tooth": "teeth",
    "foot": "feet",
    "man": "men",
    "bus": "buses",
    "bench": "benches",
    "shelf": "shelves",
    "peach": "peaches",
    "knife": "knives",
    "box": "boxes",
}
PAST = {
    "walk": "walked",
    "cook": "cooked",
    "play": "played",
    "work": "worked",
    "paint": "painted",
    "dance": "danced",
    "read": "read",
    "sing": "sang",
    "run": "ran",
    "swim": "swam",
    "write": "wrote",
    "sleep": "slept",
    "drive": "drove",
    "eat": "ate",
    "talk": "talked",
    "jump": "jumped",
}
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MONTHS = ("January February March April May June July August September October November December").split()


class Item(NamedTuple):
    """One generated question.

    Attributes:
      inputs: input text.
      outputs: right outputs, the preferred one first.
      wrong: an output that looks possible and is wrong.
      why: one sentence that explains the right output.
    """

    inputs: str
    outputs: tuple[str, ...]
    wrong: str
    why: str


@dataclasses.dataclass(frozen=True)
class ToyTask:
    """A toy task before it is generated.

    Attributes:
      name: task name.
      category: its category.
      definition: the instruction.
      make: draws one item.
    """

    name: str
    category: str
    definition: str
    make: Callable[[random.Random], Item]


def other_than(draw: random.Random, words: Sequence[str], *avoided: str) -> str:
    """Draws a word that is none of `avoided`.

    Args:
      draw: source of randomness.
      words: what to draw from.
      *avoided: words not to draw.

    Returns:
      One of the other words.
    """
    return draw.choice([word for word in words if word not in avoided])


def plural(noun: str) -> str:
    """Returns the plural of a noun of this lexicon."""
    return IRREGULAR_PLURALS.get(noun, noun + "s")


def number_words(number: int) -> str:
    """Writes a number from 0 to 999 in words, as in "two hundred forty-one"."""
    if number >= 100:
        rest = f" {number_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")


def article(noun: str) -> str:
    """Returns the noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
