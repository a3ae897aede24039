"""The tasks of the demo model: each function makes a question, its one right answer, and a short working.

A task is held out (used for measuring, never for training) when a hash of its content says so; the content is what
the answer depends on, not the wording. Where the content space is small (single digits, greetings) nothing is held
out.
"""
import zlib
from dataclasses import dataclass

import stories
import words

HELD_OUT_PART = 8  # one in eight


@dataclass
class Task:
    family: str
    question: str
    answer: str
    thought: str  # goes between <think> and </think>
    short: str = ""  # the answer when the system message asks for the result only
    subject: tuple = ()  # what the checker of stories needs


def is_held_out(*content):
    return zlib.crc32(repr(content).encode()) % HELD_OUT_PART == 0


def draw(make, held_out):
    """Calls make() until what it returns, (content or None, task), belongs to the wanted side of the split."""
    while True:
        content, task = make()
        if (content is not None and is_held_out(task.family, content)) == held_out:
            return task


def phrase(rng, forms, **values):
    """One wording, sometimes as people type it: no capital, no full stop, a 'please'."""
    form = rng.choice(forms)
    if rng.random() < 0.15 and not form.startswith("{"):
        form = form[0].lower() + form[1:]
    if rng.random() < 0.12 and form[-1] in ".?" and "\n" not in form:
        form = form[:-1]
    elif rng.random() < 0.05 and form[-1] == "." and "lease" not in form and "\n" not in form:
        form = form[:-1] + ", please."
    return form.format(**values)


# ---- Arithmetic ----------------------------------------------------------------------------------------------

ADD = ["What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "What is {a} plus {b}?", "Add {a} and {b}.",
       "Calculate {a} + {b}.", "How much is {a} + {b}?", "What is the sum of {a} and {b}?", "Compute {a} + {b}.",
       "Please add {a} and {b}.", "Can you add {a} and {b}?", "What's {a} + {b}?", "What is {a}+{b}?"]
SUBTRACT = ["What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "What is {a} minus {b}?",
            "Subtract {b} from {a}.", "Calculate {a} - {b}.", "How much is {a} - {b}?", "Take {b} away from {a}.",
            "Compute {a} - {b}.", "Please subtract {b} from {a}.", "What's {a} - {b}?", "What is {a}-{b}?"]
MULTIPLY = ["What is {a} * {b}?", "{a} * {b}", "{a}*{b}", "{a} * {b} = ?", "What is {a} times {b}?",
            "Multiply {a} by {b}.", "Calculate {a} * {b}.", "How much is {a} times {b}?", "Compute {a} * {b}.",
            "What is the product of {a} and {b}?", "Please multiply {a} and {b}.", "What's {a} times {b}?",
            "What is {a} x {b}?", "What is {a}*{b}?"]


def add(rng, held_out):
    def make():
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
        thought = (f"Ones: {a % 10} + {b % 10} = {ones}. Tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. "
                   f"{tens} + {ones} = {a + b}.")
        content = tuple(sorted((a, b))) if max(a, b) > 9 else None
        return content, Task("add", phrase(rng, ADD, a=a, b=b), f"{a} + {b} = {a + b}.", thought, str(a + b))
    return draw(make, held_out)


def subtract(rng, held_out):
    def make():
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if a < b and rng.random() < 0.8:
            a, b = b, a
        if a >= b:
            middle = a - b // 10 * 10
            thought = f"{a} - {b // 10 * 10} = {middle}. {middle} - {b % 10} = {a - b}."
        else:
            thought = f"{a} is less than {b}. {b} - {a} = {b - a}, so the result is {a - b}."
        content = (a, b) if max(a, b) > 9 else None
        return content, Task("subtract", phrase(rng, SUBTRACT, a=a, b=b), f"{a} - {b} = {a - b}.", thought,
                             str(a - b))
    return draw(make, held_out)


def multiply(rng, held_out):
    def make():
        a, b = rng.randint(0, 99 if rng.random() < 0.75 else 12), rng.randint(0, 10)
        content = (a, b) if a > 12 else None
        if rng.random() < 0.5 and a <= 12:
            a, b = b, a
        result = f"{a} * {b} = {a * b}."
        thought = result
        if a > 12 and 1 < b < 10 and a % 10:  # the visible answer shows the steps: right is better than terse
            tens = a // 10 * 10
            thought = f"{tens} * {b} = {tens * b}. {a % 10} * {b} = {a % 10 * b}."
            result = f"{a} * {b} = {tens} * {b} + {a % 10} * {b} = {tens * b} + {a % 10 * b} = {a * b}."
        return content, Task("multiply", phrase(rng, MULTIPLY, a=a, b=b), result, thought)
    return draw(make, held_out)


# ---- Words and lists -----------------------------------------------------------------------------------------

QUOTES = ['"{w}"', "'{w}'", "{w}"]
REVERSE = ["Reverse the word {w}.", "Write {w} backwards.", "Spell {w} backwards.", "What is {w} backwards?",
           "What is {w} reversed?", "Reverse {w}.", "Can you reverse the word {w}?", "Please write {w} in reverse.",
           "How do you spell {w} backwards?", "Turn the word {w} around."]
COUNT = ["How many times does the letter {l} appear in {w}?", "Count the letter {l} in {w}.",
         "How many {l}'s are in {w}?", "How many {l}'s are there in the word {w}?", "How often does {l} occur in {w}?",
         "How many times is the letter {l} in the word {w}?", "Count the {l}'s in {w}.", "How many {l} in {w}?",
         "How many letters {l} are in {w}?"]
LENGTH = ["How many letters are in {w}?", "How many letters does {w} have?", "How long is the word {w}?",
          "Count the letters in {w}.", "What is the length of the word {w}?", "How many letters has the word {w}?"]
SORT_WORDS = ["Sort these words: {x}.", "Sort these words alphabetically: {x}.", "Sort alphabetically: {x}",
              "Put these words in alphabetical order: {x}.", "Arrange in alphabetical order: {x}.", "Sort: {x}",
              "Please sort these words: {x}", "Order these words from a to z: {x}.",
              "Can you sort these words? {x}"]
SORT_UP = ["Sort these numbers: {x}.", "Sort: {x}", "Sort these numbers from smallest to largest: {x}.",
           "Put these numbers in order: {x}.", "Arrange these numbers in ascending order: {x}.",
           "Please sort these numbers: {x}", "Order these numbers: {x}.", "Can you sort these numbers? {x}"]
SORT_DOWN = ["Sort these numbers from largest to smallest: {x}.", "Sort these numbers in descending order: {x}.",
             "Put these numbers in order, largest first: {x}.", "Arrange in descending order: {x}."]


def quoted(rng, word):
    return rng.choice(QUOTES).format(w=word)


def reverse(rng, held_out):
    def make():
        word = words.any_word(rng, 8)
        back = word[::-1]
        thought = f"{' '.join(word)} -> {' '.join(back)}"
        return word, Task("reverse", phrase(rng, REVERSE, w=quoted(rng, word)), f'"{word}" reversed is "{back}".',
                          thought, back)
    return draw(make, held_out)


def count(rng, held_out):
    def make():
        word = words.any_word(rng, 10)
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
        if rng.random() < 0.3:  # more questions about letters that appear twice or more
            letter = max(word, key=word.count)
        n = word.count(letter)
        where = ", ".join(str(i) for i, c in enumerate(word, 1) if c == letter) or "none"
        thought = f"{' '.join(f'{i}{c}' for i, c in enumerate(word, 1))}. {letter}: {where}."
        answer = f'The letter "{letter}" appears {n} time{"" if n == 1 else "s"} in "{word}".'
        shown = letter if rng.random() < 0.4 else quoted(rng, letter)
        return word, Task("count", phrase(rng, COUNT, w=quoted(rng, word), l=shown), answer, thought, str(n))
    return draw(make, held_out)


def length(rng, held_out):
    def make():
        word = words.any_word(rng, 10)
        thought = " ".join(f"{i}{c}" for i, c in enumerate(word, 1))
        return word, Task("length", phrase(rng, LENGTH, w=quoted(rng, word)), f'"{word}" has {len(word)} letters.',
                          thought, str(len(word)))
    return draw(make, held_out)


def listed(rng, items):
    return rng.choice([", ", ", ", ", ", " ", "; ", ","]).join(items)


def sort_words(rng, held_out):
    def make():
        items = set()
        n = rng.randint(3, 5)
        while len(items) < n:
            items.add(words.any_word(rng, 7))
            if rng.random() < 0.2:  # neighbours in the alphabet, so that the second letter decides
                first = rng.choice(sorted(items))[0]
                items.add(rng.choice([w for w in words.COMMON if w[0] == first and len(w) <= 7] or ["apple"]))
        items = sorted(items)[:5]
        rng.shuffle(items)
        ordered = sorted(items)
        thought = "First letters: " + ", ".join(w[0] for w in items) + ". In order: " + \
                  ", ".join(w[0] for w in ordered) + "."
        result = ", ".join(ordered)
        return tuple(ordered), Task("sort_words", phrase(rng, SORT_WORDS, x=listed(rng, items)),
                                    f"Sorted: {result}.", thought, result)
    return draw(make, held_out)


def sort_numbers(rng, held_out):
    def make():
        items = rng.sample(range(100), rng.randint(3, 5))
        down = rng.random() < 0.3
        ordered = sorted(items, reverse=down)
        thought = f"{'Largest' if down else 'Smallest'} first: {', '.join(map(str, ordered))}."
        result = ", ".join(map(str, ordered))
        forms = SORT_DOWN if down else SORT_UP
        return (tuple(ordered), down), Task(
            "sort_numbers", phrase(rng, forms, x=listed(rng, [str(i) for i in items])), f"Sorted: {result}.", thought,
            result)
    return draw(make, held_out)


# ---- Tables --------------------------------------------------------------------------------------------------

COLUMNS = {
    "age": lambda rng, n: [str(a) for a in rng.sample(range(5, 95), n)],
    "score": lambda rng, n: [str(a) for a in rng.sample(range(10, 100), n)],
    "city": lambda rng, n: rng.sample(words.CITIES, n),
    "pet": lambda rng, n: rng.sample(words.PETS, n),
    "color": lambda rng, n: rng.sample(words.COLORS, n),
    "drink": lambda rng, n: rng.sample(words.DRINKS, n),
}
WHOSE = ["What is {name}'s {column}?", "What is the {column} of {name}?", "Which {column} does {name} have?",
         "Tell me the {column} of {name}.", "{name}'s {column}?"]
WHO = ["Who has the {column} {value}?", "Whose {column} is {value}?", "Which person has the {column} {value}?"]
MOST = ["Who has the {kind} {column}?", "Which person has the {kind} {column}?", "Whose {column} is the {kind}?"]
INTRODUCTIONS = ["", "", "Here is a table.\n", "Look at this table:\n", "Use the table.\n"]


def table(rng, held_out):
    def make():
        n = rng.randint(2, 4)
        names = rng.sample(words.NAMES, n)
        columns = rng.sample(list(COLUMNS), rng.randint(1, 2))
        if set(columns) == {"age", "score"}:  # two columns of numbers side by side are too easy to mix up
            columns.pop()
        values = {c: COLUMNS[c](rng, n) for c in columns}
        rows = [["name", *columns]] + [[names[i], *(values[c][i] for c in columns)] for i in range(n)]
        text = "\n".join(" | ".join(row) for row in rows)
        column, i = rng.choice(columns), rng.randrange(n)
        numeric = column in ("age", "score")
        pairs = ", ".join(f"{name} {value}" for name, value in zip(names, values[column]))
        thought = f"{column.capitalize()}: {pairs}."
        kind = rng.random()
        if kind < 0.55:
            question = rng.choice(WHOSE).format(name=names[i], column=column)
            answer, short = f"{names[i]}'s {column} is {values[column][i]}.", values[column][i]
        elif kind < 0.8 or not numeric:
            question = rng.choice(WHO).format(column=column, value=values[column][i])
            answer, short = f"{names[i]} has the {column} {values[column][i]}.", names[i]
        else:
            most = rng.choice(["highest", "lowest"])
            pick = max if most == "highest" else min
            best = pick(map(int, values[column]))
            i = values[column].index(str(best))
            question = rng.choice(MOST).format(kind=most, column=column)
            answer, short = f"{names[i]} has the {most} {column}, {best}.", names[i]
            thought += f" The {most} is {best}."
        if rng.random() < 0.2:
            full = f"{question}\n{text}"
        else:
            full = f"{rng.choice(INTRODUCTIONS)}{text}\n{question}"
        return (text, question), Task("table", full, answer, thought, short)
    return draw(make, held_out)


# ---- Stories and small talk ----------------------------------------------------------------------------------

STORY = ["Tell me a story about {a} {animal} named {name}.", "Tell me a short story about {a} {animal} named {name}.",
         "Write a short story about {a} {animal} called {name}.", "Write a story about {name} the {animal}.",
         "Please tell a story about {a} {animal} named {name}.", "Can you tell me a story about {name} the {animal}?",
         "I want a story about {a} {animal} named {name}."]
ANY_STORY = ["Tell me a story.", "Tell me a short story.", "Write a short story.", "Please tell me a story.",
             "Can you tell me a story?", "I want to hear a story."]
ANIMAL_STORY = ["Tell me a story about {a} {animal}.", "Tell me a short story about {a} {animal}.",
                "Write a short story about {a} {animal}.", "Please tell me a story about {a} {animal}.",
                "Can you tell me a story about {a} {animal}?"]


def story(rng, held_out):
    def make():
        animal, name = rng.choice(stories.ANIMALS), rng.choice(words.NAMES)
        article = "an" if animal[0] in "aeiou" else "a"
        forms, content = STORY, (animal, name)
        if not held_out and rng.random() < 0.35:
            forms, content = (ANY_STORY if rng.random() < 0.4 else ANIMAL_STORY), None
        question = phrase(rng, forms, a=article, animal=animal, name=name)
        return content, Task("story", question, stories.tell(rng, name, animal),
                             f"A short story about {name} the {animal}.", subject=(name, animal))
    return draw(make, held_out)


ABOUT_ME = ("I am a small demo model. I can add, subtract and multiply small numbers, sort numbers and words, reverse "
            "words, count letters, read short tables and tell short stories.")
SMALL_TALK = [
    (["Hello!", "Hi!", "Hey!", "Hello", "Hi", "Hi there!", "Good morning!", "Hey there", "Hello there!"],
     "Hello! How can I help you?", "A greeting."),
    (["Who are you?", "What are you?", "What can you do?", "What is your name?", "Help", "How can you help me?",
      "What do you do?", "Tell me about yourself.", "Are you a robot?", "Are you an AI?", "What can I ask you?"],
     ABOUT_ME, "A question about me."),
    (["Thanks!", "Thank you!", "Thank you very much.", "Thanks a lot!", "Thanks", "Great, thanks!", "Thank you"],
     "You are welcome!", "The user says thanks."),
    (["Bye!", "Goodbye!", "See you!", "Good night!", "Bye", "See you later!"], "Goodbye!", "The user says goodbye."),
    (["How are you?", "How are you today?", "How is it going?", "How do you do?", "Are you well?"],
     "I am fine, thank you. How can I help you?", "A friendly question."),
]
OTHER = ["What is the capital of {c}?", "Where is {c}?", "What is the weather in {c}?", "How do I get to {c}?",
         "Who wrote that book about {c}?", "How do I cook {w}?", "Write a poem about {w}.", "What is a {w}?",
         "Translate {w} into French.", "Write code for a {w}.", "Why is the {w} so big?", "Who invented the {w}?",
         "What does {w} mean?", "Draw a {w}.", "Do you like {w}?", "When was {c} founded?", "What is the time in {c}?",
         "Explain {w}.", "Can you buy me a {w}?", "What is the best {w} in {c}?"]


def chat(rng, held_out):
    if rng.random() < 0.35:
        question = phrase(rng, OTHER, c=rng.choice(words.CITIES), w=rng.choice(words.COMMON))
        return Task("chat", question, ABOUT_ME, "This is not among the things I can do.")
    forms, answer, thought = rng.choice(SMALL_TALK)
    question = rng.choice(forms)
    return Task("chat", question.lower() if rng.random() < 0.2 else question, answer, thought)


# Share of each family in the training mix; the ones that are harder to learn get more.
FAMILIES = {add: 10, subtract: 11, multiply: 12, reverse: 15, count: 13, length: 7, sort_words: 14, sort_numbers: 8,
            table: 13, story: 7, chat: 4}
