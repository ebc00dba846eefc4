"""The YAML reader: the core schema of YAML 1.2, the place of everything, limits, traps and includes."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from edge_agent import yamlfile
from edge_agent.yamlfile import Document, Place, Problem, Table


def read(text: str | bytes) -> Document:
    return yamlfile.parse(text.encode() if isinstance(text, str) else text, "f.yaml")


def fault(text: str | bytes) -> Problem:
    document = read(text)
    assert len(document.problems) == 1, document.problems
    return document.problems[0]


def at(problem: Problem) -> tuple[int, int]:
    return problem.place.line, problem.place.column


# --- values ---


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("0", 0),
        ("-12", -12),
        ("+12", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5E-2", -0.015),
        ("01.5", 1.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("y", "y"),
        ("n", "n"),
        ("nope", "nope"),
        ("3.1.1", "3.1.1"),
        ("1/min", "1/min"),
        ("10s", "10s"),
        ("2%", "2%"),
        ("°C", "°C"),
        ("holding:100", "holding:100"),
        ('"012"', "012"),
        ("'no'", "no"),
        ('"1e3"', "1e3"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("enschede/hall-2", "enschede/hall-2"),
    ],
)
def test_plain_words_are_read_by_the_core_schema_of_yaml_1_2(written: str, value: object) -> None:
    document = read(f"key: {written}\n")
    assert document.problems == ()
    assert document.root == {"key": value}
    assert type(document.root["key"]) is type(value)


def test_not_a_number_is_a_float() -> None:
    assert math.isnan(read("key: .nan").root["key"])


def test_a_character_beyond_the_first_plane_may_be_written_as_json_writes_it() -> None:
    text = json.dumps({"a": "😀 \\", "b": "\\ud83d\\ude00"})
    assert read(text.encode()).root == json.loads(text)


@pytest.mark.parametrize("secret", ["0123456", "yes", "1_000", "2020-01-01", "12:30"])
def test_what_may_be_a_password_is_not_repeated(secret: str) -> None:
    problem = fault(f"mqtt:\n  password: {secret}\n")
    assert at(problem) == (2, 13)
    assert secret not in str(problem)
    assert problem.allowed == "{secret: NAME}"


@pytest.mark.parametrize("word", ["no", "No", "NO", "yes", "Yes", "on", "ON", "off", "oFF"])
def test_the_truths_of_yaml_1_1_are_refused_as_value_and_as_key(word: str) -> None:
    value = fault(f"a: 1\nword: {word}\n")
    assert at(value) == (2, 7)
    assert value.path == ("word",)
    assert value.found == word
    assert f'"{word}" in quotes' in str(value.allowed)
    key = fault(f"a: 1\n  \n{word}: 1\n")
    assert at(key) == (3, 1)
    assert f'"{word}" in quotes' in str(key.allowed)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("012", "12 or 0o12"),
        ("-012", "-12"),
        ("08", "8"),
        ("00", "0"),
        ("1:30", '"1:30" in quotes'),
        ("12:30:45", '"12:30:45" in quotes'),
        ("1_000", '"1_000" in quotes'),
        ("0b101", '"0b101" in quotes'),
        ("-0x1F", '"-0x1F" in quotes'),
        (".5e3", '".5e3" in quotes'),
        ("2026-11-23", '"2026-11-23" in quotes'),
        ("=", '"=" in quotes'),
        ("9" * 30, "64 bits"),
    ],
)
def test_what_readers_of_yaml_disagree_on_is_refused_with_what_to_write_instead(written: str, instead: str) -> None:
    problem = fault(f"a:\n  - {written}\n")
    assert at(problem) == (2, 5)
    assert problem.path == ("a", 0)
    assert instead in str(problem.allowed)


def test_a_merge_key_is_refused_and_the_rest_still_read() -> None:
    document = read("a: &x {p: 1}\nb:\n  <<: *x\n  q: 2\n")
    assert [at(problem) for problem in document.problems] == [(3, 3)]
    assert "type:" in str(document.problems[0].allowed)
    assert document.root["b"] == {"p": 1, "q": 2}


def test_a_key_that_stands_twice_is_told_at_the_second_and_the_first_one_counts() -> None:
    document = read("a: 1\nb: 2\na: 3\n")
    assert [at(problem) for problem in document.problems] == [(3, 1)]
    assert "line 1" in document.problems[0].text
    assert document.root == {"a": 1, "b": 2}


@pytest.mark.parametrize("key", ["true", "1.5", "null", ".inf"])
def test_a_key_is_a_text_or_a_whole_number(key: str) -> None:
    assert at(fault(f"map: {{{key}: x}}")) == (1, 7)


def test_whole_numbers_may_be_keys() -> None:
    assert read("map: {0: stopped, 1: running}").root == {"map": {0: "stopped", 1: "running"}}


@pytest.mark.parametrize("text", ["? [a]\n: 1\n", "{[a]: 1}", "? {a: 1}\n: 1\n"])
def test_a_container_is_no_key(text: str) -> None:
    assert "a key is a text" in fault(text).text


@pytest.mark.parametrize("text", ["a: !!str 012", "a: !secret x", "a: ! b", "a: !!python/object:os.system {}"])
def test_tags_are_refused(text: str) -> None:
    assert at(fault(text)) == (1, 4)


def test_all_faults_come_out_at_once() -> None:
    document = read("a: no\nb: 012\nc: {on: 1:30}\na: 1\n")
    assert [at(problem) for problem in document.problems] == [(1, 4), (2, 4), (3, 5), (3, 9), (4, 1)]


# --- places ---


def test_every_key_and_value_knows_its_place() -> None:
    root = read('# ü\nagent:\n  id: "x"\nlist: [1, {b: é°, c: 2}]\nempty:\n').root
    assert root.key_at["agent"] == Place("f.yaml", 2, 1)
    assert root["agent"].key_at["id"] == Place("f.yaml", 3, 3)
    assert root["agent"].value_at["id"] == Place("f.yaml", 3, 7)
    assert root.value_at["agent"] == Place("f.yaml", 3, 3)
    assert root["list"].value_at == [Place("f.yaml", 4, 8), Place("f.yaml", 4, 11)]
    assert root["list"][1].key_at["c"] == Place("f.yaml", 4, 19)
    assert root.key_at["empty"] == Place("f.yaml", 5, 1)


def test_a_byte_order_mark_moves_no_column() -> None:
    assert at(fault(b"\xef\xbb\xbfa: no\n")) == (1, 4)


def test_windows_line_ends_are_line_ends() -> None:
    assert at(fault("a: 1\r\nb: no\r\n")) == (2, 4)


def test_what_an_alias_brings_stands_where_it_is_written() -> None:
    root = read("a: &x\n  p: 1\nb: *x\n").root
    assert root["b"] == {"p": 1}
    assert root["b"].key_at["p"].line == 2


# --- files that cannot be read ---


@pytest.mark.parametrize(
    ("data", "place", "words"),
    [
        (b"a: 1\nb: \xff\xfe\n", (2, 4), "not UTF-8"),
        ("a: é\nü: ".encode() + b"\xc3", (2, 4), "not UTF-8"),
        ("a: 1".encode("utf-16"), (1, 1), "UTF-16"),
        (b"a: 1\nb: \x00\n", (2, 4), "cannot be printed"),
        ("a: x\u2028y\n".encode(), (1, 5), "cannot be printed"),
        (b"a:\n\tb: 1\n", (2, 1), "tab"),
        (b"a: [1, 2\n", (2, 1), "not YAML"),
        (b"a: b: c\n", (1, 5), "not YAML"),
        (b"a: @x\n", (1, 4), "cannot start with @"),
        (b"a: 'x\n", (2, 1), "not YAML"),
        (b"a: 1\n---\nb: 2\n", (2, 1), "second document"),
        (b"%YAML 1.1\n---\na: 1\n", (1, 1), "another YAML"),
        (b'a: "\\ud83d"\n', (1, 7), "escape"),
        (b"a: *b\n", (1, 4), "alias"),
        (b"a: &x [*x]\n", (1, 8), "alias"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(data: bytes, place: tuple[int, int], words: str) -> None:
    document = read(data)
    assert not document.complete
    assert at(document.problems[-1]) == place
    assert words in document.problems[-1].text


@pytest.mark.parametrize("data", [b"", b"\n", b"# nothing\n", b"---\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_empty_and_not_wrong(data: bytes) -> None:
    assert read(data) == Document(None, ())


def test_json_is_yaml_whatever_its_indentation() -> None:
    value = {"agent": {"id": "x", "n": [1, 2.5, None, True, '°C \\ / " é']}, "e": {}, "l": []}
    for indent in (None, 2, "\t"):
        for plain in (True, False):
            document = read(json.dumps(value, indent=indent, ensure_ascii=plain))
            assert document.problems == ()
            assert document.root == value


# --- limits ---


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["[" * 200_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000])
def test_deep_nesting_is_refused_at_once(text: str) -> None:
    assert not read(text).complete


def test_fifty_levels_are_allowed_and_no_more() -> None:
    assert read("[" * 50 + "]" * 50).problems == ()
    assert "nested too deep" in fault("[" * 51 + "]" * 51).text


@pytest.mark.timeout(10)
def test_a_bomb_of_aliases_is_refused_before_it_is_walked() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert "too large" in fault("\n".join(lines)).text


def test_aliases_cannot_make_it_deeper_than_fifty() -> None:
    chain = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)]
    assert not read("\n".join(chain)).complete


def test_a_hundred_aliases_are_allowed_and_no_more() -> None:
    assert read("a: &a 1\nb: [" + ", ".join(["*a"] * 100) + "]").problems == ()
    assert "too many aliases" in fault("a: &a 1\nb: [" + ", ".join(["*a"] * 101) + "]").text


def test_a_file_of_more_than_4_mb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("# " + "x" * yamlfile.FILE_BYTES_MAX)
    tree = yamlfile.load(path)
    assert not tree.complete
    assert "too large" in tree.problems[0].text


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    if kind == "folder":
        path.mkdir()
    tree = yamlfile.load(path)
    assert not tree.complete
    assert tree.problems[0].place == Place(str(path), 1, 1)


# --- includes ---


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / next(iter(files))


def test_included_files_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        {
            "agent.yaml": "agent: {id: a}\nmachines: {m0: {}}\ninclude: [machines/*.yaml]\n",
            "machines/b.yaml": "machines: {m2: {}}\n",
            "machines/a.yaml": "machines: {m1: {}}\nmqtt: {url: x}\ninclude: ['deep/*.yaml']\n",
            "machines/deep/c.yaml": "mqtt: {version: auto}\n",
        },
    )
    tree = yamlfile.load(main)
    assert tree.problems == ()
    assert list(tree.root["machines"]) == ["m0", "m1", "m2"]
    assert tree.root["mqtt"] == {"url": "x", "version": "auto"}
    assert [path.name for path in tree.files] == ["agent.yaml", "a.yaml", "c.yaml", "b.yaml"]
    assert tree.root["machines"].key_at["m2"] == Place(str(tmp_path / "machines/b.yaml"), 1, 12)
    assert len(tree.sha) == 64


def test_any_included_byte_changes_the_sha(tmp_path: Path) -> None:
    main = write(tmp_path, {"a.yaml": "include: [b.yml]\n", "b.yml": "x: {}\n"})
    before = yamlfile.load(main).sha
    (tmp_path / "b.yml").write_text("x: {}\n ")
    assert yamlfile.load(main).sha != before


def test_a_pattern_that_matches_nothing_is_a_note(tmp_path: Path) -> None:
    tree = yamlfile.load(write(tmp_path, {"a.yaml": "x: {}\ninclude: [none/*.yaml]\n"}))
    assert tree.problems == ()
    assert "none/*.yaml matches no file" in tree.notes[0]


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [
        ("machines: {m: {}}", "machines:\n  m: {}", (2, 3)),
        ("connections: {c: {}}", "connections: {d: {}, c: {}}", (1, 22)),
        ("types: {t: {}}", "types: {t: {}}", (1, 9)),
        ("agent: {id: a}", "agent: {site: s, id: b}", (1, 18)),
        ("web: null", "web: null", (1, 1)),
    ],
)
def test_a_name_that_stands_in_two_files_is_told_at_its_second_place(
    tmp_path: Path, first: str, second: str, place: tuple[int, int]
) -> None:
    main = write(tmp_path, {"a.yaml": f"{first}\ninclude: [b.yaml]\n", "b.yaml": second + "\n"})
    problem = yamlfile.load(main).problems[0]
    assert problem.place == Place(str(tmp_path / "b.yaml"), *place)
    assert "a.yaml:1" in problem.text


def test_files_that_include_each_other_are_told_at_the_pattern(tmp_path: Path) -> None:
    main = write(tmp_path, {"a.yaml": "include: [b.yaml]\n", "b.yaml": "include:\n  - x.yaml\n  - a.*\n"})
    tree = yamlfile.load(main)
    assert tree.problems[0].place == Place(str(tmp_path / "b.yaml"), 3, 5)
    assert "circle" in tree.problems[0].text


def test_a_chain_of_includes_ends_somewhere(tmp_path: Path) -> None:
    files = {f"{n}.yaml": f"include: [{n + 1}.yaml]\n" for n in range(40)}
    tree = yamlfile.load(write(tmp_path, files))
    assert "too deep" in tree.problems[0].text


def test_a_file_that_two_include_counts_once(tmp_path: Path) -> None:
    main = write(tmp_path, {"a.yaml": "include: [b.yaml, 'b.*']\n", "b.yaml": "machines: {m: {}}\n"})
    tree = yamlfile.load(main)
    assert tree.problems == ()
    assert len(tree.notes) == 1


@pytest.mark.parametrize("written", ["machines/*.yaml", "{a: b}", "[1]", "['']", '["a\\0b"]', "[[a]]"])
def test_include_is_a_list_of_patterns(tmp_path: Path, written: str) -> None:
    tree = yamlfile.load(write(tmp_path, {"a.yaml": f"include: {written}\n"}))
    assert [problem.path[0] for problem in tree.problems] == ["include"]


def test_a_fault_in_an_included_file_is_told_in_that_file(tmp_path: Path) -> None:
    tree = yamlfile.load(write(tmp_path, {"a.yaml": "include: [b.yaml]\n", "b.yaml": "a: 1\nb: [\n"}))
    assert not tree.complete
    assert tree.problems[0].place.file == str(tmp_path / "b.yaml")


# --- the same reading as others ---


def theirs(text: str) -> Any:
    """What ruamel reads; an Exception when it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return YAML(typ="safe", pure=True).load(text)
        except Exception as error:  # noqa: BLE001 - ruamel also fails with errors of its own making
            return error


def same(ours: Any, other: Any) -> bool:
    """Equal in value and type, NaN equal to NaN, keys in the same order."""
    if isinstance(ours, dict) and isinstance(other, dict):
        keys = list(zip(ours, other, strict=False))
        return len(ours) == len(other) and all(same(a, b) and same(ours[a], other[b]) for a, b in keys)
    if isinstance(ours, list) and isinstance(other, list):
        return len(ours) == len(other) and all(map(same, ours, other))
    if isinstance(ours, float) and isinstance(other, float) and math.isnan(ours):
        return math.isnan(other)
    return type(ours) is type(other) and bool(ours == other)


TOKENS = [
    *("a", "b", "key", "1", "0", "12", "012", ".5", "1e3", "1.5e-3", "e", "-", "- ", ": ", ":", "\n", "\n  ", "\n    "),
    *("  ", " ", "{", "}", "[", "]", ", ", ",", '"', "'", "|\n", "> \n", ">-\n", "|+\n", "# c", "#", "&a ", "*a", "? "),
    *("!", "%", "@", "true", "no", "null", "~", "0x1F", "0o17", "+1", "-3", "-.inf", ".nan", "é", "\t", "\\n", '"a b"'),
    *("'it''s'", "x: 1", "- y", "---", "...", "\r\n", "=", "<<", "_", "1_0", "é: ü", '"\\u00e9"', "a#b", "::", "°C"),
    *("1:30", "2026-01-01", "?", "..", ".", "[a, b]", "{a: b}", "{a: b, }"),
]


@given(st.sampled_from(["", "k: ", "k:\n  ", "a: 1\n", "- "]), st.lists(st.sampled_from(TOKENS), max_size=14))
@settings(max_examples=600, deadline=None)
def test_no_accepted_document_is_read_differently_than_by_ruamel(start: str, tokens: list[str]) -> None:
    text = start + "".join(tokens)
    document = read(text)
    if document.problems or not isinstance(document.root, Table):
        return
    other = theirs(text)
    # ruamel refuses a few things that YAML 1.2 allows (tabs between words, words such as -_): never read otherwise.
    assert isinstance(other, Exception) or same(document.root, other), (document.root, other)


WORDS = st.one_of(
    st.from_regex(r"[-+]?[0-9]{1,6}(\.[0-9]{0,4})?([eE][-+]?[0-9]{1,2})?", fullmatch=True),
    st.from_regex(r"0x[0-9A-Fa-f]{1,6}|0o[0-7]{1,6}|[-+]?\.[0-9]{1,3}", fullmatch=True),
    st.sampled_from(["true", "False", "null", "~", "", ".inf", "-.INF", ".NaN", "+.inf", "on delay", "no-go", "1 000"]),
    st.text("abcxyzN°é/-_.%", min_size=1, max_size=8),
    st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.text("ab'c: #{", max_size=8).map(lambda text: "'" + text.replace("'", "''") + "'"),
)
TREES = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), inner, max_size=4),
    ),
    max_leaves=15,
)


def flow(tree: Any) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"k{key}: {flow(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(flow(value) or "null" for value in tree) + "]"
    return str(tree)


def block(tree: Any, indent: str = "") -> str:
    if isinstance(tree, dict) and tree:
        return "".join(f"\n{indent}k{key}: {block(value, indent + '  ')}" for key, value in tree.items())
    if isinstance(tree, list) and tree:
        return "".join(f"\n{indent}- {block(value, indent + '  ')}" for value in tree)
    return flow(tree)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), TREES, min_size=1, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
@example({"a": [], "b": {}, "c": ["1e3", "0x1F", "0o17"]}, True)
def test_ordinary_documents_are_accepted_and_read_as_ruamel_reads_them(tree: dict[str, Any], in_blocks: bool) -> None:
    text = (block(tree) if in_blocks else flow(tree)).lstrip("\n") + "\n"
    document = read(text)
    other = theirs(text)
    if document.problems or isinstance(other, Exception):
        return
    assert same(document.root, other), (text, document.root, other)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
@settings(max_examples=500, deadline=None)
def test_no_bytes_raise_anything(data: bytes) -> None:
    document = yamlfile.parse(data, "f")
    assert document.problems or document.complete


PURE = """
import sys
sys.modules["yaml.cyaml"] = None
from edge_agent import yamlfile
print(yamlfile._EventParser.__mro__[1].__module__, repr(yamlfile.parse(open(sys.argv[1], "rb").read(), "f")))
"""


def test_without_libyaml_the_same_is_read_at_the_same_places(tmp_path: Path) -> None:
    text = 'a: {b: [1, "x", no], c: 012}\nd:\n  - e: &x 1.5\n    f: *x\n  -\ng: |\n  text\nd: 1\n'
    path = tmp_path / "f.yaml"
    path.write_text(text)
    done = subprocess.run([sys.executable, "-c", PURE, path], capture_output=True, text=True, check=True)
    module, _, document = done.stdout.strip().partition(" ")
    assert module == "yaml.reader"
    assert document == repr(yamlfile.parse(text.encode(), "f"))
