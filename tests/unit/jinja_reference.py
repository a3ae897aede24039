"""jinja2 set up as transformers does for apply_chat_template: what our interpreter is compared with."""
import datetime
import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """{% generation %} prints its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("print_body"), [], [], body).set_lineno(line)

    def print_body(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Attributes must not begin with an underscore."""

    def __init__(*arguments, **attributes):
        attributes = dict(*arguments[1:], **attributes)
        for name in attributes:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(arguments[0], attributes)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def make_environment():
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["namespace"] = Namespace
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


ENVIRONMENT = make_environment()


def render(template, variables):
    """The text; None when the template fails. template: a source, or what compile gave."""
    try:
        if isinstance(template, str):
            template = ENVIRONMENT.from_string(template)
        return template.render(**variables)
    except Exception:
        return None


def compile(source):
    return ENVIRONMENT.from_string(source)
