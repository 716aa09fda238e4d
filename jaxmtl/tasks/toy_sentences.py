"""Toy tasks that read sentences: sentiment, extraction, questions; unseen: entailment and data to text."""

import random
from collections.abc import Sequence

from jaxmtl.tasks.toy_lexicon import (
    CITIES,
    COLOURS,
    JOBS,
    KINDS,
    NAMES,
    OBJECTS,
    PLACES,
    Item,
    ToyTask,
    article,
    other_than,
    plural,
)

_GOOD = ("great", "lovely", "tasty", "superb", "charming", "perfect", "pleasant", "wonderful")
_BAD = ("awful", "boring", "terrible", "rude", "broken", "horrible", "nasty", "poor")
_REVIEWED = ("food", "film", "hotel", "music", "service", "room", "story", "coffee", "concert", "show")
_MOODS = {
    "happy": ("smiled all day", "danced with joy", "laughed a lot", "got a nice present", "won the game"),
    "sad": ("cried all night", "missed an old friend", "lost a dear pet", "felt very lonely", "wept at home"),
    "angry": ("shouted at everyone", "slammed the door", "broke a plate in rage", "yelled out loud", "banged the desk"),
}
_PURCHASES = (
    "{name} bought {number} {colour} {things} in {city}.",
    "In {city}, {name} saw {number} {colour} {things}.",
    "There were {number} {colour} {things} in {city}, said {name}.",
)


def _review(draw: random.Random) -> Item:
    answer, words, other = draw.choice([("positive", _GOOD, "negative"), ("negative", _BAD, "positive")])
    first, second = draw.sample(_REVIEWED, 2)
    one, two = draw.sample(words, 2)
    text = f"The {first} was {one} and the {second} was {two}."
    return Item(text, (answer,), other, f"The words {one} and {two} are {answer}.")


def _mood(draw: random.Random) -> Item:
    answer = draw.choice(sorted(_MOODS))
    deed, name = draw.choice(_MOODS[answer]), draw.choice(NAMES)
    text = f"{name} {deed} in {draw.choice(CITIES)}."
    return Item(text, (answer,), other_than(draw, sorted(_MOODS), answer), f"Someone who {deed} is {answer}.")


def _purchase(draw: random.Random) -> tuple[str, dict[str, str]]:
    facts = {
        "name": draw.choice(NAMES),
        "number": str(draw.randrange(2, 60)),
        "colour": draw.choice(COLOURS),
        "things": plural(draw.choice(draw.choice(list(KINDS.values())))),
        "city": draw.choice(CITIES),
    }
    return draw.choice(_PURCHASES).format(**facts), facts


def _extract(draw: random.Random, field: str, others: tuple[str, ...]) -> Item:
    text, facts = _purchase(draw)
    return Item(text, (facts[field],), facts[draw.choice(others)], f"The {field} in the sentence is {facts[field]}.")


def _name(draw: random.Random) -> Item:
    return _extract(draw, "name", ("city", "colour"))


def _number(draw: random.Random) -> Item:
    return _extract(draw, "number", ("colour", "name"))


def _colour(draw: random.Random) -> Item:
    return _extract(draw, "colour", ("number", "things"))


def _city(draw: random.Random) -> Item:
    return _extract(draw, "city", ("name", "things"))


def _two_facts(draw: random.Random, subjects: Sequence[str], answers: Sequence[str], fact: str, question: str) -> Item:
    asked = draw.randrange(2)
    facts = [fact.format(*pair) for pair in zip(subjects, answers, strict=True)]
    text = f"{facts[0]}. {facts[1]}. {question.format(subjects[asked])}?"
    return Item(text, (answers[asked],), answers[1 - asked], f"The text says: {facts[asked]}.")


def _who_has(draw: random.Random) -> Item:
    return _two_facts(draw, draw.sample(OBJECTS, 2), draw.sample(NAMES, 2), "{1} has the {0}", "Who has the {0}")


def _where_is(draw: random.Random) -> Item:
    things, places = draw.sample(OBJECTS, 2), draw.sample(PLACES, 2)
    return _two_facts(draw, things, places, "The {0} is in the {1}", "Where is the {0}")


def _lives_in(draw: random.Random) -> Item:
    name, city, answer = draw.choice(NAMES), draw.choice(CITIES), draw.choice(["yes", "no"])
    asked = city if answer == "yes" else other_than(draw, CITIES, city)
    text = f"{name} lives in {city}. Does {name} live in {asked}?"
    return Item(text, (answer,), "no" if answer == "yes" else "yes", f"{name} lives in {city}, and {asked} is asked.")


def _claim(draw: random.Random, fact: str, true_claim: str, false_claim: str) -> Item:
    answer = draw.choice(["yes", "no"])
    claim = true_claim if answer == "yes" else false_claim
    why = f"From the fact that {fact} it {'follows' if answer == 'yes' else 'does not follow'} that {claim}."
    return Item(f"Fact: {fact}. Claim: {claim}.", (answer,), "no" if answer == "yes" else "yes", why)


def _entailed_colour(draw: random.Random) -> Item:
    name, thing, colour = draw.choice(NAMES), draw.choice(OBJECTS), draw.choice(COLOURS)
    claim = f"the {thing} of {name} is {{}}".format
    return _claim(draw, f"{name} has a {colour} {thing}", claim(colour), claim(other_than(draw, COLOURS, colour)))


def _entailed_city(draw: random.Random) -> Item:
    name, city = draw.choice(NAMES), draw.choice(CITIES)
    job, other = draw.choice(JOBS), other_than(draw, CITIES, city)
    return _claim(draw, f"{name} is a {job} and lives in {city}", f"{name} lives in {city}", f"{name} lives in {other}")


def _entailed_count(draw: random.Random) -> Item:
    (one, two), thing = draw.sample(NAMES, 2), plural(draw.choice(OBJECTS))
    low, high = sorted(draw.sample(range(2, 30), 2))
    fact = f"{one} has {high} {thing} and {two} has {low}"
    return _claim(draw, fact, f"{one} has more {thing}", f"{two} has more {thing}")


def _describe_person(draw: random.Random) -> Item:
    name, job, city = draw.choice(NAMES), draw.choice(JOBS), draw.choice(CITIES)
    wrong = f"{name} is a {other_than(draw, JOBS, job)} in {city}."
    outputs = (f"{name} is a {job} in {city}.", f"{name} works as a {job} in {city}.")
    return Item(f"name: {name}; job: {job}; city: {city}", outputs, wrong, "The sentence gives name, job and city.")


def _describe_offer(draw: random.Random) -> Item:
    thing, colour, price = draw.choice(OBJECTS), draw.choice(COLOURS), draw.randrange(2, 60)
    wrong = f"{article(colour).capitalize()} {thing} costs {price + 1} dollars."
    outputs = (f"The {colour} {thing} costs {price} dollars.", f"The price of the {colour} {thing} is {price} dollars.")
    return Item(f"thing: {thing}; colour: {colour}; price: {price}", outputs, wrong, "All three values are told.")


TASKS = (
    ToyTask(
        "toy_review_sentiment",
        "Sentiment Analysis",
        "Read a short review. Answer positive if the writer liked it and negative if not.",
        _review,
    ),
    ToyTask("toy_mood", "Sentiment Analysis", "Say how the person in the sentence feels: happy, sad or angry.", _mood),
    ToyTask("toy_extract_name", "Information Extraction", "Copy the name of the person in the sentence.", _name),
    ToyTask("toy_extract_number", "Information Extraction", "Copy the number that the sentence mentions.", _number),
    ToyTask("toy_extract_colour", "Information Extraction", "Copy the colour that the sentence mentions.", _colour),
    ToyTask("toy_extract_city", "Information Extraction", "Copy the name of the city in the sentence.", _city),
    ToyTask(
        "toy_who_has",
        "Question Answering",
        "Read the text and answer the question with the name of the person.",
        _who_has,
    ),
    ToyTask(
        "toy_where_is",
        "Question Answering",
        "Read the text and answer the question with the place, in one word.",
        _where_is,
    ),
    ToyTask("toy_lives_in", "Question Answering", "Read the text and answer the question with yes or no.", _lives_in),
)
"""Training tasks."""

UNSEEN_TASKS = (
    ToyTask(
        "toy_entailed_colour",
        "Textual Entailment",
        "Answer yes if the claim about a colour follows from the fact, otherwise no.",
        _entailed_colour,
    ),
    ToyTask(
        "toy_entailed_city",
        "Textual Entailment",
        "Answer yes if the claim about a city follows from the fact, otherwise no.",
        _entailed_city,
    ),
    ToyTask(
        "toy_entailed_count",
        "Textual Entailment",
        "Answer yes if the claim about two numbers follows from the fact, otherwise no.",
        _entailed_count,
    ),
    ToyTask(
        "toy_describe_person",
        "Data to Text",
        "Write one sentence that tells the name, the job and the city of the person.",
        _describe_person,
    ),
    ToyTask(
        "toy_describe_offer",
        "Data to Text",
        "Write one sentence that tells the thing, its colour and its price in dollars.",
        _describe_offer,
    ),
)
"""Tasks of held-out categories."""
