"""Random JSON schemas of the subset that docs/text.md describes, small enough that random answers end."""
import random

WORDS = ["a", "b", "name", "na", "né", "x y", "quote\"s", "type", "long_name"]


def scalar(r):
    kind = r.randrange(12)
    if kind == 0:
        least = r.choice([0, 0, 0, 3])
        return {"type": "string", "maxLength": least + r.choice([0, 1, 5, 20]), "minLength": least}
    if kind == 1:
        return {"type": "string", "pattern": r.choice([r"^[a-z]{1,6}$", r"^\d{3}-\d{4}$", "^(foo|bar)+$", "^[^\\s]{0,4}$",
                                                       "^a.c$", "^\"?\\\\?$"])}
    if kind == 2:
        return {"type": "string", "format": r.choice(["date", "time", "date-time", "uuid", "email", "ipv4", "ipv6",
                                                      "hostname", "duration", "uri"])}
    if kind == 3:
        low = r.choice([-1000, -1, 0, 7, 10**9])
        return {"type": "integer", "minimum": low, "maximum": low + r.choice([0, 1, 9, 12345])}
    if kind == 4:
        return {"type": "number", r.choice(["minimum", "exclusiveMinimum"]): r.choice([-1.5, 0, 0.1, 3.25, 1e6]),
                r.choice(["maximum", "exclusiveMaximum"]): r.choice([1e6 + 1, 2e9, 1e14])}
    if kind == 5:
        return {"type": "integer", "multipleOf": r.choice([2, 3, 10, 7]), "exclusiveMaximum": r.choice([0, 100, 1e17])}
    if kind == 6:
        return {"enum": r.sample(["red", "green", "blüe", 1, 2.5, None, True, [1, {"a": []}], {"k": "v"}], r.randint(1, 5))}
    if kind == 7:
        return {"const": r.choice(["fixed", 7, None, {"a": 1}])}
    if kind == 8:
        return {"type": ["null", r.choice(["boolean", "integer"])]}
    if kind == 9:
        return {"type": "string", "pattern": "^[a-c]*$", "minLength": 1, "maxLength": 6}
    return {"type": r.choice(["boolean", "null", "integer", "number"])}


def object_of(r, depth):
    names = r.sample(WORDS, r.randint(0, 4))
    schema = {"type": "object", "properties": {name: schema_of(r, depth - 1) for name in names}}
    schema["required"] = [name for name in names if r.random() < 0.6]
    kind = r.randrange(4)
    if kind == 0:
        schema["additionalProperties"] = False
    elif kind == 1:
        schema["additionalProperties"] = scalar(r)
    return schema


def array_of(r, depth):
    schema = {"type": "array", "maxItems": r.randint(0, 3)}
    if r.random() < 0.3:
        schema["prefixItems"] = [schema_of(r, depth - 1) for _ in range(r.randint(1, 2))]
        schema["items"] = r.choice([False, scalar(r)])
    else:
        schema["items"] = schema_of(r, depth - 1)
        schema["minItems"] = r.randint(0, schema["maxItems"])
    return schema


def all_of(r, depth):
    return {"type": "object", "allOf": [{"properties": {"a": schema_of(r, depth - 1)}, "required": ["a"]},
                                        {"properties": {"b": scalar(r), "a": True}}], "required": r.choice([[], ["b"]])}


def schema_of(r, depth):
    kind = r.randrange(10) if depth > 0 else 9
    if kind < 3:
        return object_of(r, depth)
    if kind < 5:
        return array_of(r, depth)
    if kind == 5:
        return {"anyOf": [schema_of(r, depth - 1), schema_of(r, depth - 1)]}
    if kind == 6:
        return all_of(r, depth)
    if kind == 7:
        return {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "integer"}, {"type": "boolean"}]}
    if kind == 8:
        return {"$ref": "#/$defs/list"}
    return scalar(r)


def schema(seed, depth=3):
    r = random.Random(seed)
    top = object_of(r, depth) if r.random() < 0.7 else schema_of(r, depth)
    return {**top, "$defs": {"list": {"type": "object", "required": ["value"], "properties": {
        "value": scalar(r), "next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}}}}}
