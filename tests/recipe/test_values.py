"""Arguments and expressions, and values that are written and read back."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from obert_modifiers.recipe_text.arguments import parse_recipe_args
from obert_modifiers.recipe_text.expression import UnknownNameError, evaluate
from obert_modifiers.recipe_text.writing import flow


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": 1, "b": [1, 2], "c": 1e-7}', {"a": 1, "b": [1, 2], "c": 1e-7}),
        ("a=1", {"a": 1}),
        ("a=1.0, b:2,c = x=y", {"a": 1.0, "b": 2, "c": "x=y"}),
        ("a=1e-7,b=.5,c=True,d=null", {"a": 1e-7, "b": 0.5, "c": True, "d": None}),
        ("p=re:.*weight", {"p": "re:.*weight"}),
    ],
)
def test_recipe_args_keep_their_types(given, expected):
    found = parse_recipe_args(given)
    assert found == expected
    assert [*map(type, found.values())] == [*map(type, expected.values())]


@pytest.mark.parametrize("given", ["a=1,a=2", "=3", "a=1,", "x", 3.5])
def test_recipe_args_of_no_known_form_are_refused(given):
    said = "recipe_args item" if isinstance(given, str) else "=3.5 is a float"
    with pytest.raises((TypeError, ValueError), match=said):
        parse_recipe_args(given)


NAMES = {"n": 10, "f": 0.5, "word": "text", "items": [1]}


def lookup(name: str):
    if name not in NAMES:
        raise UnknownNameError(name=name)
    return NAMES[name]


COMPUTED = {
    "1": 1,
    "n": 10,
    "items": [1],
    "n // 3 % 2": 1,
    "-n ** 2": -100,
    "+n - -f": 10.5,
    "(n + 2) * f": 6.0,
    "max(n, 3) / min(4, n)": 2.5,
    "round(2.7) + int(3.9) + abs(-1) + float(1)": 8.0,
    "1e-3 * n": 0.01,
}


@pytest.mark.parametrize("expression", COMPUTED)
def test_expressions_are_computed(expression):
    found = evaluate(expression, lookup)
    assert found == COMPUTED[expression]
    assert type(found) is type(COMPUTED[expression])


REFUSED = "n +|n; n|word * 2|items[0]|n.real|lambda: 1|[n]|'a'|True|n if f else 1|"
REFUSED += "n < 3|open('x')|max(n, key=abs)|(-8) ** 0.5|2 ** 10000|1 % 0|int(1e999)|"
REFUSED += "9.9 ** 999|"  # and nothing


@pytest.mark.parametrize("expression", [*REFUSED.split("|"), "n" + " + n" * 100_000])
def test_anything_but_arithmetic_is_refused(expression):
    with pytest.raises(ValueError, match=r"^(is|holds|computes|cannot|has) "):
        evaluate(expression, lookup)


def test_unknown_names_are_named():
    with pytest.raises(UnknownNameError) as caught:
        evaluate("n * (m + 1)", lookup)
    assert caught.value.name == "m"


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")),
    st.sampled_from(["1e-7", "yes", "a: b", "a, b", "[x", "#c", "eval(x)", "&a", "\n"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(scalars, inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_written_values_read_back_wherever_they_stand(value):
    written = flow(value)
    assert "\n" not in written
    for text, wanted in (
        (f"a: {written}\nb: 1\n", {"a": value, "b": 1}),
        (f"a: {{b: {written}, c: 1}}\n", {"a": {"b": value, "c": 1}}),
    ):
        assert yaml.safe_load(text) == wanted
