"""What docs/ has for programs is true of the server: the paths of the OpenAPI file, the metrics of the dashboard, the options."""

import json
import re
import subprocess

import jsonschema
from server_support import BINARY, ROOT


def described():
    return json.loads((ROOT / "docs/openapi.json").read_text())


def test_every_path_is_described_and_answers(server):
    paths = described()["paths"]
    routes = re.findall(r'\{\.path = "([^"]+)"', (ROOT / "src/server/routes.c").read_text())
    assert sorted(paths) == sorted(routes)
    for path, methods in paths.items():
        (method,) = methods
        status = server.request(method.upper(), path, {} if method == "post" else None).status
        assert str(status) in methods[method]["responses"] and status == (200 if method == "get" else 400), path


def test_replies_have_the_described_form(server):
    document = described()
    user = [{"role": "user", "content": "What is 7 + 8?"}]
    bodies = {
        "/v1/chat/completions": {"messages": user, "max_tokens": 5},
        "/v1/completions": {"prompt": "Once", "max_tokens": 5},
        "/v1/responses": {"input": "Once", "max_output_tokens": 5},
        "/v1/messages": {"messages": user, "max_tokens": 5},
        "/v1/messages/count_tokens": {"messages": user},
        "/tokenize": {"prompt": "Once"},
        "/detokenize": {"tokens": [1, 2]},
    }
    for path, methods in document["paths"].items():
        (method,) = methods
        reply = server.request(method.upper(), path, bodies.get(path))
        content = methods[method]["responses"]["200"]["content"]
        assert reply.status == 200 and reply.headers["Content-Type"] in content, (path, reply.body)
        if reply.headers["Content-Type"] == "application/json":
            jsonschema.validate(reply.json(), {**content["application/json"]["schema"], "components": document["components"]})
        if method == "post":
            request = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            jsonschema.validate(bodies[path], {**request, "components": document["components"]})
            error = server.post(path, {"model": "other"})
            form = methods["post"]["responses"]["404"]["content"]["application/json"]["schema"]
            jsonschema.validate(error.json(), {**form, "components": document["components"]})


def test_the_dashboard_asks_for_metrics_that_there_are(server):
    server.complete(max_tokens=3)
    panels = json.loads((ROOT / "docs/grafana.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in re.findall(r"vllm:(\w+)", target["expr"])}
    assert len(asked) > 12 and asked <= set(server.metrics()), asked - set(server.metrics())


def test_the_table_of_options_has_all_of_them():
    manual = subprocess.run([BINARY, "help", "serve"], capture_output=True, text=True, timeout=60, check=True).stdout
    lines = re.findall(r"^ +(?:-\w, )?((?:--[\w-]+, )?--[\w-]+)", manual, re.M)
    options = {name for line in lines for name in line.split(", ")} - {"--help"}
    table = (ROOT / "docs/serving.md").read_text().partition("## Options")[2].partition("## Limits")[0]
    named = set(re.findall(r"`(--[\w-]+)", table))
    assert len(options) > 25 and options == named, options ^ named
