"""Tokenizers and templates as other people's checkpoints have them, from the command line."""

import json
import shutil

import pytest
from cli_support import DEMO, GOLDEN, write_checkpoint

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def demo(tmp_path):
    """The demo model in a folder whose small files may be changed."""
    for path in DEMO.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def unusable(tmp_path):
    """A model of token ids whose tokenizer is of another scheme."""
    shutil.copytree(GOLDEN / "plain_f32", tmp_path / "model")
    (tmp_path / "model/tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    return tmp_path / "model"


def test_token_ids_need_no_tokenizer(moebius, unusable):
    for command in (["run", "--ids", "1,2", "-n", 3, "--print-ids"], ["logprobs", "--ids", "1,2"], ["info"], ["info", "--json"]):
        result = moebius(command[0], unusable, *command[1:])
        assert result.returncode == 0 and result.stdout, result.stderr
    assert b'cannot be used: ' in moebius("info", unusable).stdout
    assert json.loads(moebius("info", unusable, "--json").stdout)["has_tokenizer"] is False


@pytest.mark.parametrize("command", [["run", "-p", "hi"], ["run", "-p", "hi", "--raw"], ["tokenize", "-p", "hi"], ["chat"],
                                     ["tokenize", "--decode", "1"], ["logprobs", "-p", "hi"]])
def test_text_says_why_the_tokenizer_cannot_be_used(moebius, unusable, command):
    result = moebius(command[0], unusable, *command[1:])
    assert result.returncode == 1
    assert b'tokenizer.json: "model" is "Unigram"' in result.stderr


@pytest.fixture
def roomy(tmp_path):
    """Random weights behind the demo's tokenizer, with 64 rows more than there are tokens."""
    vocab = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    directory = write_checkpoint(tmp_path / "model", vocab + 64, 256)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory)
    return directory, vocab


def test_an_id_without_a_token_goes_on(moebius, roomy):
    directory, vocab = roomy
    result = moebius("tokenize", directory, "--decode", f"1,{vocab + 63},2")
    assert result.returncode == 0, result.stderr
    assert result.stdout == moebius("tokenize", directory, "--decode", "1,2").stdout
    result = moebius("run", directory, "-p", "hi", "--raw", "-n", 60, "--greedy", "--ignore-eos", "-q")
    assert result.returncode == 0, result.stderr
    assert moebius("tokenize", directory, "--decode", f"{vocab + 64}").returncode == 1


def test_plain_chatml(moebius, demo):
    (demo / "chat_template.jinja").write_text(CHATML)
    result = moebius("run", demo, "-p", "hi", "-n", 3, "--greedy", "--print-ids", "-q")
    named = moebius("run", DEMO, "-p", "hi", "-n", 3, "--greedy", "--print-ids", "-q", "--chat-template", "chatml")
    assert result.returncode == named.returncode == 0, result.stderr + named.stderr
    assert result.stdout == named.stdout


def test_tools(moebius, demo, tmp_path):
    """--tools FILE reaches the template, in run and in chat; a file that is none is refused."""
    (demo / "chat_template.jinja").write_text("{% if tools %}{{ raise_exception(tools[0].function.name) }}{% endif %}x")
    definitions = [{"type": "function", "function": {"name": "get_weather", "parameters": {"maximum": 1.5}}}]
    file = tmp_path / "tools.json"
    for text in (json.dumps(definitions), json.dumps({"tools": definitions})):
        file.write_text(text)
        for command in (["run", demo, "-p", "hi"], ["chat", demo]):
            result = moebius(*command, "--tools", file, input="hi\n")
            assert result.returncode == 1 and b"the template refuses: get_weather" in result.stderr, result.stderr
    assert moebius("run", demo, "-p", "hi", "-n", 1).returncode == 0
    for text, sentence in (("[", b"line 1"), ("{}", b"there are no definitions of tools"), ("[1]", b"tools[0] is not an object")):
        file.write_text(text)
        result = moebius("run", demo, "-p", "hi", "--tools", file)
        assert result.returncode == 1 and sentence in result.stderr, result.stderr
    assert b"no-such" in moebius("chat", demo, "--tools", tmp_path / "no-such", input="hi\n").stderr
    assert moebius("run", demo, "-p", "hi", "--raw", "--tools", file).returncode == 2


def test_the_template_in_a_file(moebius, demo):
    """--chat-template FILE; what the template refuses is said with its name and line."""
    template = demo / "my.jinja"
    template.write_text(CHATML)
    options = ["-p", "hi", "-n", 3, "--greedy", "--print-ids", "-q"]
    assert moebius("run", DEMO, *options, "--chat-template", template).stdout == \
        moebius("run", DEMO, *options, "--chat-template", "chatml").stdout != b""
    template.write_text("\n{{ raise_exception('Only\\033[2J poems, please.') }}")
    result = moebius("run", DEMO, *options, "--chat-template", template)
    assert result.returncode == 1
    assert b"my.jinja, line 2: the template refuses: Only [2J poems, please." in result.stderr


def test_tokens_in_three_files(moebius, roomy):
    directory, free = roomy

    def encode():
        result = moebius("tokenize", directory, "--json", "-p", "a<extra>b")
        return json.loads(result.stdout)["ids"], result.stderr.decode()

    def change(change_config):
        document = json.loads((directory / "tokenizer_config.json").read_text())
        change_config(document)
        (directory / "tokenizer_config.json").write_text(json.dumps(document))

    assert free not in encode()[0]
    change(lambda c: c["added_tokens_decoder"].update({str(free): {"content": "<extra>", "special": True}}))
    assert free in encode()[0]
    change(lambda c: c.pop("added_tokens_decoder"))
    (directory / "added_tokens.json").write_text(json.dumps({"<extra>": free}))
    assert free in encode()[0]
    change(lambda c: c.update(added_tokens_decoder={}))
    ids, warning = encode()
    assert free not in ids and '"<extra>"' in warning
