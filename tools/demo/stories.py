"""A grammar of very short stories: tell() writes one, is_story() recognises one."""
import re

ANIMALS = ("bear beaver camel cat crab crow deer dog donkey duck fox frog goat goose hare hen horse lamb lion lizard "
           "mole monkey mouse otter owl panda parrot penguin pig pony rabbit raven robin seal sheep snail squirrel "
           "swan tiger turtle whale wolf").split()

# One list for each sentence of a story; {name} and {animal} come from the request, the other slots from SLOTS.
# A slot keeps its value through the story.
SENTENCES = [
    ["Once upon a time, a {trait} {animal} named {name} lived {place}.",
     "There once was a {trait} {animal} named {name} who lived {place}.",
     "Long ago, {name} the {trait} {animal} lived {place}."],
    ["One {time}, {name} found {thing} under a {cover}.",
     "One {time}, {name} saw {thing} next to a {cover}.",
     "Every {time}, {name} went for a walk, and one day there was {thing} by a {cover}."],
    ["{name} wanted to {wish}, but it was too {problem}.",
     "{name} tried to {wish}, but everything felt too {problem}.",
     "\"I will {wish},\" said {name}, but it was much too {problem}."],
    ["Then a {friend} came by and asked, \"Can I help you?\"",
     "Just then a {friend} stopped and said, \"Let us try together.\"",
     "A kind {friend} heard this and came to help."],
    ["Together they worked until the {end}, and at last it was done.",
     "They laughed and worked side by side until the {end}.",
     "With two of them it was easy, and they were done before the {end}."],
    ["From that day on, {name} and the {friend} were best friends.",
     "{name} thanked the {friend}, and they shared a big {treat}.",
     "That night {name} fell asleep with a smile."],
]

SLOTS = {
    "trait": "little brave clever shy cheerful sleepy curious gentle".split(),
    "place": ["in a quiet forest", "by a blue lake", "near an old mill", "on a green hill", "at the edge of a village",
              "in a warm garden", "on a small island"],
    "time": "morning evening".split(),
    "thing": ["a silver key", "a red kite", "a tiny bell", "a golden leaf", "an old map", "a lost letter",
              "a shiny stone"],
    "cover": "tree rock bush bridge fence".split(),
    "wish": ["find its owner", "take it home", "show it to everyone", "keep it safe", "learn what it was for"],
    "problem": "hard heavy dark late far".split(),
    "friend": "hedgehog badger sparrow butterfly beetle kitten puppy".split(),
    "end": ["sun went down", "stars came out", "moon rose"],
    "treat": ["apple pie", "bowl of soup", "honey cake", "bag of nuts"],
}


def tell(rng, name, animal):
    values = {slot: rng.choice(choices) for slot, choices in SLOTS.items()}
    return " ".join(rng.choice(forms) for forms in SENTENCES).format(name=name, animal=animal, **values)


def is_story(text, name, animal):
    """True when text is a story of this grammar about this animal of this name, slots used consistently."""
    text = re.sub(rf"\b{re.escape(name)}\b", "{name}", text)
    position, values = 0, {"name": re.escape("{name}"), "animal": re.escape(animal)}
    for forms in SENTENCES:
        for form in forms:
            match = _match_form(form, text, position, values)
            if match:
                position, values = match
                break
        else:
            return False
    return position == len(text)


def _match_form(form, text, position, values):
    pieces, seen = [], set()
    for part in re.split(r"(\{\w+\})", form):
        slot = part[1:-1]
        if not part.startswith("{"):
            pieces.append(re.escape(part))
        elif slot in values:
            pieces.append(values[slot])
        elif slot in seen:
            pieces.append(f"(?P={slot})")
        else:
            seen.add(slot)
            pieces.append(f"(?P<{slot}>" + "|".join(re.escape(c) for c in SLOTS[slot]) + ")")
    match = re.compile("".join(pieces) + r"(?: |$)").match(text, position)
    if not match:
        return None
    return match.end(), {**values, **{slot: re.escape(match.group(slot)) for slot in seen}}
