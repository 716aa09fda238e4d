"""Toy tasks about numbers, dates and times."""

import random

from jaxmtl.tasks.toy_lexicon import MONTHS, NAMES, OBJECTS, Item, ToyTask, number_words, plural


def _larger(draw: random.Random) -> Item:
    one, two = draw.sample(range(10, 100), 2)
    low, high = sorted([one, two])
    return Item(f"{one} and {two}", (str(high),), str(low), f"{high} is larger than {low}.")


def _sum(draw: random.Random) -> Item:
    one, two, thing = draw.randrange(1, 16), draw.randrange(1, 16), plural(draw.choice(OBJECTS))
    text = f"{number_words(one)} {thing} plus {number_words(two)} {thing}"
    answer = number_words(one + two)
    return Item(text, (answer,), number_words(one + two + 1), f"The sum of {one} and {two} is {one + two}.")


def _parity(draw: random.Random) -> Item:
    number = draw.randrange(10, 2000)
    answer, other = ("odd", "even") if number % 2 else ("even", "odd")
    return Item(str(number), (answer,), other, f"The last digit of {number} is {number % 10}, which is {answer}.")


def _count(draw: random.Random) -> Item:
    count = draw.randrange(1, 7)
    things = draw.sample(OBJECTS, count)
    text = f"{draw.choice(NAMES)} has: {', '.join(things)}."
    return Item(text, (str(count),), str(count + 1), f"There are {count} things from {things[0]} to {things[-1]}.")


def _in_words(draw: random.Random) -> Item:
    number = draw.randrange(1000)
    words, thing = number_words(number), plural(draw.choice(OBJECTS))
    return Item(f"{number} {thing}", (f"{words} {thing}",), f"{number} {thing}", f"{number} is read {words}.")


def _date(draw: random.Random) -> Item:
    day, month, year = draw.randrange(1, 29), draw.randrange(12), draw.randrange(1950, 2030)
    answer = f"{year}-{month + 1:02d}-{day:02d}"
    wrong = f"{year}-{day:02d}-{month + 1:02d}" if day != month + 1 else f"{day}-{month + 1}-{year}"
    why = f"{MONTHS[month]} is month number {month + 1}, and the year comes first."
    return Item(f"{day} {MONTHS[month]} {year}", (answer,), wrong, why)


def _time(draw: random.Random) -> Item:
    hour, minute = draw.randrange(24), draw.randrange(60)
    half = "pm" if hour >= 12 else "am"
    text = f"{hour % 12 or 12}:{minute:02d} {half}"
    answer, wrong = f"{hour:02d}:{minute:02d}", f"{(hour + 12) % 24:02d}:{minute:02d}"
    return Item(text, (answer,), wrong, f"With {half} the hour is {hour} of 24.")


TASKS = (
    ToyTask("toy_larger_number", "Mathematics", "Copy the larger of the two numbers.", _larger),
    ToyTask("toy_add_words", "Mathematics", "Add the two numbers and write the sum as a word.", _sum),
    ToyTask("toy_odd_or_even", "Mathematics", "Answer odd or even for the number.", _parity),
    ToyTask("toy_count_things", "Mathematics", "Count the listed things and write the number in digits.", _count),
    ToyTask("toy_number_words", "Format Conversion", "Write the number in words and repeat the thing.", _in_words),
    ToyTask("toy_date_format", "Format Conversion", "Write the date as year-month-day in digits.", _date),
    ToyTask("toy_time_format", "Format Conversion", "Write the time in 24 hours, as hours:minutes.", _time),
)
"""Training tasks."""
